"""How much disk a collection's vectors will take in Qdrant: raw vectors, graph, quantized copies.

Held against Qdrant Edge 0.9, vectors as stored and quantized copies come within 1 %. The graph is an upper
bound, for it counts every list of links as full: 1.2 times the real one for scattered vectors at m=16, twice
where they cluster; up to five times at m=48.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from registry.index import VectorIndex

#: An int8 copy has its offset beside each vector. Bytes.
_INT8_EXTRA = 4
#: A sparse entry: token id and weight, once with the point and once in the inverted index. Bytes.
_ENTRY = 8
#: What each token that occurs takes in the inverted index beside its entries. Bytes.
_TERM = 37
#: Payloads and sparse vectors are stored in blocks of this size. Bytes.
_BLOCK = 128
#: The largest vector's storage from which graphs and quantized copies are built. Bytes.
INDEXED_FROM = 10_000 << 10
#: Per point: its id, and the payload indexes over path, content hash and job start. Bytes.
POINT_BYTES = 270


@dataclass(frozen=True)
class Footprint:
    """Bytes on disk of one named vector over a whole collection."""

    raw: int
    links: int = 0
    quantized: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.raw + self.links + self.quantized


def link_bytes(points: int, m: int) -> int:
    """An HNSW graph with full lists: 2·m links per point on the ground level, m on each level above.

    A level holds one m-th of the points of the level below it (Malkov and Yashunin, "Efficient and robust
    approximate nearest neighbor search using HNSW graphs", 2018), so all levels above hold points / (m - 1).
    Qdrant packs a link into as many bits as the number of points needs, and knows by an offset where each
    list begins. Its documentation's rule of thumb, 4 bytes a link, is for unpacked ones.
    """
    if m == 0 or points < 2:
        return 0
    links = points * 2 * m + points * m // max(1, m - 1)
    return links * math.ceil(math.log2(points)) // 8 + points * 4


def stored(points: int, rows: int, dimension: int, index: VectorIndex, *, indexed: bool) -> Footprint:
    """A dense vector (`rows` = `points`) or a multi-vector (`rows` over all points together).

    A graph has one node per point, not per row. With `indexed` false, neither graph nor copy stands yet: see
    INDEXED_FROM.
    """
    raw = rows * dimension * (2 if index.half else 4)
    if not indexed:
        return Footprint(raw)
    match index.quantization:
        case "int8":
            quantized = rows * (dimension + _INT8_EXTRA)
        case "binary":
            quantized = rows * math.ceil(dimension / 8)
        case _:
            quantized = 0
    return Footprint(raw, link_bytes(points, index.m), quantized)


def sparse(points: int, entries: int, vocabulary: int) -> Footprint:
    """`entries` weighted tokens over all points together; `links` is the inverted index."""
    if not points:
        return Footprint(0)
    blocks = math.ceil(_ENTRY * entries / points / _BLOCK)
    terms = min(vocabulary, entries)
    return Footprint(points * blocks * _BLOCK, links=entries * _ENTRY + terms * _TERM)
