"""A process of the fleet: a Celery worker on the threads pool, announced in the ledger while it lives."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NoReturn

from celery import bootsteps, signals
from celery.exceptions import SecurityWarning

from ledger.alive import Condition, Process
from ledger.doorbell import Doorbell
from ledger.ledger import Ledger
from registry.celery_app import make_app
from registry.envelopes import RefusedMessage
from registry.errors import InfrastructureError, LedgerFull, V5Error
from registry.processes import spare_what_stands
from registry.settings import Settings
from worker import lanes
from worker.edge import Edge
from worker.supervised import EXIT_CONFIG, EXIT_GAVE_UP
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)

#: Ending the process takes no longer than this, whatever holds the log. Seconds.
FAREWELL = 10.0


class FleetProcess:
    """Base of the worker and the aggregator: `prepare` runs before anything is consumed."""

    #: Threads that work at once on what its queues bring.
    threads: ClassVar[int] = 2
    #: Further threads for requests, where those have queues of their own.
    answering: ClassVar[int] = 2

    def __init__(
        self, settings: Settings, process: Process, queues: list[str], requests: Sequence[str] = ()
    ) -> None:
        """`requests`: queues whose messages wait for nothing that the others bring (see `worker.lanes`)."""
        self.settings = settings
        self.process = process
        self.queues = queues
        self._requests = tuple(requests)
        #: By task: the queue that it is taken from.
        self._queue_of: dict[str, str] = {}
        self.ledger = Ledger(settings)
        self.app = make_app(settings, self._refused)
        self.doorbell = Doorbell(self.app, settings)
        self.edge = Edge(self.ledger, self.doorbell, self.give_up)
        together = [queues, self._requests] if requests else [queues]
        self.watchdog = Watchdog(settings, together, self._waiting, self._is_well, self.give_up)
        self.stopping = threading.Event()
        #: What people should know of it while it serves; shown by `v5 ps`.
        self.remark = ""
        #: True once a signal asked it to stop.
        self._asked = False
        self._changing = threading.Lock()
        self._announcer = threading.Thread(target=self._announce, name="announce", daemon=True)

    def prepare(self) -> None:
        """Load what the process needs; an exception here ends it with exit code 1."""
        raise NotImplementedError

    def release(self) -> None:
        """Let go of what `prepare` took; called once, at the end."""

    def refresh(self) -> None:
        """Bring the process' description of itself up to date; called before each sign of life."""

    def register(self) -> None:
        """Register the process' tasks."""
        raise NotImplementedError

    def task(self, name: str, queue: str, function: Callable[..., Any]) -> None:
        """Register a function as a task; its arguments are the keyword arguments of the queue's messages."""

        def watched(**arguments: Any) -> Any:
            with self.watchdog.working(f"{name} {arguments.get('batch', '')}".rstrip(), queue):
                return function(**arguments)

        self._queue_of[name] = queue
        self.app.task(name=name, ignore_result=True)(watched)

    def run(self) -> int:
        """Serve until stopped; returns the exit code, which is 0 only if it was asked to stop."""
        # Celery warns root of pickle, which this application does not accept.
        warnings.simplefilter("ignore", SecurityWarning)
        self.ledger.check()
        self.ledger.servers.broker.check_consumer()
        forgetful = self.ledger.servers.forgetful()
        if forgetful:
            log.warning("%s", forgetful)
        self.register()
        self._install_steps()
        pool: Any = "threads"
        if self._requests:
            pool = lanes.install(self.app, self._requests, self.answering, self._answers_requests)
        self.watchdog.start()
        self._announcer.start()
        worker = self.app.Worker(
            hostname=f"{self.process.name}-{self.process.pid}@{self.process.host}",
            pool_cls=pool,
            concurrency=self.threads,
            queues=self.queues,
            without_mingle=True,
            without_gossip=True,
            task_events=True,
            quiet=True,
        )
        # `quiet` drops the banner; the log says what is needed.
        try:
            worker.start()
        finally:
            self._loop_ended(worker)
        code = int(worker.exitcode or 0)
        # Celery leaves none where it ends without a word.
        if worker.exitcode is None and not self._asked:
            code = EXIT_GAVE_UP
        # Only now: as a bootstep's stop it would run before the pool's threads have ended.
        self.release()
        try:
            self.ledger.alive.withdraw(self.process)
        except V5Error as error:
            log.info("could not sign off: %s", error)
        return code

    def give_up(self, reason: str) -> None:
        """End the process at once; its supervisor starts a fresh one, its leases run out."""
        # The log may be what hangs.
        last = threading.Timer(FAREWELL, os._exit, (EXIT_GAVE_UP,))
        last.daemon = True
        # Where no thread can be started, it ends all the same.
        with contextlib.suppress(RuntimeError):
            last.start()
        log.critical("%s ends itself: %s", self.process.name, reason)
        logging.shutdown()
        os._exit(EXIT_GAVE_UP)

    def resign(self, reason: str) -> NoReturn:
        """End the process for good: no restart would mend it, and its supervisor starts none. Its leases run
        out, and others do its work."""
        log.critical("%s leaves the fleet: %s", self.process.name, reason)
        self._fail(reason)
        logging.shutdown()
        os._exit(EXIT_CONFIG)

    def _fail(self, reason: str) -> None:
        """Leave the reason where `v5 ps` finds it."""
        self.stopping.set()
        self.change(condition="failed", note=reason)
        try:
            self.ledger.alive.fail(self.process)
        except V5Error as error:
            log.warning("could not announce: %s", error)

    def say(self, condition: Condition, note: str = "") -> None:
        """Change what the process announces about itself."""
        self.change(condition=condition, note=note)
        try:
            self.ledger.alive.announce(self.process)
        except V5Error as error:
            log.warning("could not announce: %s", error)

    def change(self, **fields: Any) -> None:
        """Change the process' description of itself; the announcer reads it from another thread."""
        with self._changing:
            self.process = replace(self.process, **fields)

    def wait_for_room(self, relieve: Callable[[], bool] | None = None) -> None:
        """Wait while a server is at its maxmemory: on a full broker a consumer would lose the first message
        it takes and die, and without room for blobs a forward pass would be for nothing.

        `relieve()` does something about it and says whether it did.
        """
        told = ""
        while not self.stopping.is_set():
            try:
                full = self.ledger.servers.full()
                if not full:
                    break
                why = " and ".join(str(server) for server in full) + " at maxmemory"
            except InfrastructureError as error:
                why = str(error)
            if why != told:
                self.say("waiting", why)
                log.warning("%s; consuming starts when there is room", why)
                told = why
            if relieve is None or not relieve():
                time.sleep(0.5)
        if told:
            self.say("starting")

    def _announce(self) -> None:
        looked = time.monotonic()
        while not self.stopping.wait(self.settings.alive_seconds / 3):
            try:
                self.refresh()
                self.ledger.alive.announce(self.process)
            except V5Error as error:
                log.warning("could not announce: %s", error)
            now = time.monotonic()
            # A longer pause was not the consumer's: this process was stopped, or its machine slept.
            self.watchdog.look(min(now - looked, self.settings.alive_seconds))
            looked = now

    def _refused(self, message: RefusedMessage) -> None:
        """Set a message aside that was not let in; the consumer has taken it all the same."""
        self.watchdog.received(message.queue)
        self.ledger.refused.add(message, self.process.id)

    def _answers_requests(self, task: str) -> bool:
        return self._queue_of.get(task) in self._requests

    def _is_well(self) -> bool:
        return self.process.condition == "ready"

    def _waiting(self, queue: str) -> int:
        """Messages of a queue that no consumer has received. Raises InfrastructureError where that is no
        wonder."""
        if full := self.ledger.servers.full():
            raise LedgerFull(f"{full[0]} is at its maxmemory")
        return self.doorbell.waiting(queue)

    def _install_steps(self) -> None:
        owner = self

        class Resident(bootsteps.StartStopStep):  # type: ignore[misc]
            """Prepares before the consumer starts; a failed load stops the worker (a signal would not)."""

            requires: ClassVar[set[str]] = {"celery.worker.components:Pool"}

            def start(self, _parent: Any) -> None:
                owner.say("starting")
                try:
                    owner.prepare()
                    spare_what_stands()
                except InfrastructureError:
                    raise
                except V5Error as error:
                    log.error("%s", error)
                    owner._fail(str(error))
                    raise SystemExit(EXIT_CONFIG) from error

            def close(self, parent: Any) -> None:
                # Before the pool is waited for: its threads are to give back what they are at.
                owner._loop_ended(parent)

        self.app.steps["worker"].add(Resident)
        # Weak references would drop these closures.
        signals.worker_ready.connect(lambda **_: owner._ready(), weak=False)
        signals.worker_shutting_down.connect(lambda **_: owner._shutting_down(), weak=False)
        signals.task_received.connect(
            lambda request, **_: owner.watchdog.received(request.delivery_info["routing_key"]), weak=False
        )

    def _ready(self) -> None:
        self.say("ready", self.remark)
        self.watchdog.sign()
        log.info("%s is ready", self.process.name)

    def _shutting_down(self) -> None:
        self._asked = True
        self.stopping.set()
        self.change(condition="stopping")

    def _loop_ended(self, worker: Any) -> None:
        """Celery's main loop has ended: see that the process does, too, where it was not asked to stop (by a
        signal, or with exit code 0 by `celery control`)."""
        if not self._asked and worker.exitcode != 0 and not self.stopping.is_set():
            log.error("%s ends without having been asked to; the reason stands above", self.process.name)
            self.watchdog.ended()
        self.stopping.set()
