"""A local fleet from outside: start it detached, wait until it is ready, look at it, stop it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ledger.alive import Process
from ledger.ledger import Ledger
from registry.errors import FleetError, StoreUnavailable, V5Error
from registry.files import tail
from registry.models import DEFAULT_RERANKER
from registry.plan import Plan, plan_from_json
from registry.processes import V5, birth
from registry.settings import Settings
from registry.submissions import submissions_of
from worker.supervisor import GRACE, STOPPED_WITHIN, Layout

log = logging.getLogger(__name__)


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
    settings: Settings,
    plan: Plan,
    timeout: float,
    said: Callable[[str], None],
    *,
    flower: bool = False,
    rerank: bool = False,
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
        supervisor = _spawn(plan, layout, ["--flower"] * flower + ["--rerank"] * rerank)
    else:
        state = read_state(settings)
        standing = plan_from_json(state["plan"]) if state else None
        if standing is not None and (standing.fingerprint, standing.transport) != (
            plan.fingerprint,
            plan.transport,
        ):
            raise FleetError(
                f"a fleet for another plan runs in {layout.root} ({standing.describe()}); "
                "stop it with `v5 down` first"
            )
        names = {p["name"] for p in state["processes"]} if state else set()
        if rerank and state is not None and f"worker-{DEFAULT_RERANKER}" not in names:
            raise FleetError(
                "the fleet that runs was started without a reranker; start it beside with "
                f"`v5 worker {DEFAULT_RERANKER}`"
            )
        if flower and state is not None and "flower" not in names:
            raise FleetError(
                "the fleet that runs was started without Flower; start it beside with `v5 flower`"
            )
        supervisor = None
    try:
        return fresh, _wait_ready(settings, layout, timeout, supervisor, said)
    except BaseException:
        if supervisor is not None:
            # It may not have come as far as being found by `down`.
            supervisor.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                supervisor.wait(STOPPED_WITHIN)
            down(settings)
        raise


def _spawn(plan: Plan, layout: Layout, options: list[str]) -> subprocess.Popen[bytes]:
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
            [*V5, "up", "--foreground", "--plan", plan.model_dump_json(), *options],
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
                notes = _notes(ledger)
                missing = [
                    p["name"] + (f" ({notes[p['pid']]})" if notes.get(p["pid"]) else "")
                    for p in expected
                    if p["pid"] not in ready
                ]
                raise FleetError(
                    f"not ready after {timeout:.0f} s: {', '.join(missing) or 'redis'}; "
                    f"logs: {layout.root / 'logs'}"
                )
            time.sleep(0.1)
    finally:
        ledger.close()


def _ready_pids(ledger: Ledger) -> dict[int, str]:
    return {p.pid: p.device or p.note or "store" for p in _here(ledger) if p.condition == "ready"}


def _notes(ledger: Ledger) -> dict[int, str]:
    """What the processes of this machine say about themselves (what they wait for), by pid."""
    return {p.pid: p.note for p in _here(ledger)}


def _here(ledger: Ledger) -> list[Process]:
    try:
        return [p for p in ledger.alive.list() if p.host == socket.gethostname()]
    except V5Error:
        return []


def down(settings: Settings, timeout: float = STOPPED_WITHIN) -> list[str]:
    """Stop the fleet of this data directory; returns the names of what ran, empty if nothing did.

    With a private Redis that includes the detached producers, which would have nothing to talk to.
    """
    state = read_state(settings)
    names = [p["name"] for p in state["processes"] if p["pid"]] if state else []
    submissions = submissions_of(settings)
    if settings.embedded_redis:
        names += [f"submit-{one.collection}" for one in submissions.ours() if one.running]
    if is_running(settings) and state is not None:
        _signal(state, signal.SIGTERM)
        end = time.monotonic() + timeout
        while is_running(settings) and time.monotonic() < end:
            time.sleep(0.05)
        if is_running(settings):
            log.warning("the supervisor did not stop and is killed")
            _signal(state, signal.SIGKILL)
        # Its lock is free a moment before it is gone.
        while birth(state["pid"]) == state["born"] and time.monotonic() < end:
            time.sleep(0.02)
    _end_strays(settings, state)
    if settings.embedded_redis:
        # The supervisor has stopped them, unless it was killed.
        submissions.stop()
    return names


def _end_strays(settings: Settings, state: dict[str, Any] | None = None) -> None:
    """End what a killed supervisor left behind; its children have had SIGTERM from the kernel already."""
    state = state or read_state(settings)
    if state is None:
        return
    end = time.monotonic() + GRACE
    for process in state["processes"]:
        while process["pid"] and birth(process["pid"]) == process["born"]:
            if time.monotonic() > end:
                _signal(process, signal.SIGKILL)
            time.sleep(0.05)
    with contextlib.suppress(OSError):
        Layout(settings.data_dir.absolute()).state.unlink()


def _signal(process: dict[str, Any], number: signal.Signals) -> None:
    """Send a signal to a process of the state file, if it is still the one that was written down."""
    if process["pid"] and birth(process["pid"]) == process["born"]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process["pid"], number)
