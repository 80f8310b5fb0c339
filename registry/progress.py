"""Progress of the work in each thread: whoever works says that it goes on, and a watchdog counts the silence.

Where nobody watches, saying so does nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_here = threading.local()


@dataclass(eq=False)
class Work:
    """What one thread is at."""

    what: str
    #: Since its last progress, as whoever watches counted it. Seconds.
    silent: float = 0.0
    #: True while it waits for its turn: whoever has the turn is held to go on, not this one.
    waits: bool = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around the work, in its thread."""
        _here.work = self
        try:
            yield
        finally:
            _here.work = None


def beat() -> None:
    """Say that this thread's work goes on."""
    work: Work | None = getattr(_here, "work", None)
    if work is not None:
        work.silent = 0.0


@contextmanager
def waiting() -> Iterator[None]:
    """Around waiting for one's turn, which is progress once it has come."""
    work: Work | None = getattr(_here, "work", None)
    if work is None:
        yield
        return
    work.waits = True
    try:
        yield
    finally:
        work.silent, work.waits = 0.0, False


#: So many turns in a row go to those who are to go first while another waits: with leases to keep, nobody may
#: wait for ever.
MOST_IN_A_ROW = 8


class Turn:
    """A lock around what one thread does at a time, a forward pass; its end is progress. Whoever has it may
    take it again.

    Whoever waits `with turn.first` is next, before those who wait `with turn`. Among equals it is not fair: a
    thread may wait for many turns of the others, and does not hang for that.
    """

    def __init__(self) -> None:
        self.first = _First(self)
        self._changed = threading.Condition()
        #: The thread that has it, and how often it took it.
        self._owner = 0
        self._times = 0
        #: Who waits: those who are to go first, and the others.
        self._waiting = {True: 0, False: 0}
        self._in_a_row = 0

    def __enter__(self) -> None:
        self.take(first=False)

    def __exit__(self, *_: object) -> None:
        self.give()

    def take(self, *, first: bool) -> None:
        """Wait for the turn."""
        me = threading.get_ident()
        if self._owner != me:
            with waiting(), self._changed:
                self._waiting[first] += 1
                try:
                    self._changed.wait_for(lambda: not self._owner and self._is_next(first))
                finally:
                    self._waiting[first] -= 1
                self._owner = me
                self._in_a_row = self._in_a_row + 1 if first else 0
        self._times += 1

    def give(self) -> None:
        """Give it back."""
        beat()
        self._times -= 1
        if not self._times:
            with self._changed:
                self._owner = 0
                self._changed.notify_all()

    def _is_next(self, first: bool) -> bool:
        enough = self._in_a_row >= MOST_IN_A_ROW
        return not self._waiting[not first] or first != enough


class _First:
    """The turn, for those who are to go first."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn

    def __enter__(self) -> None:
        self._turn.take(first=True)

    def __exit__(self, *_: object) -> None:
        self._turn.give()
