"""What the reranking worker asks of a model: candidates in, their order and scores out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from registry.errors import UsageError
from registry.models import ModelSpec, Reranking
from worker.encoders.base import Numerics

if TYPE_CHECKING:
    from worker.encoders.layers import Layers


@dataclass(frozen=True)
class Ranking:
    """Candidates, best first."""

    #: Positions in the list of documents given; equal scores keep the order given.
    order: tuple[int, ...]
    #: Their relevance, in the same order as `order`; in [-1, 1].
    scores: tuple[float, ...]
    #: How many candidates each pass saw. Scores depend on it: candidates of one pass see each other.
    blocks: tuple[int, ...]
    #: Positions of the documents that were cut at the model's limit.
    truncated: tuple[int, ...] = ()
    query_truncated: bool = False
    #: Tokens that went through the model, the prompt's own included.
    tokens: int = 0


class Reranker(Protocol):
    """A loaded reranker. `rank` runs in one thread at a time."""

    spec: ModelSpec
    numerics: Numerics
    #: What the model is, for results: its revision, or that its scores are made up.
    revision: str
    #: What of the model torch.compile may take; None where something else computes.
    layers: Layers | None

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        block: int,
        between: Callable[[], None] = ...,
    ) -> Ranking:
        """Order the documents; none gives none.

        Parameters:
            block: candidates of one pass at most, 1 to the model's own.
            between: called before each pass; what it raises ends the call.

        Raises EncodeError where a document gets no score, MemoryError where a pass does not fit the device,
        InfrastructureError where the device itself failed.
        """
        ...

    def close(self) -> None:
        """Free the device."""
        ...


def reranking(spec: ModelSpec) -> Reranking:
    """How the model reads its candidates. Raises UsageError for an embedding model."""
    if spec.reranking is None:
        raise UsageError(f"{spec.name} embeds and does not rerank")
    return spec.reranking


def block_size(spec: ModelSpec, asked: int) -> int:
    """Candidates of one pass: as asked, 0 for the model's own. Raises UsageError beyond that."""
    most = reranking(spec).block
    if not 0 <= asked <= most:
        raise UsageError(f"a block of {asked} candidates; {spec.name} takes 1 to {most} in one pass")
    return asked or most


def label(reranker: Reranker, block: int) -> str:
    """Names what scores may be compared with: the model, its revision, and the block they were made in."""
    return f"{reranker.spec.name}@{reranker.revision[:12]}/block-{block}"
