"""What all encoders of texts share: the space they work in, the prefix of each side, packed tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from registry.errors import WeightsError
from registry.models import ModelSpec, OutputKind, Prompt
from registry.settings import Settings
from registry.spaces import VectorSpace, space_of
from worker.encoders.base import MicroBatch, Numerics, Prepared, Side, Window
from worker.encoders.budget import Budget
from worker.encoders.tokens import TextTokenizer
from worker.weights import Weights

if TYPE_CHECKING:
    from worker.encoders.layers import Layers


class TextEncoder:
    """The half of an Encoder that knows texts; `forward`, `finish`, `free` and `close` are its
    subclass' own."""

    numerics: Numerics
    layers: Layers | None = None

    def __init__(
        self, spec: ModelSpec, task: str, settings: Settings, tokenizer: TextTokenizer, budget: Budget
    ) -> None:
        """Take the task's prompt. Raises PlanError for a task that the model does not know."""
        self.model = spec.name
        self.truncation = spec.truncation
        self._spec = spec
        self._spaces = {
            o.kind: space_of(spec, o.kind, task, fake=settings.fake_weights) for o in spec.outputs
        }
        self._task = next(iter(self._spaces.values())).task
        self._prompt: Prompt = spec.prompts[self._task]
        self._tokenizer = tokenizer
        self.budget = budget

    def space(self, kind: OutputKind) -> VectorSpace:
        """The space of one of its outputs; raises UnknownModel if the model has none of that kind."""
        return self._spaces[self._spec.output(kind).kind]

    def prepare(self, texts: Sequence[str], side: Side) -> Prepared:
        """Prefix, tokenise, cut, pack."""
        prefix = self._prefix(side)
        return self._tokenizer.prepare([prefix + t for t in texts] if prefix else texts, self.budget.now)

    def windows(self, text: str, side: Side) -> list[Window]:
        """See Encoder.windows."""
        return self._tokenizer.windows(text, self._prefix(side))

    def pack(self, windows: Sequence[Window]) -> list[MicroBatch]:
        """See Encoder.pack."""
        return self._tokenizer.pack(windows, self.budget.now)

    def _prefix(self, side: Side) -> str:
        return self._prompt.query if side == "query" else self._prompt.document


def text_tokenizer(
    spec: ModelSpec, weights: Weights, pad_id: int = 0, *, packed: bool = False
) -> TextTokenizer:
    """The checkpoint's tokenizer.json, cutting at the model's limit.

    `pad_id` stands where the file names no padding of its own; `packed` texts have none. Raises WeightsError
    if it is unreadable.
    """
    file = weights.path / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise WeightsError(f"{spec.name}: {file} cannot be read: {error}") from None
    padding = tokenizer.padding or {"pad_id": pad_id}
    return TextTokenizer(
        tokenizer,
        weights.max_tokens or spec.max_tokens,
        pad_id=padding["pad_id"],
        padding_side=spec.padding_side,
        packed=packed,
    )


def check_vocabulary(spec: ModelSpec, snapshot: Path, needed: int, embeddings: int) -> None:
    """Raise WeightsError if the tokenizer has ids for which there is no row of embeddings.

    On a CPU such a token fails its own text; on a GPU it takes the whole device away.
    """
    if needed > embeddings:
        raise WeightsError(
            f"{spec.name}: {snapshot} has embeddings for {embeddings} tokens and a tokenizer of {needed}; "
            "take both from one snapshot"
        )
