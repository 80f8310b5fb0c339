"""The embedded store: Qdrant's own engine in this process, on this machine's disk."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from uuid import UUID

import qdrant_edge as edge

from registry.errors import StoreRefused, StoreUnavailable, UsageError
from registry.plan import Plan
from store.base import CollectionInfo, Hit, Point, Standing, StoredPoint, Vector
from store.data_directory import MIN_FREE_BYTES, DataDirectory
from store.edge_collection import EdgeCollection
from store.edge_operations import (
    payload_operations,
    query_request,
    slices,
    upsert_operations,
    vector_operations,
)
from store.edge_words import from_edge, in_our_words, with_vector
from store.fusion import best
from store.points import STANDING_KEYS, UPDATE_KEYS, standing_of, updated
from store.vectors import fault

#: Points written since the last optimisation that make the next one worth its while. Fewer are found by
#: comparing with each, in milliseconds.
OPTIMISE_POINTS = 10_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class EdgeStore:
    """Collections under one directory, which one process may open. Any thread may call any method.

    Raises StoreUnavailable if another process has the directory.
    """

    def __init__(self, root: Path, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self._home = DataDirectory(root, min_free_bytes)
        self._root = self._home.path
        self._open: dict[str, EdgeCollection] = {}
        self._lock = threading.Lock()
        self._closed = False

    def open(self, collection: str, plan: Plan) -> CollectionInfo:
        """See Store.open. What a crashed `open` left is taken over."""
        self._home.require_room()
        with self._lock:
            standing = self._find(collection)
            if standing is None:
                standing = EdgeCollection.create(self._root / collection, plan)
                self._open[collection] = standing
                return standing.info
        standing.extend(plan)
        return standing.info

    def describe(self, collection: str) -> CollectionInfo:
        """See Store.describe."""
        return self._collection(collection).info

    def collections(self) -> list[str]:
        """See Store.collections."""
        with self._lock:
            return self._names()

    def standing(self, collection: str, ids: Sequence[str]) -> dict[str, Standing]:
        """See Store.standing."""
        wanted = _canonical(ids)
        found = self._collection(collection)
        with found.reading() as shard, in_our_words(f"looking at collection {collection!r}"):
            records = shard.read.retrieve([*wanted], list(STANDING_KEYS), False)
            payloads = {str(record.id): record.payload or {} for record in records}
            vectors: dict[str, set[str]] = {id_: set() for id_ in payloads}
            for name in found.binding.vectors if payloads else ():
                request = edge.ScrollRequest(
                    limit=len(payloads), filter=with_vector(set(payloads), name), with_payload=False
                )
                for record in shard.read.scroll(request)[0]:
                    vectors[str(record.id)].add(name)
        return {id_: standing_of(payload, frozenset(vectors[id_])) for id_, payload in payloads.items()}

    def upsert(self, collection: str, points: Sequence[Point], started: int) -> None:
        """See Store.upsert. Writes none of the points if the vectors of one do not fit."""

        self._write(collection, points, lambda some: upsert_operations(some, started))

    def update_vectors(self, collection: str, points: Sequence[Point], started: int) -> None:
        """See Store.update_vectors. Writes none of the points if the vectors of one do not fit."""

        self._write(collection, points, lambda some: vector_operations(some, started), update=True)

    def update_payload(self, collection: str, points: Sequence[Point], started: int) -> None:
        """See Store.update_payload."""
        self._write(collection, points, lambda some: payload_operations(some, started), update=True)

    def query(self, collection: str, queries: dict[str, Vector], limit: int, prefetch: int = 0) -> list[Hit]:
        """See Store.query. Raises UsageError if a query vector does not fit the collection."""
        found = self._collection(collection)
        if limit < 1 or prefetch < 0:
            raise UsageError(f"a query for {limit} results from {prefetch} candidates; ask for at least one")
        if not queries:
            raise UsageError(
                f"a query without a vector; the collection has {', '.join(found.binding.vectors)}"
            )
        for name, vector in queries.items():
            if problem := fault(name, vector, found.binding.vectors):
                raise UsageError(f"query of collection {collection!r}: {problem}")
        with found.reading() as shard, in_our_words(f"searching collection {collection!r}"):
            scored = shard.read.query(query_request(queries, limit, prefetch))
            ranked = best(((str(point.id), point.score) for point in scored), limit)
            records = shard.read.retrieve([id_ for id_, _ in ranked], True, False)
        payloads = {str(record.id): record.payload or {} for record in records}
        return [Hit(id_, score, payloads[id_]) for id_, score in ranked]

    def get(self, collection: str, ids: Sequence[str], with_vectors: bool) -> list[StoredPoint]:
        """See Store.get."""
        wanted = _canonical(ids)
        found = self._collection(collection)
        with found.reading() as shard, in_our_words(f"reading collection {collection!r}"):
            records = {str(r.id): r for r in shard.read.retrieve([*wanted], True, with_vectors)}
        points = []
        for id_ in wanted:
            if record := records.get(id_):
                vectors = record.vector if isinstance(record.vector, dict) else {}
                points.append(
                    StoredPoint(
                        id_,
                        record.payload or {},
                        {name: from_edge(vector) for name, vector in vectors.items()},
                    )
                )
        return points

    def maintain(self, collection: str, least: int = OPTIMISE_POINTS) -> bool:
        """Build indexes over what was written, if at least `least` points were; returns whether it did.

        For idle times: takes minutes and the collection's size in free disk. Reads go on meanwhile; a write
        ends it, and the next call starts anew. Raises StoreUnavailable.
        """
        found = self._collection(collection)
        self._home.require_room(sum(path.lstat().st_size for path in found.shard.directory.rglob("*")))
        return found.optimise(least)

    def close(self) -> None:
        """See Store.close. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                for collection in self._open.values():
                    collection.close()
            finally:
                self._open.clear()
                self._home.release()

    def _write(
        self,
        collection: str,
        points: Sequence[Point],
        operations: Callable[[Sequence[Point]], Iterable[edge.UpdateOperation]],
        update: bool = False,
    ) -> None:
        found = self._collection(collection)
        _require_fit(found, points)
        self._home.require_room()
        ticket = 0
        with in_our_words(f"writing to collection {collection!r}"):
            with found.writing():
                shard = found.shard
                if update:
                    points = self._updates(found, points)
                for some, size in slices(points):
                    ticket = shard.write(operations(some), size)
            # Outside, so that the next writer need not wait for the disk.
            shard.sync(ticket)

    def _updates(self, found: EdgeCollection, points: Sequence[Point]) -> list[Point]:
        """Those points whose text stands, with what of the standing payload must stay."""
        with found.reading() as shard:
            records = shard.read.retrieve([p.id for p in points], list(UPDATE_KEYS), False)
        payloads = {str(r.id): r.payload or {} for r in records}
        return [new for p in points if (new := updated(p, payloads.get(p.id, {}))) is not None]

    def _collection(self, name: str) -> EdgeCollection:
        with self._lock:
            found = self._find(name)
            if found is None:
                raise UsageError(
                    f"there is no collection {name!r}; there are: {', '.join(self._names()) or 'none yet'}"
                )
            return found

    def _find(self, name: str) -> EdgeCollection | None:
        if self._closed:
            raise StoreUnavailable(f"the store in {self._root} is closed")
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot name a collection: use 1 to 64 letters, digits, `_`, `.` or `-`, "
                "the first a letter or digit"
            )
        if name not in self._open:
            found = EdgeCollection.find(self._root / name)
            if found is None:
                return None
            self._open[name] = found
        return self._open[name]

    def _names(self) -> list[str]:
        if self._closed:
            raise StoreUnavailable(f"the store in {self._root} is closed")
        with in_our_words(f"listing {self._root}"):
            return EdgeCollection.names(self._root)


def _canonical(ids: Sequence[str]) -> list[str]:
    """Point ids as Qdrant spells them, each once. Raises UsageError."""
    try:
        return list(dict.fromkeys(str(UUID(id_)) for id_ in ids))
    except ValueError:
        raise UsageError("a point's id is a UUID; at least one of those given is not") from None


def _require_fit(found: EdgeCollection, points: Sequence[Point]) -> None:
    for point in points:
        for name, vector in point.vectors.items():
            if problem := fault(name, vector, found.binding.vectors):
                raise StoreRefused(f"point {point.id} for collection {found.name!r}: {problem}")
