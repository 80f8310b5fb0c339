"""A retry: the dead letters of a job, and what of a corpus they are about."""

from __future__ import annotations

import re
from collections.abc import Iterable

from ledger.jobs import DeadLetter
from producer.problem import Problem
from registry.chunks import Chunk

#: What `producer.draft.place` puts behind a file's name.
_ORDINAL = re.compile(r"(:[0-9]+|\[[0-9]+\])$")


class Retry:
    """Picks from a pass over a corpus what the letters are about, and remembers what it met.

    A letter of reading has no chunk: it stands for everything of the file (or folder) where it was met.
    """

    def __init__(self, letters: Iterable[DeadLetter]) -> None:
        self._chunks: set[str] = set()
        #: Places of letters of reading, by the letter's id.
        self._places: dict[str, tuple[str, ...]] = {}
        for letter in letters:
            if letter.stage == "read":
                # A file's name may itself end like a place in it.
                self._places[letter.id] = (letter.where, _ORDINAL.sub("", letter.where))
            else:
                self._chunks.add(letter.id)
        self._wanted_places = {place for places in self._places.values() for place in places}
        self._met: set[str] = set()
        self._met_places: set[str] = set()

    def has(self, item: Chunk | Problem) -> bool:
        """Whether an item of the corpus is to be tried again."""
        if isinstance(item, Problem):
            # Not by its letter: lines move when a file is mended.
            return bool(self._wanted_places & _within(_ORDINAL.sub("", item.where)))
        places = self._wanted_places.intersection(_within(item.source))
        self._met_places |= places
        if item.id in self._chunks:
            self._met.add(item.id)
            return True
        return bool(places)

    def gone_through(self, dead: set[str]) -> list[str]:
        """Letters that a complete pass met and that are not on the list `dead` of the new job."""
        read = (id_ for id_, places in self._places.items() if not self._met_places.isdisjoint(places))
        return sorted(({*self._met, *read}) - dead)


def _within(source: str) -> set[str]:
    """A file's label and those of the folders that it lies in."""
    parts = source.split("/")
    return {"/".join(parts[:count]) for count in range(1, len(parts) + 1)}
