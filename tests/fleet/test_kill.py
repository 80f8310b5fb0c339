"""kill -9 of any one process of a running fleet: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger

pytestmark = pytest.mark.fleet

COUNT = 500


def check(fleet: Any, path: Path) -> None:
    found = fleet.ok("verify", str(path), "-c", "c")
    assert (found["present"], found["missing"], found["stale"]) == (COUNT, 0, 0)
    job = fleet.ok("jobs")[0]
    assert (job["state"], job["done"], job["dead"]) == ("done", COUNT, 0), job
    again = fleet.ok("submit", str(path), "-c", "c")
    assert (again["skipped"], again["done"]) == (COUNT, 0)
    ledger = Ledger(fleet.settings())
    assert ledger.reserved() == 0
    assert not ledger.redis.keys("v5:batch:*")
    ledger.close()


@pytest.mark.parametrize(
    "victim", ["worker-qdrant-minilm-onnx", "worker-all-miniLM-l6", "aggregator", "redis"]
)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_process_is_restarted_and_the_job_ends_exact(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any], victim: str, seed: int
) -> None:
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.004"}
    fake_fleet.up()
    path = corpus(COUNT)
    submit = fake_fleet.start("submit", str(path), "-c", "c", "--json")
    ledger = Ledger(fake_fleet.settings())
    eventually(lambda: ledger.jobs.list() and ledger.jobs.list()[0].staged > 0)
    time.sleep(random.Random(f"{victim}{seed}").uniform(0, 1.2))  # the moment is the point
    assert submit.poll() is None, "the job was over before the kill"
    pid = fake_fleet.pids()[victim]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: fake_fleet.pids().get(victim) not in (None, pid), what="a restart")
    end = fake_fleet.ended(submit)
    assert (end["chunks"], end["done"], end["dead"]) == (COUNT, COUNT, 0)
    log = (fake_fleet.data_dir / "logs" / "fleet.log").read_text()
    assert f"{victim} died (killed by SIGKILL)" in log
    ledger.close()
    check(fake_fleet, path)


def test_a_killed_producer_is_continued_by_the_same_command(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.004", "V5_INFLIGHT_BYTES": "100000"}
    fake_fleet.up()
    path = corpus(COUNT)
    submit = fake_fleet.start("submit", str(path), "-c", "c", "--json")
    ledger = Ledger(fake_fleet.settings())
    eventually(lambda: ledger.jobs.list() and ledger.jobs.list()[0].done > 100)
    submit.kill()
    submit.communicate()
    (job,) = ledger.jobs.list()
    assert job.staged < COUNT
    end = fake_fleet.ok("submit", str(path), "-c", "c")
    assert end["job"] == job.id
    assert end["chunks"] == COUNT
    assert ledger.jobs.get(job.id).staged == COUNT, "something was staged twice"
    ledger.close()
    check(fake_fleet, path)


def test_a_killed_supervisor_takes_its_fleet_along_and_up_starts_it_again(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.004"}
    fake_fleet.up()
    path = corpus(COUNT)
    submit = fake_fleet.start("submit", str(path), "-c", "c", "--json")
    ledger = Ledger(fake_fleet.settings())
    eventually(lambda: ledger.jobs.list() and ledger.jobs.list()[0].done > 0)
    ledger.close()
    pids = fake_fleet.pids()
    os.kill(pids["fleet"], signal.SIGKILL)
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()), 60)
    fake_fleet.up()
    assert fake_fleet.ended(submit)["done"] == COUNT
    check(fake_fleet, path)


def test_ctrl_c_loses_nothing(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.004", "V5_INFLIGHT_BYTES": "100000"}
    fake_fleet.up()
    path = corpus(COUNT)
    submit = fake_fleet.start("submit", str(path), "-c", "c", "--json")
    ledger = Ledger(fake_fleet.settings())
    eventually(lambda: ledger.jobs.list() and ledger.jobs.list()[0].done > 0)
    submit.send_signal(signal.SIGINT)
    _, err = submit.communicate(timeout=30)
    assert submit.returncode == 130
    assert "nothing is lost" in err
    assert "Traceback" not in err
    assert ledger.jobs.list()[0].interrupted
    ledger.close()
    end = fake_fleet.ok("submit", str(path), "-c", "c")
    assert end["chunks"] == COUNT
    check(fake_fleet, path)
