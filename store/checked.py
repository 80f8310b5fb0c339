"""What every store does around its engine: names and ids, fitting vectors, updates, the order of results."""

from __future__ import annotations

import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence, Set
from typing import Any
from uuid import UUID

from registry.errors import StoreRefused, UsageError
from registry.plan import Plan
from store.base import CollectionInfo, Hit, Point, Sourced, Standing, StoredPoint, Vector
from store.binding import Binding, Change
from store.bulk import NOTE, BulkLoad, Indexing, bulk_loads
from store.engine import EngineCollection
from store.fusion import best
from store.points import (
    CONTENT_HASH,
    SOURCE,
    STANDING_KEYS,
    UPDATE_KEYS,
    UPDATED_KEYS,
    content_hash_of,
    source_of,
    standing_of,
    started_of,
    updated,
)
from store.vectors import fault

#: Points that a migration changes by one request to the engine. The embedded one holds the interpreter
#: meanwhile, 40 µs each.
MIGRATE_POINTS = 2_000
#: How long one call of `migrate` works. Seconds.
MIGRATE_SECONDS = 5.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class CheckedStore(ABC):
    """The Store interface over an engine's collections; see store.base.Store for what its methods promise."""

    def __init__(self) -> None:
        self._one_migration = threading.Lock()

    @abstractmethod
    def _find(self, name: str) -> EngineCollection | None:
        """The collection of a valid name; None if there is none."""

    @abstractmethod
    def _create(self, name: str, plan: Plan) -> EngineCollection:
        """A new collection for the plan; takes over what a crashed attempt left."""

    @abstractmethod
    def collections(self) -> list[str]:
        """See Store.collections."""

    @abstractmethod
    def _forget(self, name: str) -> None:
        """Have `_find` look anew at a collection, where other processes may have changed it."""

    @abstractmethod
    def _require_room(self) -> None:
        """Raise StoreUnavailable where nothing should be written now."""

    @abstractmethod
    def _begin_indexing(self, name: str) -> None:
        """Have indexes built that the engine puts off; returns at once."""

    def open(self, collection: str, plan: Plan) -> CollectionInfo:
        """See Store.open."""
        self._require_room()
        found = self._find(_checked(collection))
        if found is None:
            found = self._create(collection, plan)
        found.extend(plan)
        return _info(found)

    def describe(self, collection: str) -> CollectionInfo:
        """See Store.describe."""
        return _info(self._collection(collection))

    def plan(self, collection: str) -> Plan:
        """See Store.plan."""
        return self._collection(collection).binding.plan

    def binding(self, collection: str) -> Binding:
        """See Store.binding."""
        self._forget(collection)
        return self._collection(collection).binding

    def changes(self, collection: str, plan: Plan) -> list[Change]:
        """See Store.changes."""
        self._forget(collection)
        found = self._find(_checked(collection))
        if found is None:
            return []
        where = _where(collection)
        changes = found.binding.changes(plan, where)
        if changes:
            found.require_renewable(found.binding.leaving(plan, 0, where).arrived(plan, where))
        return changes

    def migrate(
        self,
        collection: str,
        plan: Plan,
        started: int,
        forget: Sequence[str] = (),
        seconds: float = MIGRATE_SECONDS,
    ) -> bool:
        """See Store.migrate."""
        end = time.monotonic() + seconds
        where = _where(collection)
        with self._one_migration:
            if not self.changes(collection, plan):
                return True
            self._require_room()
            found = self._collection(collection)
            leaving = found.binding.leaving(plan, started, where)
            if leaving is not found.binding:
                # From here on the former vectors are neither read nor written.
                found.leave(leaving)
            if leaving.migrating is None:
                raise RuntimeError(f"{where} is left for nothing")
            names = list(leaving.migrating.targets)
            while found.clear(names, leaving.migrating.since, MIGRATE_POINTS):
                if time.monotonic() >= end:
                    return False
            found.arrive(leaving.arrived(plan, where), names, forget)
            return True

    def lacking(self, collection: str, names: Sequence[str]) -> dict[str, int]:
        """See Store.lacking."""
        self._forget(collection)
        found = self._collection(collection)
        points = found.points
        return {name: points - found.having_count(name) for name in names}

    def notes(self, collection: str) -> dict[str, Any]:
        """See Store.notes."""
        return self._collection(collection).notes

    def note(self, collection: str, key: str, value: Any) -> None:
        """See Store.note."""
        found = self._collection(collection)
        self._require_room()
        found.note(key, value)

    def begin_bulk(self, collection: str, job: str, since: int) -> None:
        """See Store.begin_bulk."""
        found = self._collection(collection)
        self._require_room()
        state = found.index_state()
        loads = bulk_loads(state.notes)
        former = loads[0].former if loads else state.threshold
        if job not in {load.job for load in loads}:
            found.note(NOTE + job, {"since": since, "former": former})
        found.set_threshold(0)
        if not bulk_loads(found.notes):
            # This thread slept until the job had ended and all was restored: nobody would do it again.
            found.set_threshold(former)

    def settle_bulk(self, collection: str, wanted: Callable[[str], bool]) -> Sequence[BulkLoad]:
        """See Store.settle_bulk."""
        found = self._collection(collection)
        state = found.index_state()
        loads = bulk_loads(state.notes)
        stay = [load for load in loads if wanted(load.job)]
        if stay and state.threshold != 0:
            # Another's restoring came between a job's note and its load.
            found.set_threshold(0)
        elif loads and not stay and state.threshold == 0:
            # Else a person has set it meanwhile, or the load died before it changed anything.
            found.set_threshold(loads[0].former)
        for load in loads:
            if load not in stay:
                found.note(NOTE + load.job, None)
        return stay

    def indexing(self, collection: str, begin: bool) -> Indexing:
        """See Store.indexing."""
        found = self._collection(collection)
        state = found.index_state()
        loads = bulk_loads(state.notes)
        if begin and not loads and state.status == "grey":
            self._begin_indexing(collection)
        return Indexing(state.status, state.failure, state.indexed, state.vectors, loads)

    def standing(self, collection: str, ids: Sequence[str]) -> dict[str, Standing]:
        """See Store.standing."""
        wanted = _canonical(ids)
        # A vector that another process added must not be taken for missing.
        self._forget(collection)
        found = self._collection(collection)
        with found.reading():
            payloads = {r.id: r.payload for r in found.retrieve(wanted, STANDING_KEYS, False)}
            vectors: dict[str, set[str]] = {id_: set() for id_ in payloads}
            for name in found.binding.settled if payloads else ():
                for id_ in found.having([*payloads], name):
                    vectors[id_].add(name)
        return {id_: standing_of(payload, frozenset(vectors[id_])) for id_, payload in payloads.items()}

    def upsert(self, collection: str, points: Sequence[Point], started: int) -> None:
        """See Store.upsert. Writes none of the points if the vectors of one do not fit."""
        found = self._fitting(collection, points)
        with found.writing() as writer:
            _require_current(found, points, started)
            writer.upsert(points, started)

    def update_vectors(self, collection: str, points: Sequence[Point], started: int) -> list[str]:
        """See Store.update_vectors. Writes none of the points if the vectors of one do not fit."""
        found = self._fitting(collection, points)
        with found.writing() as writer:
            _require_current(found, points, started)
            writer.update_vectors(_updates(found, points), started)
        return _unwritten(found, points, started)

    def update_payload(self, collection: str, points: Sequence[Point], started: int) -> list[str]:
        """See Store.update_payload."""
        found = self._fitting(collection, points)
        with found.writing() as writer:
            _require_current(found, points, started)
            writer.update_payload(_updates(found, points), started)
        return _unwritten(found, points, started)

    def query(self, collection: str, queries: dict[str, Vector], limit: int, prefetch: int = 0) -> list[Hit]:
        """See Store.query. Raises UsageError if a query vector does not fit the collection."""
        found = self._with(collection, queries.keys())
        if limit < 1 or prefetch < 0:
            raise UsageError(f"a query for {limit} results from {prefetch} candidates; ask for at least one")
        if not queries:
            raise UsageError(
                f"a query without a vector; the collection has {', '.join(found.binding.vectors)}"
            )
        for name, vector in queries.items():
            if problem := fault(name, vector, found.binding.vectors):
                raise UsageError(f"query of collection {collection!r}: {problem}")
        with found.reading():
            found.binding.require_settled(_where(collection), queries)
            ranked = best(found.nearest(queries, limit, prefetch), limit)
            payloads = {r.id: r.payload for r in found.retrieve([id_ for id_, _ in ranked], None, False)}
        # A point may have been deleted between the two reads of an engine that serves others, too.
        return [Hit(id_, score, payloads[id_]) for id_, score in ranked if id_ in payloads]

    def get(
        self, collection: str, ids: Sequence[str], with_vectors: bool | Sequence[str]
    ) -> list[StoredPoint]:
        """See Store.get."""
        wanted = _canonical(ids)
        names = with_vectors if isinstance(with_vectors, bool) else [*with_vectors]
        found = self._collection(collection)
        with found.reading():
            settled = found.binding.settled
            records = {r.id: r for r in found.retrieve(wanted, None, names)}
        return [
            StoredPoint(id_, r.payload, {name: r.vectors[name] for name in r.vectors if name in settled})
            for id_ in wanted
            if (r := records.get(id_)) is not None
        ]

    def scroll(self, collection: str, after: str, limit: int) -> tuple[list[Sourced], str]:
        """See Store.scroll."""
        if limit < 1:
            raise UsageError(f"a page of {limit} points; ask for at least one")
        start = _canonical([after])[0] if after else ""
        records, following = self._collection(collection).page(start, limit, (SOURCE,))
        return [Sourced(record.id, source_of(record.payload)) for record in records], following

    def delete(self, collection: str, points: Sequence[Sourced], started: int) -> int:
        """See Store.delete."""
        for point in points:
            if not point.source:
                raise UsageError(f"point {point.id} has no source; only points of a source can be removed")
        if not points:
            return 0
        found = self._collection(collection)
        ids = _canonical([point.id for point in points])
        before = len(found.retrieve(ids, (SOURCE,), False))
        with found.writing() as writer:
            writer.delete(ids, sorted({point.source for point in points}), started)
        return before - len(found.retrieve(ids, (SOURCE,), False))

    def _fitting(self, name: str, points: Sequence[Point]) -> EngineCollection:
        """The collection, if every vector fits it. Raises StoreRefused naming the point, and UsageError for a
        vector that the collection does not have: it must be opened for another plan, whatever the point."""
        wanted = {vector_name for point in points for vector_name in point.vectors}
        found = self._with(name, wanted)
        if absent := sorted(wanted - found.binding.vectors.keys()):
            raise UsageError(
                f"there is no vector {absent[0]!r} in collection {name!r}; it has "
                f"{', '.join(sorted(found.binding.vectors))}"
            )
        for point in points:
            for vector_name, vector in point.vectors.items():
                if problem := fault(vector_name, vector, found.binding.vectors):
                    raise StoreRefused(f"point {point.id} for collection {name!r}: {problem}")
        self._require_room()
        return found

    def _with(self, name: str, vectors: Set[str]) -> EngineCollection:
        """The collection, looked at anew if it lacked one of these vectors when last looked at."""
        found = self._collection(name)
        if vectors <= found.binding.vectors.keys():
            return found
        self._forget(name)
        return self._collection(name)

    def _collection(self, name: str) -> EngineCollection:
        found = self._find(_checked(name))
        if found is None:
            raise UsageError(
                f"there is no collection {name!r}; there are: {', '.join(self.collections()) or 'none yet'}"
            )
        return found


