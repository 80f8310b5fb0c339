"""What the worker asks of a model: three steps that can overlap, one forward pass at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from registry.codecs import Vectors
from registry.models import OutputKind, Truncation
from registry.spaces import VectorSpace
from worker.encoders.budget import Budget

if TYPE_CHECKING:
    from worker.encoders.layers import Layers

Side = Literal["document", "query"]


@dataclass(frozen=True)
class MicroBatch:
    """Texts that go through the device together."""

    #: Positions of these texts in the list given to `prepare`.
    rows: tuple[int, ...]
    #: What `forward` of the same encoder understands (token arrays, padded or packed).
    tokens: Any
    #: Tokens that carry text, and all cells of the array; their ratio is the padding's cost.
    useful_tokens: int
    padded_tokens: int
    #: Tokens of the longest text.
    longest: int


@dataclass(frozen=True)
class Window:
    """A stretch of a text over the model's limit, with the prefix and the special tokens around it."""

    #: What `pack` of the same encoder understands.
    tokens: Any
    #: Tokens of the text itself in it.
    own_tokens: int


@dataclass(frozen=True)
class Prepared:
    """Texts made ready for the device."""

    micro_batches: list[MicroBatch]
    #: Tokens of each text before truncation, and those kept, `[n]`, in the order given.
    tokens_seen: npt.NDArray[np.int32]
    tokens_kept: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Numerics:
    """How the numbers come about; recorded beside the space, not part of it."""

    backend: str
    device: str
    dtype: str
    tf32: bool = False
    quantization: str = ""
    #: What computes attention without padding (see worker/encoders/unpadded.py); empty: texts are padded.
    attention: str = ""
    #: Whether the model's layers are compiled (see worker/encoders/layers.py).
    compiled: bool = False
    #: Why the device is not the one to be expected (no CUDA device, …); empty where it is.
    fallback: str = ""
    #: Versions of what computes, for the record.
    versions: dict[str, str] = field(default_factory=dict)


class Encoder(Protocol):
    """A loaded model. `prepare` and `finish` may run in several threads; `forward` in one at a time."""

    model: str
    numerics: Numerics
    #: Padded tokens of a micro-batch; `prepare` and `pack` look at it each time.
    budget: Budget
    #: What is done with a document over the model's limit; `encode` does it.
    truncation: Truncation
    #: What of the model torch.compile may take; None where something else computes.
    layers: Layers | None

    def space(self, kind: OutputKind) -> VectorSpace:
        """The space of one of its outputs."""
        ...

    def prepare(self, texts: Sequence[str], side: Side) -> Prepared:
        """Prefix, tokenise, cut at the model's limit, sort by length, pack by tokens. CPU only.

        An exception is taken to be the fault of one of the texts.
        """
        ...

    def windows(self, text: str, side: Side) -> list[Window]:
        """The whole of a text, in windows of the model's limit; the first is what `prepare` keeps of it."""
        ...

    def pack(self, windows: Sequence[Window]) -> list[MicroBatch]:
        """Micro-batches of windows, in their order; `rows` are positions in `windows`."""
        ...

    def forward(self, batch: MicroBatch) -> Any:
        """One forward pass; returns device outputs that `finish` understands.

        Raises InfrastructureError if the device itself failed, MemoryError if it had too little memory;
        any other exception is taken to be the fault of a text in the micro-batch.
        """
        ...

    def finish(self, batch: MicroBatch, raw: Any, kinds: Sequence[OutputKind]) -> dict[OutputKind, Vectors]:
        """Pool, normalise, bring to the host: float32 vectors per output, one per text of the micro-batch.

        The vectors are checked by the caller (`check_vectors`), so that no encoder can forget to. Raises as
        `forward` does, where a device reports a failed pass only when its results are read.
        """
        ...

    def free(self) -> None:
        """Give back memory of the device that nothing holds any more; no forward pass runs meanwhile.

        Raises InfrastructureError if the device itself failed.
        """
        ...

    def close(self) -> None:
        """Free the device."""
        ...
