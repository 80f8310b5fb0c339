"""What an engine must bring to be a store: plain reads and conditional writes of one collection."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from registry.plan import Plan
from store.base import Point, Vector
from store.binding import Binding
from store.bulk import IndexState


@dataclass(frozen=True)
class Record:
    """A point as the engine returned it: as much of payload and vectors as was asked for."""

    id: str
    payload: dict[str, Any]
    vectors: dict[str, Vector]


class Writer(Protocol):
    """Conditional writes; nothing is written over a point whose `v5.started` is newer than `started`.

    What was written is durable when the `writing()` that gave the writer ends.
    """

    def upsert(self, points: Sequence[Point], started: int) -> None:
        """Write whole points."""
        ...

    def update_vectors(self, points: Sequence[Point], started: int) -> None:
        """Write vectors, then payloads, of points that stand with the same text."""
        ...

    def update_payload(self, points: Sequence[Point], started: int) -> None:
        """Replace the payloads of points that stand with the same text."""
        ...

    def delete(self, ids: Sequence[str], sources: Sequence[str], started: int) -> None:
        """Remove those of the points that stand with one of the sources."""
        ...


class EngineCollection(Protocol):
    """One collection. Any thread may call any method; errors are the store's (StoreUnavailable, …)."""

    name: str

    @property
    def binding(self) -> Binding:
        """The plan and the vectors of this collection."""
        ...

    @property
    def points(self) -> int:
        """How many points stand."""
        ...

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted about it, JSON values by key."""
        ...

    def note(self, key: str, value: Any) -> None:
        """Note one fact, or with None remove it; the other keys stay."""
        ...

    def index_state(self) -> IndexState:
        """How far its indexes are, and its notes."""
        ...

    def set_threshold(self, kilobytes: int | None) -> None:
        """Set from which size on the engine indexes a segment by itself, if it does; 0: none."""
        ...

    def extend(self, plan: Plan) -> None:
        """Add the plan's vectors that are not there. Raises SpaceMismatch before it changes anything."""
        ...

    def require_renewable(self, binding: Binding) -> None:
        """Raise UsageError where the collection's vectors cannot be made those of the binding."""
        ...

    def leave(self, binding: Binding) -> None:
        """Record a binding that a migration is under way from."""
        ...

    def clear(self, vectors: Sequence[str], since: int, most: int) -> bool:
        """Take up to `most` points that are older than `since` a step towards having none of the vectors,
        and to where no job that began before `since` can write over them; returns whether there were any."""
        ...

    def arrive(self, binding: Binding, vectors: Sequence[str], forget: Sequence[str]) -> None:
        """Record the binding that a migration of these vectors led to, with vectors of its shapes and
        without the notes of these keys. Nothing of its space was written under their names."""
        ...

    def having_count(self, name: str) -> int:
        """How many points have that named vector."""
        ...

    def retrieve(
        self, ids: Sequence[str], keys: Sequence[str] | None, vectors: bool | list[str]
    ) -> list[Record]:
        """Those of the points that stand, with these payload paths (None: the whole payload), and all their
        vectors, none, or those of these names."""
        ...

    def having(self, ids: Sequence[str], name: str) -> set[str]:
        """Those of the points that have that named vector."""
        ...

    def page(self, after: str, limit: int, keys: Sequence[str]) -> tuple[list[Record], str]:
        """All points by id, page by page, with these payload paths; see Store.scroll."""
        ...

    def nearest(self, queries: dict[str, Vector], limit: int, prefetch: int) -> Iterable[tuple[str, float]]:
        """Ids and scores: the `limit` nearest by one vector, or all candidates of several, fused and not
        yet cut (see store.fusion)."""
        ...

    def reading(self) -> AbstractContextManager[object]:
        """Several reads that see one state, where the engine can."""
        ...

    def writing(self) -> AbstractContextManager[Writer]:
        """Writes that no other writer of this process comes between, where that matters."""
        ...
