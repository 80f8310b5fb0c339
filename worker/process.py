"""A process of the fleet: a Celery worker on the threads pool, announced in the ledger while it lives."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, NoReturn

from celery import bootsteps, signals
from celery.exceptions import SecurityWarning

from ledger.alive import Condition, Process
from ledger.doorbell import Doorbell
from ledger.ledger import Ledger
from registry.celery_app import make_app
from registry.errors import InfrastructureError, V5Error
from registry.settings import Settings
from worker.edge import Edge
from worker.supervised import EXIT_CONFIG

log = logging.getLogger(__name__)

#: Exit code of a process that ended itself so that its supervisor starts a fresh one (EX_SOFTWARE).
EXIT_GAVE_UP = 70


class FleetProcess:
    """Base of the worker and the aggregator: `prepare` runs before anything is consumed."""

    #: Threads that work on steps at once.
    threads: ClassVar[int] = 2

    def __init__(self, settings: Settings, process: Process, queues: list[str]) -> None:
        self.settings = settings
        self.process = process
        self.queues = queues
        self.ledger = Ledger(settings)
        self.app = make_app(settings)
        self.doorbell = Doorbell(self.app, settings)
        self.edge = Edge(self.ledger, self.doorbell, self.give_up)
        self.stopping = threading.Event()
        self._changing = threading.Lock()
        self._announcer = threading.Thread(target=self._announce, name="announce", daemon=True)

    def prepare(self) -> None:
        """Load what the process needs; an exception here ends it with exit code 1."""
        raise NotImplementedError

    def release(self) -> None:
        """Let go of what `prepare` took; called once, at the end."""

    def register(self) -> None:
        """Register the process' tasks."""
        raise NotImplementedError

    def task(self, name: str, function: Callable[..., Any]) -> None:
        """Register a function as a task; its arguments are the message's keyword arguments."""
        self.app.task(name=name, ignore_result=True)(function)

    def run(self) -> int:
        """Serve until stopped; returns the exit code."""
        # Celery warns root of pickle, which this application does not accept.
        warnings.simplefilter("ignore", SecurityWarning)
        self.ledger.check()
        self.ledger.servers.broker.check_consumer()
        forgetful = self.ledger.servers.forgetful()
        if forgetful:
            log.warning("%s", forgetful)
        self.register()
        self._install_steps()
        self._announcer.start()
        worker = self.app.Worker(
            hostname=f"{self.process.name}-{self.process.pid}@{self.process.host}",
            pool_cls="threads",
            concurrency=self.threads,
            queues=self.queues,
            without_mingle=True,
            without_gossip=True,
            task_events=True,
            quiet=True,
        )
        # `quiet` drops the banner; the log says what is needed.
        worker.start()
        code = int(worker.exitcode or 0)
        self.stopping.set()
        # Only now: as a bootstep's stop it would run before the pool's threads have ended.
        self.release()
        try:
            self.ledger.alive.withdraw(self.process)
        except V5Error as error:
            log.info("could not sign off: %s", error)
        return code

    def give_up(self, reason: str) -> None:
        """End the process at once; its supervisor starts a fresh one, its leases run out."""
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
        while not self.stopping.wait(self.settings.alive_seconds / 3):
            try:
                self.ledger.alive.announce(self.process)
            except V5Error as error:
                log.warning("could not announce: %s", error)

    def _install_steps(self) -> None:
        owner = self

        class Resident(bootsteps.StartStopStep):  # type: ignore[misc]
            """Prepares before the consumer starts; a failed load stops the worker (a signal would not)."""

            requires: ClassVar[set[str]] = {"celery.worker.components:Pool"}

            def start(self, _parent: Any) -> None:
                owner.say("starting")
                try:
                    owner.prepare()
                except InfrastructureError:
                    raise
                except V5Error as error:
                    log.error("%s", error)
                    owner._fail(str(error))
                    raise SystemExit(EXIT_CONFIG) from error

        self.app.steps["worker"].add(Resident)
        # Weak references would drop these closures.
        signals.worker_ready.connect(lambda **_: owner._ready(), weak=False)
        signals.worker_shutting_down.connect(lambda **_: owner._shutting_down(), weak=False)

    def _ready(self) -> None:
        self.say("ready")
        log.info("%s is ready", self.process.name)

    def _shutting_down(self) -> None:
        self.stopping.set()
        self.change(condition="stopping")
