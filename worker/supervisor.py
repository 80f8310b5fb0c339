"""The supervisor of a local fleet: starts its processes, restarts what dies, stops everything in order."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from ledger.ledger import Ledger
from ledger.server import wait_for
from registry import submissions
from registry.errors import FleetError, V5Error
from registry.files import write_whole
from registry.models import DEFAULT_RERANKER
from registry.plan import Plan
from registry.processes import V5, birth
from registry.settings import Settings
from registry.submissions import submissions_of
from worker import private_redis
from worker.devices import cuda_devices
from worker.supervised import Child, Silence, stop_all

log = logging.getLogger(__name__)

#: Time that workers and aggregator get to finish or give back what they are at. Seconds.
GRACE = 40.0
#: A supervisor that is asked to stop has gone after this time: detached producers, then workers and
#: aggregator, then Redis, and a margin. Seconds.
STOPPED_WITHIN = submissions.GRACE + submissions.KILLED + 2 * GRACE + 15.0
#: The fleet's plan is said to Redis this often, which may have lost it. Seconds.
SAY_EVERY = 15.0
#: Detached submissions are looked after this often. Seconds.
LOOK_EVERY = 5.0


@dataclass(frozen=True)
class Layout:
    """Where a local fleet keeps things in its data directory."""

    root: Path

    @property
    def lock(self) -> Path:
        """Held by the supervisor while it runs."""
        return self.root / "fleet.lock"

    @property
    def state(self) -> Path:
        """What the supervisor runs, as JSON."""
        return self.root / "fleet.json"

    def log(self, name: str) -> Path:
        """A process' log."""
        return self.root / "logs" / f"{name}.log"


class Supervisor:
    """Starts the processes of a plan, restarts what dies, stops everything in order."""

    def __init__(self, settings: Settings, plan: Plan, *, flower: bool = False, rerank: bool = False) -> None:
        self.settings = settings
        self.plan = plan
        self.layout = Layout(settings.data_dir.absolute())
        self._stop = False
        self._lock: IO[str] | None = None
        self.redis: Child | None = None
        self.submissions = submissions_of(settings)
        #: Collections of the detached submissions it went on with when it started.
        self.resumed: list[str] = []
        self.children = self._children(flower, rerank)

    def _children(self, flower: bool, rerank: bool) -> list[Child]:
        silence = Silence(self.settings.hang_seconds, self.settings.silent_seconds)
        children = [Child("aggregator", [*V5, "aggregator"], self.layout.log("aggregator"), silence=silence)]
        devices = [self.settings.device] if self.settings.device else cuda_devices() or ["cpu"]
        models = (*self.plan.models, *([DEFAULT_RERANKER] if rerank else []))
        for number, model in enumerate(models):
            name = f"worker-{model}"
            command = [*V5, "worker", model, "--name", name]
            if model in self.plan.models:
                command += self.plan.worker_options(model)
            # onnxruntime has no CUDA kernels for it.
            on_cpu = self.plan.variants.get(model) == "int8"
            device = "cpu" if on_cpu else devices[number % len(devices)]
            children.append(Child(name, command, self.layout.log(name), {"V5_DEVICE": device}, silence))
        if flower:
            children.append(Child("flower", [*V5, "flower"], self.layout.log("flower")))
        return children

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT. Raises FleetError if a fleet already runs here."""
        self._take_lock()
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        try:
            if self.settings.embedded_redis:
                # Only now: preparing removes a socket that a running server would still need.
                command = private_redis.prepare(self.settings)
                self.redis = Child("redis", command, self.layout.log("redis"))
                self.redis.start()
            self._write_state()
            ledger = Ledger(self.settings)
            wait_for(ledger.redis, str(ledger.servers.ledger), 30)
            ledger.check()
            self._say_plan(ledger)
            for child in self.children:
                child.start()
            self.resumed = self._start_again(self.submissions.resume)
            self._write_state()
            everything = [*self.children, *([self.redis] if self.redis else [])]
            said = looked = time.monotonic()
            while not self._stop:
                changed = [child.watch() for child in everything]
                if True in changed:
                    self._write_state()
                if time.monotonic() - said > SAY_EVERY:
                    self._say_plan(ledger)
                    said = time.monotonic()
                if time.monotonic() - looked > LOOK_EVERY:
                    self._start_again(self.submissions.revive)
                    looked = time.monotonic()
                time.sleep(0.1)
            ledger.close()
        finally:
            log.info("stopping the fleet")
            if self.redis is not None:
                # Without their Redis they would only wait; they let go while it is there.
                for collection in self.submissions.stop():
                    log.info("stopped the detached submission to %s", collection)
            stop_all(self.children, GRACE)
            if self.redis is not None:
                self.redis.stop(GRACE)
            self.layout.state.unlink(missing_ok=True)
            if self._lock is not None:
                self._lock.close()

    def _say_plan(self, ledger: Ledger) -> None:
        try:
            ledger.set_fleet_plan(self.plan)
        except V5Error as error:
            log.warning("the fleet's plan is not in Redis: %s", error)

    def _start_again(self, start: Callable[[], list[str]]) -> list[str]:
        """Start detached submissions of this fleet again; their collections."""
        try:
            collections = start()
        except OSError as error:
            log.warning("could not start detached submissions again: %s", error)
            return []
        for collection in collections:
            log.info("went on with the detached submission to %s", collection)
        return collections

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        log.info("received %s", signal.Signals(number).name)
        self._stop = True

    def _take_lock(self) -> None:
        self.layout.root.mkdir(parents=True, exist_ok=True)
        lock = self.layout.lock.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise FleetError(
                f"a fleet already runs in {self.layout.root}; see it with `v5 ps`, stop it with `v5 down`"
            ) from None
        self._lock = lock
        # What an earlier supervisor said is not true of this one.
        self.layout.state.unlink(missing_ok=True)

    def _write_state(self) -> None:
        children = [*([self.redis] if self.redis else []), *self.children]
        state = {
            "pid": os.getpid(),
            "born": birth(os.getpid()),
            "plan": self.plan.model_dump_json(),
            "resumed": self.resumed,
            "processes": [
                {
                    "name": child.name,
                    "pid": child.pid,
                    "born": child.born,
                    "restarts": child.restarts,
                    "last_exit": child.last_exit,
                    "last_end": child.last_end,
                    "failed": child.failed,
                    "log": str(child.log),
                }
                for child in children
            ],
        }
        try:
            write_whole(self.layout.state, json.dumps(state))
        except OSError as error:
            log.warning("could not write %s: %s", self.layout.state, error)
