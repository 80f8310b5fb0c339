"""Bulk loading: a collection's indexes wait until the jobs that load much into it have ended.

Each such job has a note of its own beside the collection, written before anything changes and removed after
all is as it was, and each note says what stood before the first of them. So whoever dies in between, any
later look at the notes finishes what was begun, and aggregators overwrite nothing of each other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

#: Followed by the job.
NOTE = "bulk/"

#: Qdrant's words: all is built; it is being built; it is put off, after a server's restart until something
#: changes, by the embedded store until the fleet is idle; it failed.
IndexStatus = Literal["green", "yellow", "grey", "red"]


@dataclass(frozen=True)
class BulkLoad:
    """A job for which a collection's indexes wait."""

    job: str
    #: Milliseconds since the epoch.
    since: int
    #: The engine's indexing threshold before the first such job. Kilobytes; None: the engine's default.
    former: int | None


@dataclass(frozen=True)
class IndexState:
    """What an engine says of a collection's indexes, and the collection's notes, all of one moment."""

    #: Vectors of a segment beyond which it is indexed. Kilobytes; 0: never; None: the engine's default.
    threshold: int | None
    status: IndexStatus
    #: Why it failed, in the engine's words.
    failure: str
    #: Vectors in built indexes, and how many there are at most.
    indexed: int
    vectors: int
    notes: Mapping[str, Any]


@dataclass(frozen=True)
class Indexing:
    """How far a collection's indexes are; while `loads` is not empty none is built."""

    status: IndexStatus
    failure: str
    #: Vectors in built indexes, and how many there are at most. Those of small segments need none.
    indexed: int
    vectors: int
    loads: tuple[BulkLoad, ...]


def bulk_loads(notes: Mapping[str, Any]) -> tuple[BulkLoad, ...]:
    """The jobs in a collection's notes for which its indexes wait, the first one first."""
    found = [
        BulkLoad(key.removeprefix(NOTE), int(note["since"]), note["former"])
        for key, note in notes.items()
        if key.startswith(NOTE)
    ]
    return tuple(sorted(found, key=lambda load: (load.since, load.job)))
