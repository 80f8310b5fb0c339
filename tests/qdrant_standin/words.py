"""Requests in the words of Qdrant's REST models, turned into the engine's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

import qdrant_edge as edge
from qdrant_client.http import models as rest

from tests.qdrant_standin.errors import Kind, Refused

#: The server's default `limit` of a query and of a prefetch, and of a scroll.
LIMIT = 10


def point_id(value: int | str | UUID) -> int | UUID:
    if isinstance(value, str):
        try:
            return UUID(value)
        except ValueError:
            raise Refused(Kind.BAD_REQUEST, f"Unable to parse UUID: {value}") from None
    return value


def vector(value: Any) -> Any:
    """A dense, multi- or sparse vector."""
    if isinstance(value, rest.SparseVector):
        if len(value.indices) != len(value.values):
            raise Refused(Kind.INVALID, "[values: must be the same length as indices]")
        if len(set(value.indices)) != len(value.indices):
            raise Refused(Kind.INVALID, "[indices: must be unique]")
        return edge.SparseVector(value.indices, value.values)
    if isinstance(value, list):
        return value
    raise unsupported(value)


def vectors(value: Any) -> Any:
    """Named vectors, or the unnamed one."""
    if isinstance(value, dict):
        return {name: vector(one) for name, one in value.items()}
    return {} if value is None else vector(value)


def from_edge_vectors(value: Any) -> Any:
    """Vectors as the engine gives them, as the REST models have them."""
    if isinstance(value, dict):
        return {name: from_edge_vectors(one) for name, one in value.items()}
    if isinstance(value, edge.SparseVector):
        return rest.SparseVector(indices=value.indices, values=value.values)
    return value


def selection(value: Any) -> Any:
    """Which fields of the payload to return."""
    if isinstance(value, rest.PayloadSelectorInclude):
        return edge.PayloadSelector.Include(value.include)
    if isinstance(value, rest.PayloadSelectorExclude):
        return edge.PayloadSelector.Exclude(value.exclude)
    return value


def filter_of(value: rest.Filter | None) -> edge.Filter | None:
    if value is None:
        return None
    least: Any = value.min_should
    if least is not None:
        least = edge.MinShould(_conditions(least.conditions) or [], least.min_count)
    return edge.Filter(
        must=_conditions(value.must),
        should=_conditions(value.should),
        must_not=_conditions(value.must_not),
        min_should=least,
    )


def _conditions(value: Any) -> list[Any] | None:
    if value is None:
        return None
    return [_condition(one) for one in (value if isinstance(value, list) else [value])]


def _condition(value: Any) -> Any:
    if isinstance(value, rest.Filter):
        return filter_of(value)
    if isinstance(value, rest.HasIdCondition):
        return edge.HasIdCondition({point_id(one) for one in value.has_id})
    if isinstance(value, rest.HasVectorCondition):
        return edge.HasVectorCondition(value.has_vector)
    if isinstance(value, rest.IsEmptyCondition):
        return edge.IsEmptyCondition(value.is_empty.key)
    if isinstance(value, rest.IsNullCondition):
        return edge.IsNullCondition(value.is_null.key)
    if isinstance(value, rest.NestedCondition):
        return edge.NestedCondition(value.nested.key, filter_of(value.nested.filter) or edge.Filter())
    if isinstance(value, rest.FieldCondition):
        count = value.values_count
        return edge.FieldCondition(
            value.key,
            match=None if value.match is None else _match(value.match),
            range=None if value.range is None else _range(value.range),
            values_count=None if count is None else edge.ValuesCount(**count.model_dump()),
            is_empty=value.is_empty,
            is_null=value.is_null,
        )
    raise unsupported(value)


def _match(value: Any) -> Any:
    if isinstance(value, rest.MatchValue):
        return edge.MatchValue(value.value)
    if isinstance(value, rest.MatchAny):
        return edge.MatchAny(value.any)
    if isinstance(value, rest.MatchExcept):
        return edge.MatchExcept(value.except_)
    if isinstance(value, rest.MatchText):
        return edge.MatchText(value.text)
    raise unsupported(value)


def _range(value: Any) -> Any:
    if isinstance(value, rest.Range):
        return edge.RangeFloat(gte=value.gte, gt=value.gt, lte=value.lte, lt=value.lt)
    raise unsupported(value)


def query_of(value: Any, using: str | None) -> Any:
    """What ranks the points: a vector, or how prefetched candidates are fused."""
    if value is None:
        return None
    if isinstance(value, rest.NearestQuery) and value.mmr is None:
        value = value.nearest
    if isinstance(value, (list, rest.SparseVector)):
        return edge.Query.Nearest(vector(value), using=using)
    if isinstance(value, rest.FusionQuery):
        return edge.Fusion.Dbsf() if value.fusion == rest.Fusion.DBSF else edge.Fusion.Rrf(2)
    if isinstance(value, rest.RrfQuery):
        k = 2 if value.rrf.k is None else value.rrf.k
        return edge.Fusion.Rrf(k, value.rrf.weights) if value.rrf.weights else edge.Fusion.Rrf(k)
    raise unsupported(value)


def params_of(value: rest.SearchParams | None) -> edge.SearchParams | None:
    if value is None:
        return None
    return edge.SearchParams(
        hnsw_ef=value.hnsw_ef, exact=bool(value.exact), indexed_only=bool(value.indexed_only)
    )


def prefetches_of(value: Any) -> list[edge.Prefetch] | None:
    if value is None:
        return None
    return [
        edge.Prefetch(
            limit=LIMIT if one.limit is None else one.limit,
            query=query_of(one.query, one.using),
            prefetches=prefetches_of(one.prefetch),
            params=params_of(one.params),
            filter=filter_of(one.filter),
            score_threshold=one.score_threshold,
        )
        for one in (value if isinstance(value, list) else [value])
    ]


def query_request(value: rest.QueryRequest) -> edge.QueryRequest:
    return edge.QueryRequest(
        limit=LIMIT if value.limit is None else value.limit,
        offset=value.offset,
        query=query_of(value.query, value.using),
        prefetches=prefetches_of(value.prefetch),
        with_vector=value.with_vector or False,
        with_payload=selection(value.with_payload or False),
        filter=filter_of(value.filter),
        score_threshold=value.score_threshold,
        params=params_of(value.params),
    )


def distance(value: rest.Distance) -> edge.Distance:
    distance: edge.Distance = _member(edge.Distance, value.value)
    return distance


def datatype(value: rest.Datatype | rest.VectorStorageDatatype | None) -> edge.VectorStorageDatatype | None:
    return None if value is None else _member(edge.VectorStorageDatatype, value.value.capitalize())


def comparator(value: rest.MultiVectorConfig | None) -> edge.MultiVectorConfig | None:
    return None if value is None else edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)


def modifier(value: rest.Modifier | None) -> edge.Modifier | None:
    return edge.Modifier.Idf if value == rest.Modifier.IDF else None


def shard_config(params: rest.CollectionParams, hnsw: rest.HnswConfig) -> edge.EdgeConfig:
    """A new shard's configuration; quantisation is echoed by the collection and not built."""
    dense: dict[str, edge.EdgeVectorParams] = {}
    sparse: dict[str, edge.EdgeSparseVectorParams] = {}
    for name, one in named(params.vectors).items():
        graph = hnsw.model_copy(
            update=one.hnsw_config.model_dump(exclude_none=True) if one.hnsw_config else {}
        )
        dense[name] = edge.EdgeVectorParams(
            one.size,
            distance(one.distance),
            multivector_config=comparator(one.multivector_config),
            datatype=datatype(one.datatype),
            memory=edge.Memory.Cold if one.on_disk else edge.Memory.Cached,
            hnsw_config=edge.HnswIndexConfig(graph.m, graph.ef_construct, graph.full_scan_threshold),
        )
    for name, other in (params.sparse_vectors or {}).items():
        index = other.index or rest.SparseIndexParams()
        sparse[name] = edge.EdgeSparseVectorParams(
            modifier=modifier(other.modifier), datatype=datatype(index.datatype)
        )
    return edge.EdgeConfig(vectors=dense, sparse_vectors=sparse)


