"""`v5 up`, `ps`, `down`, `doctor`: a fleet starts once, is seen, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fleet

MODELS = ("qdrant-minilm-onnx", "all-miniLM-l6")


def running_in(data_dir: Path) -> list[str]:
    """Command lines of processes whose environment names this data directory, or that serve it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            environment = (entry / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if f"V5_DATA_DIR={data_dir}" in environment.split("\0") or str(data_dir) in command:
            found.append(command)
    return found


def test_up_returns_when_all_are_ready_and_down_leaves_none(fake_fleet: Any) -> None:
    first = fake_fleet.ok("up", "--primary", "qdrant-minilm-onnx", "--companion", "all-miniLM-l6")
    assert first["started"] is True
    seen = fake_fleet.ok("ps")
    ready = {row["name"] for row in seen["processes"] if row["condition"] == "ready"}
    assert ready == {"aggregator", "worker-qdrant-minilm-onnx", "worker-all-miniLM-l6"}
    again = fake_fleet.ok("up", "--primary", "qdrant-minilm-onnx", "--companion", "all-miniLM-l6")
    assert again["started"] is False
    assert [row["pid"] for row in again["processes"]] == [row["pid"] for row in first["processes"]]
    assert len(running_in(fake_fleet.data_dir)) == 5
    assert len(fake_fleet.ok("down")["stopped"]) == 4
    assert running_in(fake_fleet.data_dir) == []
    assert fake_fleet.ok("down")["stopped"] == []


def test_what_is_stored_outlives_down_and_up(fake_fleet: Any, corpus: Callable[..., Path]) -> None:
    path = corpus(40)
    fake_fleet.up()
    end = fake_fleet.ok("submit", str(path), "-c", "c")
    assert {row["model"]: row["chunks"] for row in end["workers"]} == dict.fromkeys(MODELS, 40)
    fake_fleet.ok("down")
    fake_fleet.up()
    assert fake_fleet.ok("verify", str(path), "-c", "c")["present"] == 40
    again = fake_fleet.ok("submit", str(path), "-c", "c")
    assert (again["skipped"], again["workers"]) == (40, [])
    assert len(fake_fleet.ok("jobs")) == 2


def test_a_restart_is_counted_and_shown(fake_fleet: Any, eventually: Callable[..., Any]) -> None:
    fake_fleet.up()
    pid = fake_fleet.pids()["worker-all-miniLM-l6"]
    os.kill(pid, signal.SIGKILL)

    def restarted() -> bool:
        rows = {row["name"]: row for row in fake_fleet.ok("ps")["processes"]}
        row = rows.get("worker-all-miniLM-l6", {})
        return bool(row.get("restarts") == 1 and row.get("condition") == "ready" and row["pid"] != pid)

    eventually(restarted, what="one restart, ready again")


def test_a_stopped_worker_gives_back_what_it_is_at(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    """SIGTERM in the middle of a job: down waits, and the next fleet finishes it."""
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.01"}
    fake_fleet.up()
    path = corpus(300)
    submit = fake_fleet.start("submit", str(path), "-c", "c", "--json")
    eventually(lambda: fake_fleet.ok("jobs") and fake_fleet.ok("jobs")[0]["done"] > 0)
    fake_fleet.ok("down")
    fake_fleet.up()
    _, err = submit.communicate(timeout=100)
    assert submit.returncode == 0, err
    job = fake_fleet.ok("jobs")[0]
    assert (job["done"], job["staged"], job["dead"]) == (300, 300, 0)
    logs = "".join(log.read_text() for log in (fake_fleet.data_dir / "logs").glob("worker-*.log"))
    assert "Traceback" not in logs


def test_doctor_finds_what_is_there_and_what_is_not(fake_fleet: Any) -> None:
    before = {finding["what"]: finding for finding in fake_fleet.ok("doctor")}
    assert "v5 up" in before["Redis"]["said"]
    fake_fleet.up()
    after = {finding["what"]: finding for finding in fake_fleet.ok("doctor")}
    assert after["fleet"]["verdict"] == "ok"
    assert "worker-all-miniLM-l6 (ready)" in after["fleet"]["said"]
    assert after["weights of bge-m3"]["verdict"] == "warning"
    fake_fleet.environment["V5_REDIS_URL"] = "redis://127.0.0.1:1"
    wrong = {finding["what"]: finding for finding in fake_fleet.ends(1, "doctor")}
    assert wrong["Redis"]["verdict"] == "wrong"
