"""The reranker's tokenizer: texts cut at their limits, special tokens taken out, prompts to ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from registry.errors import WeightsError
from registry.models import ModelSpec
from worker.encoders.tokens import rows_needed
from worker.rerankers.base import reranking
from worker.rerankers.prompt import strip

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fitted:
    """A text as it enters the prompt."""

    text: str
    #: Its length as blocks are cut by it: before the special tokens are taken out, at most the limit.
    tokens: int
    #: Whether something of it was left out at the limit.
    cut: bool


class PromptTokenizer:
    """The checkpoint's tokenizer, and the two tokens whose states are compared."""

    def __init__(self, spec: ModelSpec, snapshot: Path, *, own_ids: bool = False) -> None:
        """`own_ids` lets the two tokens have other ids than the registry's (small checkpoints).

        Raises WeightsError if the tokenizer cannot be read or is not the model's.
        """
        tokens = reranking(spec)
        file = snapshot / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises a bare Exception
            raise WeightsError(f"{spec.name}: {file} cannot be read: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        #: Tokens that it puts around any text; Qwen's own puts none.
        self._around = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        self.embed_token, self.rerank_token = tokens.embed_token[1], tokens.rerank_token[1]
        self.embed_id, self.rerank_id = (
            self._id(spec, file, wanted, text, own_ids)
            for wanted, text in (tokens.embed_token, tokens.rerank_token)
        )
        #: Rows of embeddings that its ids need.
        self.size = rows_needed(self._tokenizer)
        #: Longest prompt; the tokenizer's own word where it is the lower one.
        self.max_tokens = min(spec.max_tokens, _stated_limit(snapshot, spec.max_tokens))

    def fit(self, text: str, limit: int) -> Fitted:
        """Cut a text at `limit` tokens, then take the two tokens out of it.

        A text that reaches the limit is what its first tokens decode to; a character cut in two becomes
        U+FFFD.
        """
        whole = self._tokenizer.encode(text, add_special_tokens=False)
        seen = len(whole) + self._around
        whole.truncate(limit - self._around)
        kept = self._tokenizer.post_process(whole).ids
        if len(kept) >= limit:
            text = self._tokenizer.decode(kept, skip_special_tokens=False)
        return Fitted(strip(text, (self.rerank_token, self.embed_token)), len(kept), seen > limit)

    def encode(self, prompt: str) -> Ids:
        """Token ids `[t]` of a whole prompt."""
        return np.asarray(self._tokenizer.encode(prompt).ids, np.int64)

    def _id(self, spec: ModelSpec, file: Path, wanted: int, text: str, own_ids: bool) -> int:
        found = self._tokenizer.token_to_id(text)
        encoded = self._tokenizer.encode(text, add_special_tokens=False).ids
        if found is None or encoded != [found]:
            raise WeightsError(f"{spec.name}: {file} does not know {text} as one token")
        if found != wanted and not own_ids:
            raise WeightsError(f"{spec.name}: {file} gives {text} the id {found}, not {wanted}")
        return int(found)


def _stated_limit(snapshot: Path, otherwise: int) -> int:
    try:
        stated = json.loads((snapshot / "tokenizer_config.json").read_text()).get("model_max_length")
    except (OSError, ValueError, AttributeError):
        return otherwise
    return int(stated) if isinstance(stated, int | float) and stated > 0 else otherwise
