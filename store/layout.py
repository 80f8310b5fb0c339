"""How a collection must be built for its vectors, in no client's words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from registry.models import OutputKind
from registry.plan import NamedVector

#: Payload paths and the index each gets before the first point: `path` and `content_hash` are filtered on by
#: people and by writes, `v5.started` by every conditional write.
PAYLOAD_INDEXES: dict[str, Literal["keyword", "integer"]] = {
    "path": "keyword",
    "content_hash": "keyword",
    "v5.started": "integer",
}


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
    #: Stored as float16 instead of float32.
    half: bool
    #: Read from disk when needed instead of being kept in the page cache.
    on_disk: bool
    #: Whether an HNSW graph is built over it.
    graph: bool


def layout(vectors: Iterable[NamedVector]) -> tuple[VectorLayout, ...]:
    """The layout of a collection with these vectors.

    A multi-vector is hundreds of rows per point: a graph over it costs more than everything else together,
    and it serves to reorder few candidates, so it has none, half the bytes, and stays on disk.
    """
    return tuple(
        VectorLayout(
            vector.name,
            vector.kind,
            vector.dimension,
            half=vector.kind == "multi",
            on_disk=vector.kind == "multi",
            graph=vector.kind == "dense",
        )
        for vector in vectors
    )
