"""The edge of the task: the one place where a step's failures are told apart.

Celery acknowledges a message on any exception, and a `MemoryError` that leaves a task leaks its slot for
good, so nothing leaves from here but words.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

from ledger.doorbell import Doorbell
from ledger.ledger import Ledger
from ledger.steps import Refused, Taken
from registry.errors import (
    BlobLost,
    CodecError,
    DeviceFailed,
    InfrastructureError,
    SpaceMismatch,
    StoreRefused,
    UsageError,
)
from registry.messages import Ring
from worker.encoders.encode import Stopped

log = logging.getLogger(__name__)

#: First wait after an infrastructure failure; doubles with every try. Seconds.
BACKOFF = 1.0
#: Longest wait between tries. Seconds.
MOST_BACKOFF = 30.0
#: So many unexpected failures in a row, and the process cannot go on: a fresh one is better.
MOST_UNEXPECTED = 5


class Abandoned(Exception):
    """What is being done is not wanted any more: recorded by another, or its batch has ended."""


def backoff(tries: int) -> float:
    """Seconds to wait after the given number of tries."""
    return min(BACKOFF * 2.0 ** min(tries - 1, 16), MOST_BACKOFF)


class Edge:
    """Runs steps; turns every outcome into a move in the ledger and a word for the log."""

    def __init__(self, ledger: Ledger, doorbell: Doorbell, give_up: Callable[[str], None]) -> None:
        """`give_up(reason)` ends the process: after too many unexpected failures, or with its device."""
        self._ledger = ledger
        self._doorbell = doorbell
        self._give_up = give_up
        self._unexpected = 0
        #: Outcomes since the start, for metrics and tests.
        self.outcomes: Counter[str] = Counter()

    def run(self, arguments: dict[str, Any], work: Callable[[Taken], str]) -> str:
        """Run the step a doorbell names, if it is due; never raises. Returns what became of it."""
        try:
            ring = Ring.read(arguments)
        except CodecError as error:
            log.error("refused a message: %s", error)
            return self._count("refused")
        return self.step(ring.batch, ring.step, work)

    def step(self, batch: str, step: str, work: Callable[[Taken], str]) -> str:
        """Take a step and work on it; never raises."""
        taken: Taken | None = None
        try:
            found = self._ledger.steps.take(batch, step)
            if isinstance(found, Refused):
                return self._count(found.why)
            taken = found
            outcome = work(taken)
            self._unexpected = 0
            return self._count(outcome)
        except Abandoned:
            return self._count("abandoned")
        except Stopped:
            self._defer(taken, 0.0)
            self._doorbell.ring(batch, step)
            return self._count("given back")
        except BlobLost as error:
            return self._count(self._drop(batch, error))
        except (SpaceMismatch, StoreRefused, UsageError) as error:
            # Between the job and its collection, or what this worker serves: nothing is held against a chunk.
            log.error("%s", error)
            self._defer(taken, MOST_BACKOFF)
            return self._count("wrong space")
        except DeviceFailed as error:
            # Without a word, as a crash: if a text did it, the attempts to come find out which.
            self._give_up(str(error))
            return self._count("device failed")
        except (InfrastructureError, MemoryError) as error:
            delay = backoff(taken.tries if taken else 1)
            log.warning("step %s of %s waits %.0f s: %s", step, batch, delay, error or "out of memory")
            self._defer(taken, delay)
            return self._count("deferred")
        except Exception:
            log.exception("step %s of %s failed unexpectedly", step, batch)
            self._defer(taken, backoff(taken.tries if taken else 1))
            self._unexpected += 1
            if self._unexpected >= MOST_UNEXPECTED:
                self._give_up(f"{self._unexpected} unexpected failures in a row")
            return self._count("failed")

    def _count(self, outcome: str) -> str:
        self.outcomes[outcome] += 1
        return outcome

    def _defer(self, taken: Taken | None, delay: float) -> None:
        """Give the lease back; where the ledger is away too, the lease runs out by itself."""
        if taken is None:
            return
        try:
            self._ledger.steps.defer(taken, delay)
        except InfrastructureError as error:
            log.warning("could not give back %s of %s: %s", taken.step, taken.batch, error)

    def _drop(self, batch: str, why: BlobLost) -> str:
        try:
            if not self._ledger.jobs.drop(batch):
                return "closed"
        except InfrastructureError as error:
            log.warning("could not drop %s: %s", batch, error)
            return "deferred"
        log.error("%s: batch %s is dropped; its producer stages it anew", why, batch)
        return "dropped"
