"""How fast a worker is: tokens and chunks per second of the time in which it has work."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from ledger.rates import Rate
from registry.codecs import Part
from registry.errors import InfrastructureError
from worker.counters import Stopwatch

log = logging.getLogger(__name__)

#: Work this long ago counts half. Seconds of work.
HALF_LIFE = 60.0
#: A rate is passed on this often at most. Seconds.
NOTE_EVERY = 2.0


class Pace:
    """Measures over all threads of a worker: the time in which at least one of them encodes.

    A batch's own duration would not do, for while it waits for the device another one has it.
    """

    def __init__(self, note: Callable[[Rate], None], clock: Callable[[], float] = time.monotonic) -> None:
        """`note` passes a rate on; where it raises InfrastructureError, nobody learns of that rate."""
        self._note = note
        self._clock = clock
        self._lock = threading.Lock()
        self._watch = Stopwatch(clock)
        self._seconds = self._tokens = self._chunks = 0.0
        self._bytes = self._seen = 0.0
        self._noted: float | None = None

    def working(self) -> AbstractContextManager[None]:
        """Around the encoding of a batch."""
        return self._watch.running()

    def finished(self, texts: Sequence[str], part: Part) -> None:
        """Count a batch, and pass the rate on if it is time."""
        with self._lock:
            # What no finished batch accounts for yet.
            seconds = self._watch.take()
            kept = 0.5 ** (seconds / HALF_LIFE)
            self._seconds = self._seconds * kept + seconds
            self._tokens = self._tokens * kept + float(part.tokens_kept.sum())
            self._chunks = self._chunks * kept + len(texts)
            self._bytes = self._bytes * kept + sum(len(text.encode()) for text in texts)
            self._seen = self._seen * kept + float(part.tokens_seen.sum())
            rate = self._due()
        if rate is None:
            return
        try:
            self._note(rate)
        except InfrastructureError as error:
            log.debug("the rate was not noted: %s", error)

    def _due(self) -> Rate | None:
        now = self._clock()
        if self._noted is not None and now - self._noted < NOTE_EVERY:
            return None
        if not (self._seconds and self._tokens and self._seen):
            return None
        self._noted = now
        return Rate(
            tokens_per_second=round(self._tokens / self._seconds, 1),
            chunks_per_second=round(self._chunks / self._seconds, 2),
            bytes_per_token=round(self._bytes / self._seen, 3),
            at=round(time.time(), 1),
        )