def named(value: Any) -> dict[str, rest.VectorParams]:
    """The dense vectors of a configuration; the unnamed one is named by nothing."""
    return {"": value} if isinstance(value, rest.VectorParams) else dict(value or {})


def vector_creation(name: str, value: Any) -> edge.UpdateOperation:
    if isinstance(value, rest.SparseVectorNameConfig):
        weights = value.sparse
        return edge.UpdateOperation.create_sparse_vector(
            name, modifier(weights.modifier), datatype(weights.datatype)
        )
    dense = value.dense
    return edge.UpdateOperation.create_dense_vector(
        name,
        dense.size,
        distance(dense.distance),
        comparator(dense.multivector_config),
        datatype(dense.datatype),
    )


def update_operations(value: Any) -> Iterable[edge.UpdateOperation]:
    """One operation of an update, as the engine's."""
    update = edge.UpdateOperation
    if isinstance(value, rest.UpsertOperation):
        yield update.upsert_points(
            [edge.Point(point_id(p.id), vectors(p.vector), p.payload or {}) for p in _points(value.upsert)],
            condition=filter_of(value.upsert.update_filter),
            update_mode=_update_mode(value.upsert.update_mode),
        )
    elif isinstance(value, rest.UpdateVectorsOperation):
        yield update.update_vectors(
            [edge.PointVectors(point_id(p.id), vectors(p.vector)) for p in value.update_vectors.points],
            condition=filter_of(value.update_vectors.update_filter),
        )
    elif isinstance(value, rest.DeleteOperation):
        yield _on(value.delete, update.delete_points, update.delete_points_by_filter)
    elif isinstance(value, rest.ClearPayloadOperation):
        yield _on(value.clear_payload, update.clear_payload, update.clear_payload_by_filter)
    elif isinstance(value, rest.DeleteVectorsOperation):
        what = value.delete_vectors
        yield _on(what, update.delete_vectors, update.delete_vectors_by_filter, what.vector)
    elif isinstance(value, rest.DeletePayloadOperation):
        gone = value.delete_payload
        yield _on(gone, update.delete_payload, update.delete_payload_by_filter, gone.keys)
    elif isinstance(value, rest.SetPayloadOperation):
        put = value.set_payload
        yield _on(put, update.set_payload, update.set_payload_by_filter, put.payload, put.key)
    elif isinstance(value, rest.OverwritePayloadOperation):
        put = value.overwrite_payload
        yield _on(put, update.overwrite_payload, update.overwrite_payload_by_filter, put.payload, put.key)
    else:
        raise unsupported(value)


