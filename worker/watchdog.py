"""The watchdog: ends a process that cannot go on and would not end by itself, so that a fresh one is started.

It sees a consumer that has stopped (messages wait, nothing is taken), a step that hangs, and a main loop that
has ended while a thread holds on. A process that hangs as a whole cannot look at itself: a timer of the
interpreter, which needs no Python to run, ends it, and a supervisor hears that it is silent.
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from registry.errors import V5Error
from registry.progress import Work
from registry.settings import Settings
from worker.supervised import HEARTBEAT, STARTING, WELL

#: Seconds between two signs of life.
TICK = 1.0
#: A longer pause between two looks was not theirs: the process was stopped, or its machine slept. Seconds.
MOST_TICK = 5.0
#: The process' own timer runs out at this share of the silence its supervisor bears: it shows where it hangs.
OWN_SHARE = 0.8
#: How long threads may take to give back what they are at once the main loop has ended by itself. Seconds.
LAST_SECONDS = 30.0
#: Where stacks go, whatever Celery has made of `sys.stderr`.
STDERR = 2


class Watchdog:
    """Counts how long nothing goes on, only in time in which the process itself ran."""

    def __init__(
        self,
        settings: Settings,
        queues: Sequence[Sequence[str]],
        waiting: Callable[[str], int],
        is_well: Callable[[], bool],
        give_up: Callable[[str], None],
    ) -> None:
        """
        Parameters:
            queues: those that the process serves; together those that one consumer takes from.
            waiting: how many messages of a queue nobody has received; raises V5Error where a server that the
                consumers need is away or full, for then they do not consume.
            is_well: whether the process is ready and consumes.
            give_up: ends the process, with the reason.
        """
        self._settings = settings
        self._lanes = tuple(frozenset(lane) for lane in queues)
        self._waiting = waiting
        self._is_well = is_well
        self._give_up = give_up
        #: What tasks are at, and the queue that each was taken from.
        self._works: dict[Work, str] = {}
        #: Messages received, by queue, and as many as the last look knew of.
        self._received = dict.fromkeys((queue for lane in queues for queue in lane), 0)
        self._known = self._received.copy()
        self._were_idle: set[frozenset[str]] = set()
        #: Seconds for which messages of a queue waited and this process, idle, took none.
        self._passed_by: dict[str, float] = {}
        self._last: float | None = None
        self._supervisor = _pipe_to_supervisor()

    def start(self) -> None:
        """Watch from now on, in a thread of its own."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def working(self, what: str, queue: str) -> Iterator[None]:
        """Around a task of that queue; what it is at must go on (see `registry.progress`)."""
        work = Work(what)
        self._works[work] = queue
        try:
            with work.watched():
                yield
        finally:
            del self._works[work]

    def received(self, queue: str) -> None:
        """Note a message that the consumer received."""
        if queue in self._received:
            self._received[queue] += 1

    def ended(self) -> None:
        """The main loop has ended without having been asked: the process must be gone before long."""
        self._last = self._last or LAST_SECONDS

    def sign(self) -> None:
        """Give a sign of life: to the process' own timer, and to its supervisor."""
        well = self._is_well()
        bound = self._settings.silent_seconds * OWN_SHARE if well else self._settings.hang_seconds
        # The timer's clock goes on while the process is stopped; a supervisor's does not count that, so where
        # there is one, it is the one that kills.
        faulthandler.dump_traceback_later(bound, exit=self._supervisor is None, file=STDERR)
        if self._supervisor is not None:
            # One that does not listen, or is gone, is no matter here.
            with suppress(OSError):
                os.write(self._supervisor, WELL if well else STARTING)

    def tick(self, seconds: float) -> None:
        """Count `seconds` of silence against every step at work."""
        works = tuple(self._works)
        # Where all wait, they wait for each other.
        deadlock = all(work.waits for work in works)
        for work in works:
            if deadlock or not work.waits:
                work.silent += seconds
            if work.silent > self._settings.hang_seconds:
                self._end(
                    f"{work.what} has made no progress for {work.silent:.0f} s (V5_HANG_SECONDS); the stacks "
                    "of all threads stand above"
                )
        if self._last is not None:
            self._last -= seconds
            if self._last <= 0:
                self._end("its main loop has ended, and a thread holds on")

    def look(self, seconds: float) -> None:
        """Look whether messages wait that this process should have taken in the last `seconds`.

        A consumer with nothing to do is given what comes within a second. What others leave in its queues
        while it is busy says nothing.
        """
        received = self._received.copy()
        taken = {queue for queue in received if received[queue] != self._known[queue]}
        self._known = received
        busy = taken.union(tuple(self._works.values()))
        idle = {lane for lane in self._lanes if self._is_well() and not lane & busy}
        stay_idle = frozenset().union(*(idle & self._were_idle))
        self._were_idle = idle
        try:
            waiting = {queue for queue in received if self._waiting(queue)}
        except V5Error:
            waiting = set()
        for queue in received:
            if queue not in waiting or queue in taken:
                self._passed_by.pop(queue, None)
            elif queue not in self._passed_by:
                self._passed_by[queue] = 0.0
            elif queue in stay_idle:
                self._passed_by[queue] += seconds
                if self._passed_by[queue] > self._settings.stuck_seconds:
                    self._end(
                        f"idle, it has taken nothing of {queue} for {self._passed_by[queue]:.0f} s, though "
                        "messages wait there (V5_STUCK_SECONDS): its consumer has stopped"
                    )

    def _watch(self) -> None:
        before = time.monotonic()
        while True:
            self.sign()
            time.sleep(TICK)
            now = time.monotonic()
            self.tick(min(now - before, MOST_TICK))
            before = now

    def _end(self, reason: str) -> None:
        faulthandler.dump_traceback(all_threads=True, file=STDERR)
        self._give_up(reason)


def _pipe_to_supervisor() -> int | None:
    """The pipe on which the supervisor listens; None without one. Our own children do not inherit it."""
    given = os.environ.pop(HEARTBEAT, "")
    if not given:
        return None
    try:
        os.set_inheritable(int(given), False)
        os.set_blocking(int(given), False)
    except (OSError, ValueError):
        return None
    return int(given)
