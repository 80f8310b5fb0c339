"""Child processes: restarted with backoff, left alone where no restart helps, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from worker.supervised import EXIT_CONFIG, HEARTBEAT, STARTING, WELL, Child, Silence, stop_all


def child(tmp_path: Path, code: str) -> Child:
    return Child("it", [sys.executable, "-c", code], tmp_path / "it.log")


def test_what_dies_is_started_again_after_a_growing_wait(
    tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    one = child(tmp_path, "import time; print('up', flush=True); time.sleep(600)")
    one.start()
    for restarts in (1, 2):
        eventually(lambda n=restarts: one.log.read_text().count("up") == n)
        os.kill(one.pid, signal.SIGKILL)
        eventually(lambda: one.watch())
        died = time.monotonic()
        assert (one.restarts, one.last_exit, one.pid) == (restarts, -signal.SIGKILL, 0)
        eventually(lambda: one.watch())
        assert time.monotonic() - died > 0.4 * 2**restarts
    stop_all([one], 5)


def test_a_process_that_cannot_start_is_not_started_again(
    tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    one = child(tmp_path, f"raise SystemExit({EXIT_CONFIG})")
    one.start()
    eventually(lambda: one.watch())
    assert one.failed
    assert not one.watch()


def test_stopping_kills_what_does_not_listen(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    deaf = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    one, two = child(tmp_path, deaf), Child("two", ["sleep", "600"], tmp_path / "two.log")
    one.start()
    two.start()
    eventually(lambda: "deaf" in one.log.read_text())
    stop_all([one, two], 0.5)
    assert one.process is not None
    assert one.process.returncode == -signal.SIGKILL
    assert two.process is not None
    assert two.process.returncode == -signal.SIGTERM


def test_children_end_with_a_supervisor_that_was_killed(
    tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    code = (
        "import time; from pathlib import Path; from worker.supervised import Child\n"
        f"c = Child('c', ['sleep', '600'], Path({str(tmp_path / 'c.log')!r})); c.start()\n"
        "print(c.pid, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert Path(f"/proc/{pid}").exists()
    parent.kill()
    parent.communicate()
    eventually(lambda: not Path(f"/proc/{pid}").exists(), 10)


def living(tmp_path: Path, sign: bytes, silence: Silence, signs: int = 10**9) -> Child:
    """A child that gives so many signs of life, ten in a second, and lives on in silence."""
    code = (
        f"import os, time; fd = int(os.environ[{HEARTBEAT!r}])\n"
        f"for _ in range({signs}): os.write(fd, {sign!r}); time.sleep(0.1)\n"
        "time.sleep(600)"
    )
    return Child("it", [sys.executable, "-c", code], tmp_path / "it.log", silence=silence)


def watch_for(one: Child, seconds: float) -> None:
    """Look at a child as its supervisor does."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        one.watch()
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("sign", "silence"), [(WELL, Silence(600, 1.0)), (STARTING, Silence(1.0, 600))], ids=["ready", "starting"]
)
def test_a_child_that_falls_silent_is_killed_and_started_again(
    tmp_path: Path, eventually: Callable[..., Any], sign: bytes, silence: Silence
) -> None:
    one = living(tmp_path, sign, silence, signs=5)
    one.start()
    first = one.pid
    eventually(lambda: one.watch() and one.restarts)
    assert (one.last_exit, one.restarts) == (-signal.SIGKILL, 1)
    assert "it gave no sign of life for 1 s" in one.last_end
    eventually(lambda: one.watch())
    assert one.pid not in (0, first)
    one.stop(5)


def test_a_stopped_child_is_killed_whatever_it_said_before(
    tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    one = living(tmp_path, WELL, Silence(600, 1.0))
    one.start()
    watch_for(one, 2.0)
    assert one.restarts == 0
    os.kill(one.pid, signal.SIGSTOP)
    eventually(lambda: one.watch() and one.restarts)
    assert one.last_exit == -signal.SIGKILL


def test_a_supervisor_that_slept_itself_kills_nobody(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    one = living(tmp_path, WELL, Silence(600, 2.5))
    one.start()
    eventually(lambda: one.watch() or one._well)
    os.kill(one.pid, signal.SIGSTOP)
    watch_for(one, 0.3)
    time.sleep(3.0)  # the supervisor sleeps; the child is stopped all the while
    one.watch()
    os.kill(one.pid, signal.SIGCONT)
    watch_for(one, 1.0)
    assert one.restarts == 0
    one.stop(5)


def test_a_child_that_gives_no_signs_is_left_alone(tmp_path: Path) -> None:
    one = child(tmp_path, f"import os, time; assert {HEARTBEAT!r} not in os.environ; time.sleep(600)")
    one.start()
    watch_for(one, 1.5)
    assert one.restarts == 0
    one.stop(5)


@pytest.mark.parametrize(("sign", "most"), [(WELL, 0.6), (STARTING, 30.0)], ids=["ready", "starting"])
def test_one_that_had_been_ready_waits_less_long_for_its_restart(
    tmp_path: Path, eventually: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, sign: bytes, most: float
) -> None:
    monkeypatch.setattr("worker.supervised.MOST_AFTER_READY", 0.6)
    one = living(tmp_path, sign, Silence(600, 600))
    one.start()
    for number in (1, 2):
        eventually(lambda: one.watch() or one.process is not None)
        eventually(lambda: (one.watch(), one._well == (sign == WELL) and one._silent == 0.0 and one.pid)[1])
        watch_for(one, 0.5)
        os.kill(one.pid, signal.SIGKILL)
        eventually(lambda n=number: one.watch() and one.restarts == n)
    assert one._wait == min(2.0, most)
    one.stop(5)
