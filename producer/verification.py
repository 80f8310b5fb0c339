"""A verification: a corpus held against a collection, chunk by chunk and vector by vector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from producer.batching import windows
from producer.corpus import Corpus
from producer.fleet import Fleet

#: `missing`: does not stand, or lacks a vector; `stale`: stands with another text or payload; `unreadable`:
#: the corpus could not give it.
Kind = Literal["missing", "stale", "unreadable"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be."""

    kind: Kind
    #: The chunk's id; empty for what is unreadable.
    id: str
    where: str
    #: Named vectors that a standing point lacks.
    lacking: tuple[str, ...] = ()


@dataclass
class Counts:
    """What was found so far; `expected` = `present` + `missing` + `stale`."""

    expected: int = 0
    present: int = 0
    missing: int = 0
    stale: int = 0
    unreadable: int = 0

    @property
    def whole(self) -> bool:
        """Everything that could be read stands as it should."""
        return not (self.missing or self.stale)

    def as_json(self) -> dict[str, int]:
        """The numbers."""
        return asdict(self)


def findings(
    fleet: Fleet, corpus: Corpus, collection: str, names: Sequence[str], counts: Counts
) -> Iterator[Finding]:
    """Everything that is not as it should be, in the corpus' order; `counts` is kept on the way.

    A point should have the vectors `names`. Raises what the fleet answers with.
    """
    for window in windows(corpus.items(), fleet.settings):
        for problem in window.problems:
            if problem.severity == "rejected":
                counts.unreadable += 1
                yield Finding("unreadable", "", f"{problem.where}: {problem.reason}")
        counts.expected += len(window.chunks)
        rows = [(chunk.id, chunk.content_hash, chunk.payload_hash) for chunk in window.chunks]
        verdicts = fleet.compare(collection, names, rows) if rows else []
        for chunk, (verdict, *lacking) in zip(window.chunks, verdicts, strict=True):
            if verdict == "same":
                counts.present += 1
            elif verdict in ("absent", "lacking"):
                counts.missing += 1
                yield Finding("missing", chunk.id, chunk.where, tuple(lacking[0]) if lacking else ())
            else:
                counts.stale += 1
                yield Finding("stale", chunk.id, chunk.where)
