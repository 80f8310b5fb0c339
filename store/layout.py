"""How a collection must be built for its vectors, in no client's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from registry.index import VectorIndex
from registry.models import OutputKind
from store.binding import Binding

#: Payload paths and the index each gets before the first point: `path` and `content_hash` are filtered on by
#: people and by writes, `v5.started` by every conditional write.
PAYLOAD_INDEXES: dict[str, Literal["keyword", "integer"]] = {
    "path": "keyword",
    "content_hash": "keyword",
    "v5.started": "integer",
}

#: Candidates taken from a quantized copy per result; the vectors themselves decide among them.
OVERSAMPLING = 2.0


@dataclass(frozen=True)
class VectorLayout:
    """One named vector as a collection holds it.

    Dense and multi-vectors are compared by cosine, multi-vectors by MaxSim over it; sparse ones by dot
    product without an IDF modifier, since the models weigh their tokens themselves.
    """

    name: str
    kind: OutputKind
    #: Length of the vector or of each row; 0 for sparse.
    dimension: int
    index: VectorIndex


@dataclass(frozen=True)
class Layout:
    """A whole collection."""

    vectors: tuple[VectorLayout, ...]
    sparse_on_disk: bool
    payload_on_disk: bool


def layout(binding: Binding) -> Layout:
    """The layout of a collection with this binding."""
    plan = binding.plan
    return Layout(
        tuple(
            VectorLayout(vector.name, vector.kind, vector.dimension, plan.index_of(vector))
            for vector in binding.vectors.values()
        ),
        plan.index.sparse_on_disk,
        plan.index.payload_on_disk,
    )


def quantized(binding: Binding, name: str) -> bool:
    """Whether searches in that vector run over a quantized copy."""
    vector = binding.vectors[name]
    return vector.kind != "sparse" and bool(binding.plan.index_of(vector).quantization)
