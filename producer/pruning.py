"""`--prune`: what a collection still has of the submitted sources and the corpus has not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from producer.batching import Window
from producer.draft import PIPE_LABEL
from producer.fleet import Fleet
from producer.ids import Ids
from registry.errors import UsageError

#: Points looked at, and at most deleted, by one request.
PAGE = 5000


class Pruning:
    """Learns a whole pass over the corpus, then removes the points of its sources that were not in it.

    A point is of a source if the file it was read from (`v5.source`) is the source, or lies under it. Memory
    is bounded: the pass' ids may lie on disk, and the collection is read page by page.
    """

    def __init__(self, fleet: Fleet, collection: str, sources: Sequence[str]) -> None:
        """Raises UsageError where the sources' names cannot tell their points from those of others."""
        for source in sources:
            if source == ".":
                raise UsageError(
                    "--prune cannot tell the points of a corpus without a name (--root is the folder itself) "
                    "from those of others: choose a --root above it, or none"
                )
            if source == PIPE_LABEL:
                raise UsageError(
                    "--prune cannot tell the points of one pipe from those of another: give it a --name"
                )
        self._fleet = fleet
        self._collection = collection
        self._sources = frozenset(sources)
        self._ids = Ids()
        self._read = self._rejected = 0
        #: Points removed by all runs.
        self.deleted = 0
        #: Points met that do not say their source.
        self.unsourced = 0

    def begin(self) -> None:
        """A new pass over the corpus begins."""
        self._ids.clear()
        self._read = self._rejected = 0

    def note(self, window: Window) -> None:
        """Learn a part of the pass."""
        self._ids.add(chunk.id for chunk in window.chunks)
        self._read += len(window.chunks)
        self._rejected += sum(problem.severity == "rejected" for problem in window.problems)

    @property
    def hindrance(self) -> str:
        """Why nothing may be removed after this pass; empty if it may."""
        if not self._read:
            return "not a single chunk was read; is a disk not mounted, or a pattern too narrow?"
        if self._rejected:
            return (
                f"{self._rejected} files or records could not be read, so what they hold is not known; mend "
                "them and submit again"
            )
        return ""

    def run(self, started: int) -> int:
        """Remove what is left over and no newer than `started` (see Store); says how many points went.

        May be repeated: what is gone is not found again.
        """
        before = self.deleted
        for page in self._left_over():
            if page:
                self.deleted += self._fleet.delete(self._collection, page, started)
        return self.deleted - before

    def count(self) -> int:
        """How many points `run` would remove, were none of them newer."""
        return sum(len(page) for page in self._left_over())

    def close(self) -> None:
        """Drop what was learned."""
        self._ids.close()

    def _left_over(self) -> Iterator[list[tuple[str, str]]]:
        """Page by page, the points `(id, source)` of the sources that the pass did not have."""
        after, self.unsourced = "", 0
        while True:
            page, after = self._fleet.scroll(self._collection, after, PAGE)
            self.unsourced += sum(not source for _, source in page)
            ours = [(identity, source) for identity, source in page if self._is_ours(source)]
            there = self._ids.among(identity for identity, _ in ours)
            yield [point for point in ours if point[0] not in there]
            if not after:
                return

    def _is_ours(self, source: str) -> bool:
        """Whether a source, or a folder that it lies under, was submitted."""
        end = len(source)
        while end > 0:
            if source[:end] in self._sources:
                return True
            end = source.rfind("/", 0, end)
        return False
