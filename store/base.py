"""The store's one interface. Embedded or served, the rest of the fleet sees only this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from registry.plan import Plan
from store.binding import Binding, Change
from store.bulk import BulkLoad, Indexing

DenseVector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class SparseVector:
    """Token ids and their weights, equal lengths."""

    indices: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


#: `[d]` dense, `[tokens, d]` multi-vector, or sparse.
Vector = DenseVector | SparseVector


@dataclass(frozen=True)
class Point:
    """A chunk with vectors, ready to be written; `payload` is complete (see store.points)."""

    id: str
    vectors: dict[str, Vector]
    payload: dict[str, Any]


@dataclass(frozen=True)
class Standing:
    """What the collection holds of one point: its hashes and which named vectors it has."""

    content_hash: str
    payload_hash: str
    vectors: frozenset[str]


@dataclass(frozen=True)
class Hit:
    """One result of a query, best first; `score` is a similarity, or the fused reciprocal-rank score."""

    id: str
    score: float
    payload: dict[str, Any]


@dataclass(frozen=True)
class StoredPoint:
    """A point as it stands; `vectors` is empty unless asked for."""

    id: str
    payload: dict[str, Any]
    vectors: dict[str, Vector]


@dataclass(frozen=True)
class Sourced:
    """A point and the corpus file it was read from, as its label; empty if the point does not say."""

    id: str
    source: str


@dataclass(frozen=True)
class CollectionInfo:
    """A collection: its plan, and how many points it has."""

    name: str
    plan: Plan
    points: int


class Store(Protocol):
    """Collections of points with named vectors.

    Every method may raise StoreUnavailable (try again later) or StoreRefused (never). All writes are durable
    when they return, idempotent, and conditional: nothing is written over a point whose `v5.started` is
    newer than the one offered. Writes and queries of a vector that is being migrated raise SpaceMismatch, as
    do writes of a job older than the vector's migration.
    """

    def connect(self) -> None:
        """Make sure that the store can be used at all.

        Raises StoreUnavailable if not now, and StoreUnfit if not until somebody mends it.
        """
        ...

    def open(self, collection: str, plan: Plan) -> CollectionInfo:
        """Create the collection for the plan, or check that it fits.

        A standing collection may lack vectors of the plan: they are added. It may have more. A vector name
        bound to another space raises SpaceMismatch, naming both sides.
        """
        ...

    def describe(self, collection: str) -> CollectionInfo:
        """The collection's plan and size. Raises UsageError, naming those there are, if it does not exist."""
        ...

    def plan(self, collection: str) -> Plan:
        """The collection's plan. Raises as `describe`, which also counts."""
        ...

    def binding(self, collection: str) -> Binding:
        """What the collection's vectors were made with, which a newer program's plan may not say any more.
        Raises as `describe`."""
        ...

    def changes(self, collection: str, plan: Plan) -> list[Change]:
        """The vectors that `migrate` would remove; empty if the plan fits, or there is no such collection.

        Raises UsageError where the collection cannot be migrated to the plan.
        """
        ...

    def migrate(self, collection: str, plan: Plan, started: int, forget: Sequence[str] = ()) -> bool:
        """Remove the vectors that stand in other spaces than the plan's, and bind their names to these.

        `started` is the start of the job that will write the new ones: what older jobs still write there is
        refused, or left out of every answer. Notes of the keys `forget` go with the former vectors. Works
        for some seconds and returns whether it is done; called again, also after a crash, it goes on. In
        between the vectors can be neither searched nor written. Raises as `changes`.
        """
        ...

    def lacking(self, collection: str, names: Sequence[str]) -> dict[str, int]:
        """How many points lack each of the named vectors."""
        ...

    def collections(self) -> list[str]:
        """The names of all collections, sorted."""
        ...

    def notes(self, collection: str) -> dict[str, Any]:
        """What was noted about the collection, JSON values by key. Raises as `describe`."""
        ...

    def note(self, collection: str, key: str, value: Any) -> None:
        """Note one fact under a key of its own, replacing what stood there (None removes it); notes of other
        keys stay, whoever writes them meanwhile. Raises as `describe`."""
        ...

    def standing(self, collection: str, ids: Sequence[str]) -> dict[str, Standing]:
        """What stands for each id; absent ids are left out. Vectors are looked for, not believed."""
        ...

    def upsert(self, collection: str, points: Sequence[Point], started: int) -> None:
        """Write whole points, replacing what stands unless it is newer than `started`."""
        ...

    def update_vectors(self, collection: str, points: Sequence[Point], started: int) -> list[str]:
        """Add or replace vectors of standing points of the same content hash, keep their others; then write
        the payload. Points that do not stand, or stand with another text, are left alone.

        Returns the ids of those that are not as they should be afterwards: neither written nor a newer
        job's, which may have given them another text or these very vectors.
        """
        ...

    def update_payload(self, collection: str, points: Sequence[Point], started: int) -> list[str]:
        """Replace the payload of standing points of the same content hash, keep all vectors. Returns as
        `update_vectors`."""
        ...

    def query(self, collection: str, queries: dict[str, Vector], limit: int, prefetch: int = 0) -> list[Hit]:
        """The best `limit` points: by one named vector's similarity, or, for several, by reciprocal rank
        fusion over `prefetch` candidates of each (default: at least 100, and four times the limit)."""
        ...

    def get(
        self, collection: str, ids: Sequence[str], with_vectors: bool | Sequence[str]
    ) -> list[StoredPoint]:
        """The points with these ids, in this order, with all their vectors, none, or those of these names;
        absent ones are left out. Written again, a vector that was read stands as it stood."""
        ...

    def scroll(self, collection: str, after: str, limit: int) -> tuple[list[Sourced], str]:
        """A page of all points by id, and what to pass as `after` for the next one; empty: begin, or end.

        A point that stands from the first page to the last is on exactly one of them.
        """
        ...

    def delete(self, collection: str, points: Sequence[Sourced], started: int) -> int:
        """Remove the points that are no newer than `started` and still of one of the sources given; says how
        many stood before and do not any more."""
        ...

    def maintain(self, collection: str) -> bool:
        """Do what makes queries faster over what was written (build indexes); returns whether it did.

        For idle times: it may take minutes. Reads go on meanwhile, and a write ends it. Nothing is done while
        a job loads in bulk.
        """
        ...

    def begin_bulk(self, collection: str, job: str, since: int) -> None:
        """Have no index built while the job loads, which searches make up for by comparing with every vector.

        `since` is now, in Unix milliseconds. Called again changes nothing. What stood before is noted first;
        `settle_bulk` restores it, also after a crash of this call. Raises as `describe`.
        """
        ...

    def settle_bulk(self, collection: str, wanted: Callable[[str], bool]) -> Sequence[BulkLoad]:
        """Have indexes built as before once none of the jobs that began a bulk load is `wanted` any more, and
        forget these jobs, last; returns those that are. Called again changes nothing. Raises as `describe`,
        and what `wanted` raises, before it changes anything."""
        ...

    def indexing(self, collection: str, begin: bool) -> Indexing:
        """How far the collection's indexes are. With `begin`, what is lacking is begun to be built where the
        engine would put it off; returns at once. Raises as `describe`."""
        ...

    def close(self) -> None:
        """Flush and let go; the store cannot be used afterwards."""
        ...
