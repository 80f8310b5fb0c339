"""Writes and queries as Qdrant Edge's operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import qdrant_edge as edge

from registry.errors import StoreRefused
from store.base import Point, Vector
from store.binding import Binding
from store.edge_words import not_newer, of_sources, same_text, to_edge
from store.fusion import RRF_K, depth
from store.layout import OVERSAMPLING, quantized
from store.points import STARTED, content_hash_of
from store.vectors import nbytes

#: Points, and bytes of their vectors, written by one operation. Edge holds the interpreter meanwhile, about
#: 5 ms for either, and readers wait; half as many would cost a write 5 % more. As Python floats, vectors are
#: eight times as large.
SLICE_POINTS = 64
SLICE_BYTES = 1 << 20

_Row = TypeVar("_Row")


def slices(points: Sequence[Point]) -> Iterator[tuple[list[Point], int]]:
    """The points in runs of at most SLICE_POINTS and about SLICE_BYTES, each with its size in bytes."""
    some: list[Point] = []
    size = 0
    for point in points:
        some.append(point)
        size += sum(nbytes(vector) for vector in point.vectors.values())
        if size >= SLICE_BYTES or len(some) == SLICE_POINTS:
            yield some, size
            some, size = [], 0
    if some:
        yield some, size


def upsert_operations(points: Sequence[Point], started: int) -> Iterator[edge.UpdateOperation]:
    """Write whole points where none newer stands."""
    rows = [_row(p, lambda p: edge.Point(p.id, _to_edge(p.vectors), p.payload)) for p in points]
    yield edge.UpdateOperation.upsert_points(rows, condition=not_newer(started))


def vector_operations(points: Sequence[Point], started: int) -> Iterator[edge.UpdateOperation]:
    """Write the vectors, then the payload, of standing points that are not newer.

    In this order, so that a payload never claims vectors that a crash kept from being written.
    """
    rows = [_row(p, lambda p: edge.PointVectors(p.id, _to_edge(p.vectors))) for p in points if p.vectors]
    if rows:
        yield edge.UpdateOperation.update_vectors(rows, condition=not_newer(started))
    yield from payload_operations(points, started)


def payload_operations(points: Sequence[Point], started: int) -> Iterator[edge.UpdateOperation]:
    """Replace the payload of standing points of the same text that are not newer."""
    for point in points:
        allowed = same_text(point.id, content_hash_of(point), started)
        yield _row(point, partial(_overwrite, allowed))


def delete_operation(ids: Sequence[str], sources: Sequence[str], started: int) -> edge.UpdateOperation:
    """Remove those of the points that stand with one of the sources and are not newer."""
    return edge.UpdateOperation.delete_points_by_filter(of_sources(ids, sources, started))


def raise_operation(ids: Sequence[edge.PointId], started: int) -> edge.UpdateOperation:
    """Have points say that they were written by a job of that start."""
    about = STARTED.split(".")
    return edge.UpdateOperation.set_payload([*ids], {about[1]: started}, key=about[0])


def query_request(
    queries: dict[str, Vector], limit: int, prefetch: int, binding: Binding
) -> edge.QueryRequest:
    """The nearest by one vector, or all candidates of several, fused and not yet cut (see store.fusion)."""
    nearest = {name: edge.Query.Nearest(to_edge(vector), using=name) for name, vector in queries.items()}
    if len(nearest) == 1:
        ((name, query),) = nearest.items()
        return edge.QueryRequest(limit=limit, query=query, params=_params(binding, name))
    each = depth(limit, prefetch)
    return edge.QueryRequest(
        limit=each * len(nearest),
        prefetches=[
            edge.Prefetch(limit=each, query=query, params=_params(binding, name))
            for name, query in nearest.items()
        ],
        query=edge.Fusion.Rrf(RRF_K),  # type: ignore[arg-type]  # the stub does not make it a Fusion
    )


def _params(binding: Binding, name: str) -> edge.SearchParams | None:
    if not quantized(binding, name):
        return None
    rescored = edge.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
    return edge.SearchParams(quantization=rescored)


def _row(point: Point, build: Callable[[Point], _Row]) -> _Row:
    """Build one row. Raises StoreRefused naming the point if Edge cannot read its payload."""
    try:
        return build(point)
    except (TypeError, ValueError, OverflowError) as error:
        raise StoreRefused(f"point {point.id} cannot be written: {str(error).splitlines()[0]}") from error


def _overwrite(where: edge.Filter, point: Point) -> edge.UpdateOperation:
    return edge.UpdateOperation.overwrite_payload_by_filter(where, point.payload)


def _to_edge(vectors: dict[str, Vector]) -> dict[str, edge.NamedVector]:
    return {name: to_edge(vector) for name, vector in vectors.items()}