def _points(value: rest.PointsBatch | rest.PointsList) -> list[rest.PointStruct]:
    if isinstance(value, rest.PointsList):
        return value.points
    ids, columns, payloads = value.batch.ids, value.batch.vectors, value.batch.payloads
    if isinstance(columns, dict):
        rows: Any = [{name: column[i] for name, column in columns.items()} for i in range(len(ids))]
    else:
        rows = columns
    return [
        rest.PointStruct(id=one, vector=rows[i], payload=payloads[i] if payloads else None)
        for i, one in enumerate(ids)
    ]


def _update_mode(value: rest.UpdateMode | None) -> edge.UpdateMode | None:
    return None if value is None else _member(edge.UpdateMode, value.value.title().replace("_", ""))


def _member(kind: Any, name: str) -> Any:
    """A value of one of the engine's enumerations, by its name there."""
    return getattr(kind, name)


def _on(selector: Any, by_id: Any, by_filter: Any, *rest_of_it: Any) -> Any:
    """An operation on chosen points: those with the ids, or those that match."""
    ids, matching = getattr(selector, "points", None), getattr(selector, "filter", None)
    if ids is not None:
        return by_id([point_id(one) for one in ids], *rest_of_it)
    if matching is not None:
        return by_filter(filter_of(matching), *rest_of_it)
    raise Refused(Kind.BAD_REQUEST, "No filter or points provided")


def unsupported(value: Any) -> Refused:
    return Refused(Kind.UNKNOWN_CALL, f"the stand-in does not know {type(value).__name__}")
