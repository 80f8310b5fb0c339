"""What a worker has done since it started, counted over all its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """The time in which at least one thread is at something. Seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._active = 0
        self._since = 0.0
        self._seconds = self._taken = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around what one thread is at."""
        self._settle(+1)
        try:
            yield
        finally:
            self._settle(-1)

    @property
    def seconds(self) -> float:
        """All of it until now."""
        self._settle(0)
        return self._seconds

    def take(self) -> float:
        """What of it nobody has taken yet: each moment is taken once, however many threads shared it."""
        self._settle(0)
        with self._lock:
            taken, self._taken = self._seconds - self._taken, self._seconds
        return taken

    def _settle(self, change: int) -> None:
        with self._lock:
            now = self._clock()
            if self._active:
                self._seconds += now - self._since
            self._since = now
            self._active += change


class Counters:
    """Totals of one worker; what is idle, warming up or checking itself does not count."""

    def __init__(self) -> None:
        #: While a forward pass is on the device.
        self.device = Stopwatch()
        #: While there is a step to do, from its lease to its record.
        self.work = Stopwatch()
        self._lock = threading.Lock()
        self._totals: dict[str, float] = {}

    def add(self, **amounts: float) -> None:
        """Add to totals by name."""
        with self._lock:
            for name, amount in amounts.items():
                self._totals[name] = self._totals.get(name, 0) + amount

    def totals(self) -> dict[str, float]:
        """All of them, and the seconds of both stopwatches."""
        with self._lock:
            found = dict(self._totals)
        found |= {"busy_seconds": self.device.seconds, "working_seconds": self.work.seconds}
        return {name: round(amount, 3) for name, amount in found.items()}
