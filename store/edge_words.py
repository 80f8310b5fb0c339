"""What Qdrant Edge says, in the words of this project: its errors, vectors, filters and configuration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import numpy as np
import qdrant_edge as edge

from registry.errors import StoreRefused, StoreUnavailable, V5Error
from registry.index import VectorIndex
from registry.models import OutputKind
from store.base import SparseVector, Vector
from store.layout import Layout, VectorLayout
from store.points import CONTENT_HASH, SOURCE, STARTED

#: Beginnings of Qdrant's messages that say nothing against the request (OperationError in its segment crate).
_NOT_THE_REQUEST = ("Service runtime error", "Inconsistent storage", "Out of memory", "Operation cancelled")
_COSINE = edge.Distance.Cosine


@contextmanager
def in_our_words(what: str) -> Iterator[None]:
    """Turn what Edge raises into StoreRefused or StoreUnavailable; `what` begins the message."""
    try:
        yield
    except V5Error:
        raise
    except OSError as error:
        raise StoreUnavailable(f"{what}: {error}; check the disk, then try again") from error
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreRefused(f"{what}: {str(error).splitlines()[0]}") from error
    except BaseException as error:
        # Edge raises bare Exceptions, and pyo3's PanicException, which is no Exception.
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        said = str(error)
        if "WouldBlock" in said:
            raise StoreUnavailable(
                f"{what}: another process has its files open; stop it, or set V5_DATA_DIR elsewhere"
            ) from error
        if type(error) is not Exception or said.startswith(_NOT_THE_REQUEST):
            raise StoreUnavailable(f"{what}: {said}") from error
        raise StoreRefused(f"{what}: {said}") from error


def to_edge(vector: Vector) -> Any:
    """A vector as Edge takes it: it reads lists far faster than arrays, and fastest what makes each float
    only when it is read."""
    if isinstance(vector, SparseVector):
        return edge.SparseVector(vector.indices.tolist(), vector.values.tolist())
    return vector.data if vector.ndim == 1 else vector.tolist()


def from_edge(value: Any) -> Vector:
    """A vector as Edge gives it."""
    if isinstance(value, edge.SparseVector):
        return SparseVector(np.array(value.indices, np.int64), np.array(value.values, np.float32))
    return np.array(value, np.float32)


def not_newer(started: int) -> edge.Filter:
    """Points that a job of this start may write over; one that never said its start is older."""
    newer = edge.FieldCondition(STARTED, range=edge.RangeFloat(gt=float(started)))
    return edge.Filter(must_not=[newer])


def same_text(point: str, content_hash: str, started: int) -> edge.Filter:
    """The one point, if its text is that and a job of this start may write over it."""
    text = edge.FieldCondition(CONTENT_HASH, match=edge.MatchValue(content_hash))
    return edge.Filter(must=[edge.HasIdCondition({UUID(point)}), text, not_newer(started)])


def of_sources(points: Sequence[str], sources: Sequence[str], started: int) -> edge.Filter:
    """Those of the points that are of one of the sources and that a job of this start may write over."""
    same = edge.FieldCondition(SOURCE, match=edge.MatchAny([*sources]))
    ids: set[int | UUID | str] = {UUID(point) for point in points}
    return edge.Filter(must=[edge.HasIdCondition(ids), same, not_newer(started)])


def has_vector(name: str) -> edge.Filter:
    """Points that have that vector."""
    return edge.Filter(must=[edge.HasVectorCondition(name)])


def with_vector(points: set[str], name: str) -> edge.Filter:
    """Those of the points that have that vector."""
    return edge.Filter(must=[edge.HasIdCondition(set(points)), edge.HasVectorCondition(name)])


def config(layout: Layout) -> edge.EdgeConfig:
    """A shard's configuration."""
    dense, sparse = {}, {}
    for vector in layout.vectors:
        index = vector.index
        if vector.kind == "sparse":
            sparse[vector.name] = edge.EdgeSparseVectorParams(memory=_memory(layout.sparse_on_disk))
        else:
            dense[vector.name] = edge.EdgeVectorParams(
                vector.dimension,
                _COSINE,
                multivector_config=_comparator(vector.kind),
                datatype=_datatype(vector),
                quantization_config=_quantization(index),
                memory=_memory(index.on_disk),
                hnsw_config=edge.HnswIndexConfig(
                    index.m,
                    index.ef_construct,
                    index.full_scan_kb,
                    memory=_memory(index.graph_on_disk),
                ),
            )
    return edge.EdgeConfig(
        vectors=dense, sparse_vectors=sparse, payload_memory=_memory(layout.payload_on_disk)
    )


def creation(vector: VectorLayout) -> edge.UpdateOperation:
    """The operation that adds a vector to a shard; it changes nothing if the vector is there."""
    if vector.kind == "sparse":
        return edge.UpdateOperation.create_sparse_vector(vector.name)
    return edge.UpdateOperation.create_dense_vector(
        vector.name, vector.dimension, _COSINE, _comparator(vector.kind), _datatype(vector)
    )


def _comparator(kind: OutputKind) -> edge.MultiVectorConfig | None:
    return edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim) if kind == "multi" else None


def _datatype(vector: VectorLayout) -> edge.VectorStorageDatatype:
    return edge.VectorStorageDatatype.Float16 if vector.index.half else edge.VectorStorageDatatype.Float32


def _memory(on_disk: bool) -> edge.Memory:
    return edge.Memory.Cold if on_disk else edge.Memory.Cached


def _quantization(
    index: VectorIndex,
) -> edge.ScalarQuantizationConfig | edge.BinaryQuantizationConfig | None:
    match index.quantization:
        case "int8":
            return edge.ScalarQuantizationConfig(
                edge.ScalarType.Int8, index.quantile, memory=_memory(not index.always_ram)
            )
        case "binary":
            return edge.BinaryQuantizationConfig(memory=_memory(not index.always_ram))
        case _:
            return None
