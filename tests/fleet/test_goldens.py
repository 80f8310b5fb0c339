"""A worker that does not give its space's golden vectors never joins, or leaves in time, and says why."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from tests.conftest import FAKE
from worker.encoders.fake import POISON_DRIFT
from worker.supervised import EXIT_CONFIG

pytestmark = pytest.mark.fleet

MODEL = "qdrant-minilm-onnx"
WORKER = f"worker-{MODEL}"


def shown(fleet: Any, name: str) -> dict[str, Any]:
    """A process' row in `v5 ps`; empty if it has none."""
    return next((row for row in fleet.ok("ps")["processes"] if row["name"] == name), {})


def state_of(fleet: Any, name: str) -> dict[str, Any]:
    """What the supervisor says of a process."""
    processes = json.loads((fleet.data_dir / "fleet.json").read_text())["processes"]
    found: dict[str, Any] = next(row for row in processes if row["name"] == name)
    return found


def test_a_worker_that_goes_bad_leaves_before_its_part_is_recorded(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment |= {"V5_GOLDEN_BATCHES": "1"}
    fake_fleet.up("--primary", MODEL)
    good = corpus(40, "good.jsonl")
    assert fake_fleet.ok("submit", str(good), "-c", "c")["done"] == 40
    # One batch: the text that turns the encoder bad, and neighbours whose vectors are wrong from then on.
    bad = corpus(10, "bad.jsonl", lambda i: POISON_DRIFT if i == 3 else f"another text {i}")
    submit = fake_fleet.start("submit", str(bad), "-c", "d", "--json")
    row = eventually(
        lambda: (found := shown(fake_fleet, WORKER)).get("condition") == "failed" and found,
        what="the worker's end in `v5 ps`",
    )
    assert "does not give the golden vectors of its space" in row["note"]
    # The table folds a note, so only its words are looked for.
    assert {"golden", "vectors"} <= set(fake_fleet.v5("ps").stdout.split())
    log = (fake_fleet.data_dir / "logs" / f"{WORKER}.log").read_text()
    assert f"{WORKER} leaves the fleet" in log
    eventually(lambda: state_of(fake_fleet, WORKER)["failed"])
    assert state_of(fake_fleet, WORKER)["last_exit"] == EXIT_CONFIG
    assert submit.poll() is None, "nobody did the batch"
    ledger = Ledger(fake_fleet.settings())
    try:
        (job,) = [job for job in ledger.jobs.list() if job.collection == "d"]
        assert (job.done, job.open_batches) == (0, 1)
        assert [key for key in ledger.redis.keys(f"v5:blob:{job.id}.0:*") if b":text:" not in key] == []
    finally:
        ledger.close()
    assert "not in collection 'd': c0, c1, c3" in fake_fleet.v5("get", "c0", "c1", "c3", "-c", "d").stderr
    fake_fleet.ok("cancel", job.id)
    submit.communicate(timeout=60)
    # A fresh process is good again, and takes the failed one's place in `v5 ps`.
    worker = fake_fleet.start("worker", MODEL)
    try:
        eventually(lambda: shown(fake_fleet, WORKER).get("condition") == "ready")
        more = corpus(20, "more.jsonl", lambda i: f"more {i}")
        assert fake_fleet.ok("submit", str(more), "-c", "e")["done"] == 20
    finally:
        worker.terminate()
        worker.communicate(timeout=60)


@pytest.mark.weights
@pytest.mark.timeout(400)
def test_weights_that_did_not_fill_the_collection_never_write_to_it(
    make_fleet: Callable[..., Any],
    corpus: Callable[..., Path],
    tmp_path: Path,
    eventually: Callable[..., Any],
) -> None:
    pytest.importorskip("torch")
    from tests.checkpoints import bge_m3

    ours, theirs = (bge_m3.build(tmp_path / f"seed-{seed}", seed) for seed in (20, 21))
    fleet = make_fleet(**{**FAKE, "fake_encoders": "false", "fake_weights": "true", "threads": 1})
    plan = ("--primary", "bge-m3", "--output", "bge-m3=dense,sparse,multi")

    def serve(path: Path) -> Any:
        fleet.environment["V5_WEIGHTS"] = json.dumps({"bge-m3": str(path)})
        return fleet.v5("up", *plan)

    assert serve(ours).returncode == 0
    first, second = corpus(6, "first.jsonl"), corpus(6, "second.jsonl", lambda i: f"queue {i} of the model")
    assert fleet.ok("submit", str(first), "-c", "c")["done"] == 6
    before = {row["id"]: row for row in fleet.ok("get", *ids(6), "-c", "c", "--vectors")}
    fleet.down()

    refused = serve(theirs)
    assert refused.returncode == 1
    assert "does not give the golden vectors of its space" in refused.stderr
    assert "v5 models prove bge-m3" in refused.stderr
    assert "Traceback" not in refused.stderr

    # A lost Redis knows no goldens, and the first worker records its own; the collection still has them.
    shutil.rmtree(fleet.data_dir / "redis")
    joined = serve(theirs)
    if joined.returncode == 0:
        submit = fleet.start("submit", str(second), "-c", "c", "--json")
        row = eventually(
            lambda: (found := shown(fleet, "worker-bge-m3")).get("condition") == "failed" and found, 60
        )
        assert "does not give the golden vectors" in row["note"]
        submit.terminate()
        submit.communicate(timeout=60)
    else:
        assert "does not give the golden vectors" in joined.stderr
    fleet.down()

    assert serve(ours).returncode == 0
    after = {row["id"]: row for row in fleet.ok("get", *ids(6), "-c", "c", "--vectors")}
    assert after == before
    assert fleet.ok("submit", str(second), "-c", "c")["done"] == 6


def ids(count: int) -> list[str]:
    return [f"c{i}" for i in range(count)]


def test_workers_of_one_space_agree_about_who_was_first(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    """Several start at once on an empty ledger: one records, all join, and the collection keeps them."""
    fake_fleet.up("--primary", MODEL)
    others = [fake_fleet.start("worker", MODEL, "--name", f"other-{i}") for i in range(2)]
    try:
        for i in range(2):
            eventually(lambda i=i: shown(fake_fleet, f"other-{i}").get("condition") == "ready")
        assert fake_fleet.ok("submit", str(corpus(64)), "-c", "c")["done"] == 64
        record = json.loads((fake_fleet.data_dir / "store" / "c" / "collection.json").read_text())
        noted = [key for key in record["notes"] if key.startswith("golden/")]
        assert len(noted) == 1
        size = os.path.getsize(fake_fleet.data_dir / "store" / "c" / "collection.json")
        assert size < 64 * 1024
    finally:
        for other in others:
            other.terminate()
        for other in others:
            other.communicate(timeout=60)
