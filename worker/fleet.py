"""A local fleet: one supervisor with a private Redis, an aggregator and one worker per model under it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from ledger.ledger import Ledger
from ledger.server import wait_for
from registry.errors import FleetError, StoreUnavailable, V5Error
from registry.plan import Plan, plan_from_json
from registry.settings import Settings
from worker import private_redis
from worker.supervised import Child, stop_all

log = logging.getLogger(__name__)

#: Time that workers and aggregator get to finish or give back what they are at. Seconds.
GRACE = 40.0
#: Lines of a failed process' log that `up` shows.
LOG_LINES = 6


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


def cuda_devices() -> list[str]:
    """The CUDA devices of this machine, asked of the driver so that torch need not be there."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        out = subprocess.run(
            [tool, "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [f"cuda:{line.strip()}" for line in out.splitlines() if line.strip().isdigit()]


class Supervisor:
    """Starts the processes of a plan, restarts what dies, stops everything in order."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        self.settings = settings
        self.plan = plan
        self.layout = Layout(settings.data_dir.absolute())
        self._stop = False
        self._lock: IO[str] | None = None
        self.redis: Child | None = None
        self.children = self._children()

    def _children(self) -> list[Child]:
        v5 = [sys.executable, "-m", "v5"]
        children = [Child("aggregator", [*v5, "aggregator"], self.layout.log("aggregator"))]
        devices = [self.settings.device] if self.settings.device else cuda_devices() or ["cpu"]
        for number, model in enumerate(self.plan.models):
            name = f"worker-{model}"
            command = [*v5, "worker", model, "--name", name]
            if model in self.plan.tasks:
                command += ["--task", self.plan.tasks[model]]
            device = devices[number % len(devices)]
            children.append(Child(name, command, self.layout.log(name), {"V5_DEVICE": device}))
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
            wait_for(ledger.redis, self.settings.ledger_url, 30)
            ledger.set_fleet_plan(self.plan)
            ledger.close()
            for child in self.children:
                child.start()
            self._write_state()
            everything = [*self.children, *([self.redis] if self.redis else [])]
            while not self._stop:
                changed = [child.watch() for child in everything]
                if True in changed:
                    self._write_state()
                time.sleep(0.1)
        finally:
            log.info("stopping the fleet")
            stop_all(self.children, GRACE)
            if self.redis is not None:
                self.redis.stop(GRACE)
            self.layout.state.unlink(missing_ok=True)
            if self._lock is not None:
                self._lock.close()

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

    def _write_state(self) -> None:
        children = [*([self.redis] if self.redis else []), *self.children]
        state = {
            "pid": os.getpid(),
            "plan": self.plan.model_dump_json(),
            "processes": [
                {
                    "name": child.name,
                    "pid": child.pid,
                    "restarts": child.restarts,
                    "last_exit": child.last_exit,
                    "failed": child.failed,
                    "log": str(child.log),
                }
                for child in children
            ],
        }
        fresh = self.layout.state.with_suffix(".new")
        try:
            fresh.write_text(json.dumps(state))
            fresh.replace(self.layout.state)
        except OSError as error:
            log.warning("could not write %s: %s", self.layout.state, error)


def read_state(settings: Settings) -> dict[str, Any] | None:
    """What the supervisor of this data directory last said; None if there is none."""
    try:
        state: dict[str, Any] = json.loads(Layout(settings.data_dir.absolute()).state.read_text())
    except (OSError, ValueError):
        return None
    return state


def is_running(settings: Settings) -> bool:
    """Whether a supervisor holds this data directory."""
    layout = Layout(settings.data_dir.absolute())
    try:
        lock = layout.lock.open("r+")
    except OSError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def up(
    settings: Settings, plan: Plan, timeout: float, said: Callable[[str], None]
) -> tuple[bool, list[dict[str, Any]]]:
    """Start a detached fleet and wait until every process is ready.

    Returns whether it was started now (False: one with this plan already ran) and its processes. Raises
    FleetError, with the reason from the log, if a process cannot start or is not ready in time; nothing is
    left running then.
    """
    fresh = not is_running(settings)
    layout = Layout(settings.data_dir.absolute())
    if fresh:
        _end_strays(settings)
        supervisor = _spawn(plan, layout)
    else:
        state = read_state(settings)
        standing = plan_from_json(state["plan"]) if state else None
        if standing is not None and standing.fingerprint != plan.fingerprint:
            raise FleetError(
                f"a fleet for another plan runs in {layout.root} ({standing.describe()}); "
                "stop it with `v5 down` first"
            )
        supervisor = None
    try:
        return fresh, _wait_ready(settings, layout, timeout, supervisor, said)
    except BaseException:
        if fresh:
            down(settings)
        raise


def _spawn(plan: Plan, layout: Layout) -> subprocess.Popen[bytes]:
    log_file = layout.log("fleet")
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        out = log_file.open("ab")
    except OSError as error:
        raise StoreUnavailable(
            f"the data directory {layout.root} cannot be written: {error}; choose another with V5_DATA_DIR"
        ) from error
    with out:
        return subprocess.Popen(
            [sys.executable, "-m", "v5", "up", "--foreground", "--plan", plan.model_dump_json()],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, "V5_DATA_DIR": str(layout.root)},
            start_new_session=True,
        )


def _wait_ready(
    settings: Settings,
    layout: Layout,
    timeout: float,
    supervisor: subprocess.Popen[bytes] | None,
    said: Callable[[str], None],
) -> list[dict[str, Any]]:
    end = time.monotonic() + timeout
    ledger = Ledger(settings)
    told: set[str] = set()
    try:
        while True:
            state = read_state(settings)
            processes = state["processes"] if state else []
            for process in processes:
                if process["failed"] or process["restarts"] >= 3:
                    raise FleetError(
                        f"{process['name']} does not start; its log ({process['log']}) ends:\n"
                        + tail(Path(process["log"]))
                    )
            if supervisor is not None and supervisor.poll() is not None:
                raise FleetError(
                    f"the fleet did not start; {layout.log('fleet')} ends:\n" + tail(layout.log("fleet"))
                )
            ready = _ready_pids(ledger)
            for process in processes:
                if process["pid"] in ready and process["name"] not in told:
                    told.add(process["name"])
                    said(f"{process['name']} is ready ({ready[process['pid']]})")
            expected = [p for p in processes if p["name"] != "redis"]
            if expected and all(process["pid"] in ready for process in expected):
                return list(processes)
            if time.monotonic() >= end:
                missing = ", ".join(p["name"] for p in expected if p["pid"] not in ready) or "redis"
                raise FleetError(f"not ready after {timeout:.0f} s: {missing}; logs: {layout.root / 'logs'}")
            time.sleep(0.1)
    finally:
        ledger.close()


def _ready_pids(ledger: Ledger) -> dict[int, str]:
    try:
        return {p.pid: p.device or "store" for p in ledger.alive.list() if p.condition == "ready"}
    except V5Error:
        return {}


def down(settings: Settings, timeout: float = GRACE + 20) -> list[str]:
    """Stop the fleet of this data directory; returns the names of what ran, empty if nothing did."""
    state = read_state(settings)
    names = [p["name"] for p in state["processes"] if p["pid"]] if state else []
    if is_running(settings) and state is not None:
        os.kill(state["pid"], signal.SIGTERM)
        end = time.monotonic() + timeout
        while is_running(settings) and time.monotonic() < end:
            time.sleep(0.05)
        if is_running(settings):
            log.warning("the supervisor did not stop and is killed")
            os.kill(state["pid"], signal.SIGKILL)
    _end_strays(settings, state)
    return names


def _end_strays(settings: Settings, state: dict[str, Any] | None = None) -> None:
    """End what a killed supervisor left behind; its children have had SIGTERM from the kernel already."""
    state = state or read_state(settings)
    if state is None:
        return
    end = time.monotonic() + GRACE
    for process in state["processes"]:
        while process["pid"] and _is_ours(process["pid"]):
            if time.monotonic() > end:
                os.kill(process["pid"], signal.SIGKILL)
            time.sleep(0.05)
    with contextlib.suppress(OSError):
        Layout(settings.data_dir.absolute()).state.unlink()


def _is_ours(pid: int) -> bool:
    """Whether a process of that id runs and looks like one of a fleet (ids are used again)."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        condition = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    names = (b"\x00v5\x00", b"valkey-server", b"redis-server")
    return condition != "Z" and any(name in command for name in names)


def tail(path: Path, lines: int = LOG_LINES) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
