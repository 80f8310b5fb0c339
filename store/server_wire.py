"""Points as a Qdrant server's two protocols carry them, with their sizes, and the calls that send them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from qdrant_client import QdrantClient, grpc, models
from qdrant_client.conversions.conversion import RestToGrpc

from registry.errors import StoreRefused, StoreUnavailable
from store.base import Point, SparseVector, Vector
from store.points import content_hash_of
from store.server_words import not_newer, same_text, same_texts, to_model

#: Replicas apply writes in one order, so that a condition is judged on what was written last. On one node it
#: costs nothing.
ORDERING = models.WriteOrdering.STRONG
#: Bytes of one value and its comma in JSON at most: float32 values as Python writes their doubles.
_JSON_VALUE = 26
#: Bytes of JSON or protobuf around a point, its vectors' names, and a condition.
_AROUND = 512

#: Tags of the fields `DenseVector.data` and `MultiDenseVector.vectors`: number 1, length-delimited.
_TAG = b"\x0a"


@dataclass(frozen=True)
class Row:
    """One point, ready to be sent, and its size in bytes with its condition (for REST an upper bound)."""

    id: str
    body: Any
    nbytes: int
    #: The text that must stand where only vectors are written.
    content_hash: str = ""


class Wire(Protocol):
    """How a protocol writes points and vectors."""

    def points(self, points: Iterable[Point]) -> Iterator[Row]:
        """Whole points as rows."""
        ...

    def vectors(self, points: Iterable[Point]) -> Iterator[Row]:
        """The vectors of points as rows."""
        ...

    def upsert(self, collection: str, rows: Sequence[Row], started: int) -> None:
        """Write whole points where none newer stands."""
        ...

    def update_vectors(self, collection: str, rows: Sequence[Row], started: int) -> None:
        """Write vectors of standing points of the same text that are not newer."""
        ...


class GrpcWire:
    """Vectors go as their bytes; no value becomes a Python float."""

    def __init__(self, client: QdrantClient, seconds: float) -> None:
        self._client = client
        self._seconds = seconds
        self._ordering = RestToGrpc.convert_write_ordering(ORDERING)

    def points(self, points: Iterable[Point]) -> Iterator[Row]:
        """See Wire.points."""
        for point in points:
            _json_size(point)
            try:
                payload = RestToGrpc.convert_payload(point.payload)
            except (TypeError, ValueError, OverflowError) as error:
                raise StoreRefused(f"point {point.id} cannot be written: {error}") from error
            body = grpc.PointStruct(id=grpc.PointId(uuid=point.id), payload=payload)
            _fill(body.vectors, point.vectors)
            yield Row(point.id, body, body.ByteSize())

    def vectors(self, points: Iterable[Point]) -> Iterator[Row]:
        """See Wire.vectors."""
        for point in points:
            body = grpc.PointVectors(id=grpc.PointId(uuid=point.id))
            _fill(body.vectors, point.vectors)
            yield Row(point.id, body, body.ByteSize() + _AROUND, content_hash_of(point))

    def upsert(self, collection: str, rows: Sequence[Row], started: int) -> None:
        """See Wire.upsert."""
        request = grpc.UpsertPoints(
            collection_name=collection,
            wait=True,
            points=[row.body for row in rows],
            ordering=self._ordering,
            update_filter=RestToGrpc.convert_filter(not_newer(started)),
        )
        require_done(self._client.grpc_points.Upsert(request, timeout=self._seconds).result.status)

    def update_vectors(self, collection: str, rows: Sequence[Row], started: int) -> None:
        """See Wire.update_vectors."""
        request = grpc.UpdatePointVectors(
            collection_name=collection,
            wait=True,
            points=[row.body for row in rows],
            ordering=self._ordering,
            update_filter=RestToGrpc.convert_filter(_same_texts(rows, started)),
        )
        require_done(self._client.grpc_points.UpdateVectors(request, timeout=self._seconds).result.status)


class RestWire:
    """Everything goes as JSON, about five times the bytes."""

    def __init__(self, client: QdrantClient) -> None:
        self._client = client

    def points(self, points: Iterable[Point]) -> Iterator[Row]:
        """See Wire.points."""
        for point in points:
            size = _json_size(point) + _vectors_size(point.vectors)
            vectors = {name: to_model(vector) for name, vector in point.vectors.items()}
            body = models.PointStruct(id=point.id, vector=vectors, payload=point.payload)
            yield Row(point.id, body, size)

    def vectors(self, points: Iterable[Point]) -> Iterator[Row]:
        """See Wire.vectors."""
        for point in points:
            vectors = {name: to_model(vector) for name, vector in point.vectors.items()}
            body = models.PointVectors(id=point.id, vector=vectors)
            size = _vectors_size(point.vectors) + 2 * _AROUND
            yield Row(point.id, body, size, content_hash_of(point))

    def upsert(self, collection: str, rows: Sequence[Row], started: int) -> None:
        """See Wire.upsert."""
        done = self._client.upsert(
            collection,
            [row.body for row in rows],
            wait=True,
            ordering=ORDERING,
            update_filter=not_newer(started),
        )
        require_done(done.status)

    def update_vectors(self, collection: str, rows: Sequence[Row], started: int) -> None:
        """See Wire.update_vectors."""
        done = self._client.update_vectors(
            collection,
            [row.body for row in rows],
            wait=True,
            ordering=ORDERING,
            update_filter=_same_texts(rows, started),
        )
        require_done(done.status)


def _same_texts(rows: Sequence[Row], started: int) -> models.Filter:
    return same_texts({row.id: row.content_hash for row in rows}, started)


def payload_rows(points: Iterable[Point], started: int) -> Iterator[Row]:
    """Replacements of the payloads of standing points of the same text that are not newer."""
    for point in points:
        size = _json_size(point)
        allowed = same_text(point.id, content_hash_of(point), started)
        body = models.OverwritePayloadOperation(
            overwrite_payload=models.SetPayload(payload=point.payload, filter=allowed)
        )
        yield Row(point.id, body, size + _AROUND)


def send_payloads(client: QdrantClient, collection: str, rows: Sequence[Row]) -> None:
    """Send what `payload_rows` made; both protocols take the same."""
    for done in client.batch_update_points(
        collection, [row.body for row in rows], wait=True, ordering=ORDERING
    ):
        require_done(done.status)


def cut(rows: Iterable[Row], most: int) -> Iterator[list[Row]]:
    """Rows in requests of at most `most` bytes; a row larger than that goes alone."""
    some: list[Row] = []
    size = 0
    for row in rows:
        if some and size + row.nbytes > most:
            yield some
            some, size = [], 0
        some.append(row)
        size += row.nbytes
    if some:
        yield some


def dense_bytes(vector: npt.NDArray[np.float32]) -> bytes:
    """`[d]` as a DenseVector in protobuf: packed little-endian float32, which is what the array holds."""
    data = np.ascontiguousarray(vector, "<f4").tobytes()
    return _TAG + _varint(len(data)) + data


def multi_bytes(rows: npt.NDArray[np.float32]) -> bytes:
    """`[n, d]` as a MultiDenseVector in protobuf: every row a DenseVector."""
    n, d = rows.shape
    inner = _TAG + _varint(4 * d)
    head = np.frombuffer(_TAG + _varint(len(inner) + 4 * d) + inner, np.uint8)
    body = np.ascontiguousarray(rows, "<f4").view(np.uint8).reshape(n, 4 * d)
    return np.concatenate([np.broadcast_to(head, (n, len(head))), body], axis=1).tobytes()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _fill(message: grpc.Vectors, vectors: dict[str, Vector]) -> None:
    """Put vectors into a message, each in its place: what is made apart is copied into what it is part of."""
    # A point without any says so.
    message.vectors.SetInParent()
    named = message.vectors.vectors
    for name, vector in vectors.items():
        if isinstance(vector, SparseVector):
            sparse = grpc.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())
            named[name].CopyFrom(grpc.Vector(sparse=sparse))
        elif vector.ndim == 2:
            named[name].multi_dense.MergeFromString(multi_bytes(vector))
        else:
            named[name].dense.MergeFromString(dense_bytes(vector))


def _vectors_size(vectors: dict[str, Vector]) -> int:
    values = 0
    for vector in vectors.values():
        values += 2 * vector.indices.size if isinstance(vector, SparseVector) else vector.size
    return values * _JSON_VALUE


def _json_size(point: Point) -> int:
    """Bytes of a point's payload as JSON. Raises StoreRefused naming the point if it is none."""
    try:
        return len(json.dumps(point.payload, allow_nan=False, ensure_ascii=False).encode()) + _AROUND
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreRefused(f"point {point.id} cannot be written: its payload is no JSON: {error}") from error


def require_done(status: Any) -> None:
    """Raise StoreUnavailable unless the write was applied; both protocols name the states alike."""
    if status not in (grpc.UpdateStatus.Completed, models.UpdateStatus.COMPLETED):
        raise StoreUnavailable("Qdrant took the points but has not applied them yet; they are written again")
