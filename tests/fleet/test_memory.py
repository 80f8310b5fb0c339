"""A device with less memory than its model wants: the job ends whole, and the device is remembered."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fleet

WORKER = "worker-qdrant-minilm-onnx"
SMALLER = "micro-batches of 512 tokens instead of 4096"


def test_a_worker_with_too_little_memory_finishes_the_job_and_remembers_its_device(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment["V5_FAKE_MEMORY_TOKENS"] = "600"
    fake_fleet.up("--primary", "qdrant-minilm-onnx")
    path = corpus(400, text=lambda i: f"chunk number {i} " + "word " * 100)
    end = fake_fleet.ok("submit", str(path), "-c", "c", "--primary", "qdrant-minilm-onnx")
    assert (end["done"], end["dead"]) == (400, 0)

    def said(pid: int | None) -> bool:
        rows = [row for row in fake_fleet.ok("ps")["processes"] if (row["name"], row["pid"]) == (WORKER, pid)]
        return any(row["condition"] == "ready" and SMALLER in row["note"] for row in rows)

    pid = fake_fleet.pids()[WORKER]
    eventually(lambda: said(pid), what="a note in v5 ps")
    log = fake_fleet.data_dir / "logs" / f"{WORKER}.log"
    assert "micro-batches of 1024 tokens did not fit into memory; 512 from now on" in log.read_text()
    told = len(log.read_text())
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: fake_fleet.pids().get(WORKER) not in (None, pid), what="a restart")
    eventually(lambda: said(fake_fleet.pids().get(WORKER)), what="the note of the one started again")
    assert f"{SMALLER}, as more did not fit into memory" in log.read_text()[told:]
    found = fake_fleet.ok("verify", str(path), "-c", "c")
    assert (found["present"], found["missing"]) == (400, 0)
