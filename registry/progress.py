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


class Turn:
    """A lock around what one thread does at a time, a forward pass; its end is progress.

    Locks are not fair: a thread may wait for many turns of the others, and does not hang for that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with waiting():
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        beat()
        self._lock.release()
