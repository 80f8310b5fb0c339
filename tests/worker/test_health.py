"""`v5 health`: only a ready process that runs on this machine now counts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from ledger.alive import Process
from ledger.ledger import Ledger
from registry.settings import Settings


def health(
    settings: Settings, name: str = "worker-x", python: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run the command on the settings' server."""
    environment = {**os.environ, "V5_DATA_DIR": str(settings.data_dir)}
    command = [sys.executable, *python, "-m", "v5", "health", name]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


def me(**fields: Any) -> Process:
    """This test's own process, which does run, as a worker."""
    return replace(Process(kind="worker", name="worker-x", condition="ready"), **fields)


def test_a_ready_process_of_this_machine_is_healthy(ledger: Ledger, settings: Settings) -> None:
    ledger.alive.announce(me())
    done = health(settings)
    assert (done.returncode, done.stderr) == (0, "")
    assert "worker-x is ready" in done.stdout


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "worker-y"}, "worker-x does not run on"),
        ({"host": "elsewhere"}, "worker-x does not run on"),
        # Of a container before this one, with its host name and process id.
        ({"since": time.time() - 7 * 86400}, "worker-x does not run on"),
        ({"condition": "starting"}, "is not ready (starting)"),
        (
            {"condition": "waiting", "note": "Redis is at its maxmemory"},
            "(waiting: Redis is at its maxmemory)",
        ),
    ],
)
def test_any_other_is_not(ledger: Ledger, settings: Settings, fields: dict[str, Any], said: str) -> None:
    ledger.alive.announce(me(**fields))
    done = health(settings)
    assert done.returncode == 1
    assert said in done.stderr


def test_one_that_has_died_is_not_though_its_announcement_stands(ledger: Ledger, settings: Settings) -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    ledger.alive.announce(me(pid=dead.pid))
    assert health(settings).returncode == 1


def test_without_redis_it_says_why(settings: Settings) -> None:
    done = health(settings)
    assert done.returncode == 1
    assert "Redis cannot be reached" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_imports_nothing_it_could_do_without(ledger: Ledger, settings: Settings) -> None:
    # Every container asks several times a minute, and the imports are nearly all of what that costs.
    ledger.alive.announce(me())
    done = health(settings, python=["-X", "importtime"])
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "redis" in imported
    assert not imported & {
        *("celery", "kombu", "flower", "numpy", "torch", "transformers", "tokenizers"),
        *(
            "onnxruntime",
            "sentence_transformers",
            "qdrant_client",
            "qdrant_edge",
            "rich",
            "prometheus_client",
        ),
    }
