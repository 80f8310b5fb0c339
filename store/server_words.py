"""Layouts, conditions and vectors in the words of qdrant-client, and a collection's layout read back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from qdrant_client import models

from registry.index import VectorIndex
from store.base import SparseVector, Vector
from store.layout import PAYLOAD_INDEXES, Layout, VectorLayout
from store.points import CONTENT_HASH, SOURCE, STARTED

PAYLOAD_SCHEMAS: dict[str, models.PayloadSchemaType] = {
    path: models.PayloadSchemaType(kind) for path, kind in PAYLOAD_INDEXES.items()
}
_MAX_SIM = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)


def dense_params(layout: Layout) -> dict[str, models.VectorParams]:
    """Dense and multi-vectors by name."""
    return {
        vector.name: models.VectorParams(
            size=vector.dimension,
            distance=models.Distance.COSINE,
            multivector_config=_MAX_SIM if vector.kind == "multi" else None,
            datatype=models.Datatype.FLOAT16 if vector.index.half else models.Datatype.FLOAT32,
            on_disk=vector.index.on_disk,
            hnsw_config=_hnsw(vector.index),
            quantization_config=_quantization(vector.index),
        )
        for vector in layout.vectors
        if vector.kind != "sparse"
    }


def sparse_params(layout: Layout) -> dict[str, models.SparseVectorParams]:
    """Sparse vectors by name: dot product, no IDF modifier."""
    index = models.SparseIndexParams(on_disk=layout.sparse_on_disk)
    return {v.name: models.SparseVectorParams(index=index) for v in layout.vectors if v.kind == "sparse"}


def creation(vector: VectorLayout) -> models.DenseVectorNameConfig | models.SparseVectorNameConfig:
    """What adds a vector to a standing collection; its index is set by `tuning` afterwards."""
    if vector.kind == "sparse":
        return models.SparseVectorNameConfig(sparse=models.SparseVectorConfig())
    half = models.VectorStorageDatatype.FLOAT16 if vector.index.half else models.VectorStorageDatatype.FLOAT32
    return models.DenseVectorNameConfig(
        dense=models.DenseVectorConfig(
            size=vector.dimension,
            distance=models.Distance.COSINE,
            multivector_config=_MAX_SIM if vector.kind == "multi" else None,
            datatype=half,
        )
    )


def tuning(vectors: Iterable[VectorLayout]) -> dict[str, models.VectorParamsDiff]:
    """Graph, quantization and placement of added dense and multi-vectors, which their creation cannot say."""
    return {
        vector.name: models.VectorParamsDiff(
            on_disk=vector.index.on_disk,
            hnsw_config=_hnsw(vector.index),
            quantization_config=_quantization(vector.index),
        )
        for vector in vectors
        if vector.kind != "sparse"
    }


def contradictions(layout: Layout, found: models.CollectionParams) -> dict[str, str]:
    """Where a collection's vectors cannot be the layout's, as clauses by name; vectors it lacks are none."""
    wrong = {}
    dense = found.vectors if isinstance(found.vectors, dict) else {}
    for name, wanted in dense_params(layout).items():
        there = dense.get(name)
        if there is not None and _shape(there) != _shape(wanted):
            wrong[name] = f"vector {name!r} is {_said(there)}, not {_said(wanted)}"
        elif name in (found.sparse_vectors or {}):
            wrong[name] = f"vector {name!r} is sparse, not {_said(wanted)}"
    for name in sparse_params(layout):
        if name in dense:
            wrong[name] = f"vector {name!r} is {_said(dense[name])}, not sparse"
        elif (there_sparse := (found.sparse_vectors or {}).get(name)) and there_sparse.modifier:
            wrong[name] = f"vector {name!r} has the modifier {there_sparse.modifier.value}"
    return wrong


def names(found: models.CollectionParams) -> set[str]:
    """The vectors a collection has."""
    dense = found.vectors if isinstance(found.vectors, dict) else {}
    return {*dense, *(found.sparse_vectors or {})}


def not_newer(started: int) -> models.Filter:
    """Points that a job of this start may write over; one that never said its start is older."""
    newer = models.FieldCondition(key=STARTED, range=models.Range(gt=started))
    return models.Filter(must_not=[newer])


def same_text(point: str, content_hash: str, started: int) -> models.Filter:
    """The one point, if its text is that and a job of this start may write over it."""
    text = models.FieldCondition(key=CONTENT_HASH, match=models.MatchValue(value=content_hash))
    this = models.HasIdCondition(has_id=[point])
    return models.Filter(must=[this, text], must_not=not_newer(started).must_not)


def same_texts(texts: Mapping[str, str], started: int) -> models.Filter:
    """Those of the points, each with its content hash, whose text is that, as `same_text`."""
    each = [same_text(point, content_hash, started) for point, content_hash in texts.items()]
    return models.Filter(should=[*each])


def of_sources(points: Sequence[str], sources: Sequence[str], started: int) -> models.Filter:
    """Those of the points that are of one of the sources and that a job of this start may write over."""
    same = models.FieldCondition(key=SOURCE, match=models.MatchAny(any=[*sources]))
    these = models.HasIdCondition(has_id=[*points])
    return models.Filter(must=[these, same], must_not=not_newer(started).must_not)


def has_vector(name: str) -> models.Filter:
    """Points that have that vector."""
    return models.Filter(must=[models.HasVectorCondition(has_vector=name)])


def written_since(started: int) -> models.Filter:
    """Points that a job of this start, or a later one, wrote last."""
    return models.Filter(must=[models.FieldCondition(key=STARTED, range=models.Range(gte=started))])


def among(points: Sequence[str]) -> models.Filter:
    """Those of the points that stand."""
    return models.Filter(must=[models.HasIdCondition(has_id=[*points])])


def every(*filters: models.Filter | None) -> models.Filter:
    """Points that pass all of the filters."""
    return models.Filter(must=[one for one in filters if one is not None])


def to_model(vector: Vector) -> Any:
    """A vector as the client's REST models take it."""
    if isinstance(vector, SparseVector):
        return models.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
    return vector.tolist()


def from_model(value: Any) -> Vector:
    """A vector as the client gives it."""
    if isinstance(value, models.SparseVector):
        return SparseVector(np.array(value.indices, np.int64), np.array(value.values, np.float32))
    return np.array(value, np.float32)


def _hnsw(index: VectorIndex) -> models.HnswConfigDiff:
    return models.HnswConfigDiff(
        m=index.m,
        ef_construct=index.ef_construct,
        full_scan_threshold=index.full_scan_kb,
        on_disk=index.graph_on_disk,
    )


def _quantization(index: VectorIndex) -> Any:
    match index.quantization:
        case "int8":
            scalar = models.ScalarQuantizationConfig(
                type=models.ScalarType.INT8, quantile=index.quantile, always_ram=index.always_ram
            )
            return models.ScalarQuantization(scalar=scalar)
        case "binary":
            binary = models.BinaryQuantizationConfig(always_ram=index.always_ram)
            return models.BinaryQuantization(binary=binary)
        case _:
            return None


def _shape(params: models.VectorParams) -> tuple[int, str, bool]:
    return params.size, params.distance.value, params.multivector_config is not None


def _said(params: models.VectorParams) -> str:
    size, distance, multi = _shape(params)
    return f"{'multi' if multi else 'dense'} of {size} dimensions by {distance}"