def _info(found: EngineCollection) -> CollectionInfo:
    return CollectionInfo(found.name, found.binding.plan, found.points)


def _where(name: str) -> str:
    return f"collection {name!r}"


def _require_current(found: EngineCollection, points: Sequence[Point], started: int) -> None:
    """Raise SpaceMismatch if a job of that start may not write these vectors; called where no migration of
    this process comes between."""
    found.binding.require_current({name for p in points for name in p.vectors}, started, _where(found.name))


def _checked(name: str) -> str:
    """A name that every engine takes, and every file system. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a collection: use 1 to 64 letters, digits, `_`, `.` or `-`, "
            "the first a letter or digit"
        )
    return name


def _canonical(ids: Sequence[str]) -> list[str]:
    """Point ids as Qdrant spells them, each once. Raises UsageError."""
    try:
        return list(dict.fromkeys(str(UUID(id_)) for id_ in ids))
    except ValueError:
        raise UsageError("a point's id is a UUID; at least one of those given is not") from None


def _updates(found: EngineCollection, points: Sequence[Point]) -> list[Point]:
    """Those points whose text stands, with what of the standing payload must stay."""
    payloads = {r.id: r.payload for r in found.retrieve([p.id for p in points], UPDATE_KEYS, False)}
    return [new for p in points if (new := updated(p, payloads.get(p.id, {}))) is not None]


def _unwritten(found: EngineCollection, points: Sequence[Point], started: int) -> list[str]:
    """Of points that were just updated, those that stand neither as written nor as a newer job's."""
    seen = {r.id: r.payload for r in found.retrieve([p.id for p in points], UPDATED_KEYS, False)}
    newer: dict[str, Point] = {}
    lost = []
    for point in points:
        payload = seen.get(point.id)
        same = payload is not None and payload.get(CONTENT_HASH) == content_hash_of(point)
        if payload is not None and started_of(payload) > started:
            # With another text it is that job's; with this one it must have these vectors, too.
            newer |= {point.id: point} if same else {}
        elif not same or (payload is not None and started_of(payload) < started):
            lost.append(point.id)
    for name in {name for point in newer.values() for name in point.vectors}:
        there = found.having([*newer], name)
        lost += [id_ for id_, point in newer.items() if name in point.vectors and id_ not in there]
    return list(dict.fromkeys(lost))
