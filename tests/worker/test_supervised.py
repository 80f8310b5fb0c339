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

from worker.supervised import EXIT_CONFIG, Child, stop_all


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
