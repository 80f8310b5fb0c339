"""The numbers for Prometheus: parsed as it parses them, of what the ledger has, served or refused."""

from __future__ import annotations

import http.client
import subprocess
import threading
from collections.abc import Iterator

import pytest

from ledger.alive import Process
from ledger.ledger import Ledger
from ledger.metrics import metrics
from ledger.steps import PartRecord, Taken, space_mark
from registry.chunks import Chunk, chunk_id
from registry.frames import pack_chunks
from registry.plan import Plan
from worker.cli.metrics import page

MODEL = "qdrant-minilm-onnx"
#: A name with all that must be escaped.
COLLECTION = 'c"\\\n'


@pytest.fixture
def busy(ledger: Ledger, plan: Plan) -> Ledger:
    """A ledger with two workers' announcements, one of them twice, and a job under way."""
    counters = {"busy_seconds": 90.5, "working_seconds": 100.0, "chunks": 7, "micro_batch_tokens": 768}
    for pid, since, count in ((2, 20.0, counters), (1, 10.0, {"chunks": 1000}), (3, 15.0, {"chunks": 1})):
        process = Process(
            "worker", f"w{pid // 3}", "h", pid, MODEL, "cpu", condition="ready", since=since, counters=count
        )
        ledger.alive.announce(process)
    ledger.alive.announce(Process("aggregator", "aggregator", "h", 9, condition="waiting"))
    job = ledger.jobs.open(COLLECTION, plan, ["src"])[0]
    blob = pack_chunks([Chunk(chunk_id("1"), "text")])
    for n in range(2):
        ledger.steps.stage(job.id, plan, n, "upsert", [MODEL], 1, blob, 500, 1 << 30)
    taken = ledger.steps.take(f"{job.id}.0", f"embed.{MODEL}")
    assert isinstance(taken, Taken)
    part = PartRecord(taken.token, 1, 1.0, "w0@h:2", {"chunks": 1, "forward_seconds": 1e6})
    ledger.steps.record(taken, space_mark(plan, MODEL), part, b"v")
    last = ledger.steps.take(f"{job.id}.0", "aggregate")
    assert isinstance(last, Taken)
    assert ledger.steps.close(last, 1, 0, 0, 0, []) is not None
    return ledger


def samples(text: str) -> dict[tuple[str, ...], float]:
    """By name and the values of some labels."""
    parser = pytest.importorskip("prometheus_client.parser")
    found: dict[tuple[str, ...], float] = {}
    for family in parser.text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = [
                sample.labels[name] for name in ("worker", "queue", "collection") if name in sample.labels
            ]
            key = (sample.name, *labels)
            assert key not in found, "a scrape with two samples of the same labels is refused"
            found[key] = sample.value
    return found


def test_every_number_is_there_once_and_can_be_parsed(busy: Ledger) -> None:
    found = samples(metrics(busy))
    assert found["v5_worker_busy_seconds_total", "w0@h"] == 90.5
    assert found["v5_worker_working_seconds_total", "w0@h"] == 100.0
    # The one that was started last.
    assert found["v5_worker_chunks_total", "w0@h"] == 7
    assert found["v5_worker_chunks_total", "w1@h"] == 1
    assert found["v5_worker_micro_batch_tokens", "w0@h"] == 768
    assert found["v5_process_ready", "w0@h"] == 1
    assert found["v5_process_ready", "aggregator@h"] == 0
    assert ("v5_worker_chunks_total", "aggregator@h") not in found
    assert found["v5_queue_steps", f"embed.{MODEL}"] == 1
    assert found["v5_queue_steps", "aggregate"] == 0
    assert (found["v5_job_chunks_staged", COLLECTION], found["v5_job_chunks_done", COLLECTION]) == (2, 1)
    assert found["v5_job_open_batches", COLLECTION] == 1
    assert found["v5_job_device_busy", "w0@h", COLLECTION] > 1
    assert 500 < found[("v5_inflight_bytes",)] < 2000
    assert found[("v5_inflight_budget_bytes",)] == busy.blobs.budget(0)


def test_jobs_that_ended_long_ago_are_left_out(busy: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    (job,) = busy.jobs.list()
    busy.jobs.cancel(job.id)
    assert "v5_job_open_batches{" in metrics(busy)
    monkeypatch.setattr("ledger.metrics.ENDED_SECONDS", -10)
    assert "v5_job_open_batches{" not in metrics(busy)


@pytest.fixture
def port(busy: Ledger) -> Iterator[int]:
    server = page(busy, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def fetched(port: int, path: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, answer.headers["Content-Type"], answer.read().decode()
    connection.close()
    return found


def test_they_are_served_until_the_ledger_is_away(port: int, redis_server: subprocess.Popen[bytes]) -> None:
    status, kind, text = fetched(port, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert samples(text)["v5_worker_chunks_total", "w0@h"] == 7
    assert fetched(port, "/")[0] == 404
    redis_server.kill()
    redis_server.wait()
    assert fetched(port, "/metrics")[0] == 503
