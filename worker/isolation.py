"""Finding the chunk that ends its worker: its batch goes through chunk by chunk, each named before it runs.

A process that is killed, crashes or hangs says nothing. Where an attempt at a batch vanished so, the next one
takes one chunk at a time, alone in its process, and names it in the ledger while it is at it: the chunk that
is named when the process ends gets a strike. Chunks with a strike go first, each right after a text that
every encoder can take, and one with MOST_STRIKES is rejected without being run.

So one such chunk ends `1 + MOST_STRIKES` processes, each further one of the same batch MOST_STRIKES. One that
hangs costs as many times V5_HANG_SECONDS: while a chunk is named, a thread keeps the lease for as long as the
process lives, so that a slow chunk gets no strike and one that hangs holds up one process at a time.

What else may end a process while a chunk is named? Anything: a kill of the whole fleet, a machine that loses
power. Whatever it is, it strikes one chunk once, and that chunk's next pass comes first of all. An innocent
chunk dies only if the next thing of that kind falls into just that pass, of `d` seconds: where a process is
ended once in `t` seconds, with probability `d / t` (a pass of 50 ms, a kill every hour: 1.4e-5), and only in
a batch that was worked on singly when it was struck. Who turns out to live has no strike held against what he
was at: one that was stopped, or could not reach the ledger, withdraws it with his first word, and one that
stops when asked leaves none.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ledger.steps import Steps, Taken
from registry.errors import DeviceFailed, InfrastructureError
from registry.progress import waiting
from worker.edge import Abandoned
from worker.encoders.encode import Singly

log = logging.getLogger(__name__)

#: A chunk that ended so many processes, alone, is not run again.
MOST_STRIKES = 2


class Gate:
    """Many share it, or one has it alone; whoever comes first goes first, so that nobody waits for ever."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self._sharing = 0
        self._taken = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Together with all others that share it."""
        self._enter(alone=False)
        try:
            yield
        finally:
            self._leave(alone=False)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """With nobody else."""
        self._enter(alone=True)
        try:
            yield
        finally:
            self._leave(alone=True)

    def step_aside(self) -> None:
        """By one who shares it: let those go first who wait."""
        if self._waiting:
            self._leave(alone=False)
            self._enter(alone=False)

    def _enter(self, *, alone: bool) -> None:
        mine = object()
        with waiting(), self._changed:
            self._waiting.append(mine)
            self._changed.wait_for(
                lambda: self._waiting[0] is mine and not self._taken and not (alone and self._sharing)
            )
            self._waiting.popleft()
            self._taken = alone
            self._sharing += not alone
            self._changed.notify_all()

    def _leave(self, *, alone: bool) -> None:
        with self._changed:
            if alone:
                self._taken = False
            else:
                self._sharing -= 1
            self._changed.notify_all()


class Isolation:
    """One per worker: everything that takes texts to its encoder goes through `gate`."""

    def __init__(self, steps: Steps, lease_seconds: float, stopping: threading.Event) -> None:
        """`stopping` is set once the process is asked to stop."""
        self.gate = Gate()
        self._stopping = stopping
        self._steps = steps
        self._every = lease_seconds / 4
        #: Attempts that ended while the ledger was away and may stand there with a chunk named.
        self._unsaid: deque[Taken] = deque()

    def say(self) -> None:
        """Before another step is taken: withdraw what could not be withdrawn while the ledger was away."""
        while self._unsaid:
            try:
                taken = self._unsaid.popleft()
            except IndexError:
                return
            try:
                self._steps.defer(taken, 0.0)
            except (InfrastructureError, MemoryError):
                self._unsaid.append(taken)
                return

    @contextmanager
    def singly(self, taken: Taken, count: int, probe: Callable[[], object]) -> Iterator[Singly]:
        """How the batch's `count` chunks are to go through `encode`; its lease is kept meanwhile.

        `probe` takes a text to the encoder that is known to be good, and raises if that fails.
        Raises Abandoned once another has the lease, or the work is not wanted any more.
        """
        strikes = taken.strikes
        refused = {
            row: f"it ended its worker {struck} times, "
            "alone (it was killed, crashed or hung, or the device failed)"
            for row, struck in sorted(strikes.items())
            if struck >= MOST_STRIKES
        }
        order = sorted(set(range(count)) - refused.keys(), key=lambda row: (-strikes.get(row, 0), row))
        log.warning(
            "an attempt at %s of batch %s vanished: its chunks go one at a time, %d of them suspected and %d "
            "rejected",
            taken.step, taken.batch, len(strikes) - len(refused), len(refused),
        )  # fmt: skip

        @contextmanager
        def around(row: int) -> Iterator[None]:
            with self.gate.alone():
                if row == order[0] or row in strikes:
                    probe()
                with self._named(taken, row):
                    yield

        over = threading.Event()
        keeper = threading.Thread(target=self._keep, args=(taken, over), name="lease", daemon=True)
        keeper.start()
        try:
            yield Singly(order, around, refused)
        finally:
            over.set()
            # Its last word must not come after ours.
            keeper.join()

    @contextmanager
    def _named(self, taken: Taken, row: int) -> Iterator[None]:
        ended = False
        try:
            # Whoever has the lease now works singly, too, and keeps it: one of the two is enough.
            if self._steps.name(taken, row) != "kept":
                raise Abandoned
            yield
        except DeviceFailed:
            # The process ends with the chunk named, as if killed; the device had taken the probe.
            ended = True
            raise
        finally:
            if not ended:
                try:
                    self._steps.name(taken, None)
                except InfrastructureError:
                    self._unsaid.append(taken)
                    raise

    def _keep(self, taken: Taken, over: threading.Event) -> None:
        while not over.wait(self._every):
            try:
                # Asked to stop, it may be killed because its pass is a long one: that blames no chunk.
                if self._stopping.is_set():
                    self._steps.name(taken, None)
                else:
                    self._steps.renew(taken)
            except InfrastructureError as error:
                log.warning("the lease of %s of %s is not renewed: %s", taken.step, taken.batch, error)
