"""What a worker counts: time on the device once, however many threads share it; tokens, passes, chunks."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from ledger.ledger import Ledger
from registry.chunks import Chunk, chunk_id
from registry.frames import pack_chunks
from registry.models import model
from registry.plan import make_plan
from registry.settings import Settings, load_settings
from worker.counters import Counters, Stopwatch
from worker.embedder import EmbedWorker
from worker.encoders.base import MicroBatch
from worker.encoders.encode import encode
from worker.encoders.fake import POISON_OOM, FakeEncoder

MODEL = "qdrant-minilm-onnx"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Timed(FakeEncoder):
    """Each step takes a known time by a made-up clock."""

    clock: Clock

    def prepare(self, *given: Any) -> Any:
        self.clock.now += 1.0
        return super().prepare(*given)

    def forward(self, batch: MicroBatch) -> Any:
        self.clock.now += 10.0
        return super().forward(batch)

    def finish(self, *given: Any) -> Any:
        self.clock.now += 100.0
        return super().finish(*given)


@pytest.fixture
def encoder(tmp_path, monkeypatch):
    made = Timed(model(MODEL), "", load_settings(data_dir=tmp_path, fake_encoders=True))
    made.clock = Clock()
    monkeypatch.setattr("time.perf_counter", made.clock)
    return made


def run(encoder: Any, texts: list[str], counters: Counters) -> Any:
    lock = threading.Lock()
    return encode(encoder, texts, "document", ["dense"], device_lock=lock, counters=counters)


def counted(encoder: Any) -> Counters:
    counters = Counters()
    counters.device = Stopwatch(encoder.clock)
    return counters


def test_the_device_is_busy_in_the_forward_pass_and_in_nothing_else(encoder):
    counters = counted(encoder)
    part = run(encoder, ["word " * 900] * 20, counters)
    passes = round(part.notes["forward_seconds"] / 10)
    assert passes > 1
    assert part.notes["tokenise_seconds"] == 1.0
    totals = counters.totals()
    assert totals["busy_seconds"] == 10.0 * passes
    assert totals["tokenise_seconds"] == 1.0
    assert totals["useful_tokens"] == part.notes["useful_tokens"] == part.tokens_kept.sum()
    assert totals["padded_tokens"] == part.notes["padded_tokens"]


def test_where_a_pass_only_starts_in_forward_the_device_is_busy_until_its_results_are_there(encoder):
    object.__setattr__(encoder.numerics, "device", "cuda:0")
    part = run(encoder, ["one"], counted(encoder))
    assert part.notes["forward_seconds"] == 110.0
    object.__setattr__(encoder.numerics, "backend", "onnxruntime")
    assert run(encoder, ["one"], counted(encoder)).notes["forward_seconds"] == 10.0


def test_a_pass_that_fails_kept_the_device_busy_too(encoder):
    counters = counted(encoder)
    part = run(encoder, ["one", "two" + POISON_OOM], counters)
    assert list(part.rejected) == [1]
    assert counters.totals()["out_of_memory"] == part.notes["oom"]
    assert part.notes["forward_seconds"] == counters.totals()["busy_seconds"] > 30


def test_a_moment_shared_by_two_threads_counts_once_and_for_one_of_them():
    clock = Clock()
    watch = Stopwatch(clock)
    with watch.running():
        clock.now += 2.0
        with watch.running():
            clock.now += 3.0
        first = watch.take()
        clock.now += 4.0
    clock.now += 50.0
    assert (first, watch.take(), watch.take(), watch.seconds) == (5.0, 4.0, 0.0, 9.0)


def test_a_worker_announces_its_totals_and_leaves_each_parts_with_it(
    ledger: Ledger, settings: Settings
) -> None:
    worker = EmbedWorker(settings.model_copy(update={"fake_seconds": 0.001}), MODEL)
    worker.prepare()
    plan = make_plan(primary=MODEL, fake=True)
    job, _ = ledger.jobs.open("c", plan, ["src"])
    notes = []
    for n in range(2):
        blob = pack_chunks([Chunk(chunk_id(str(i)), f"text {i} of {n}") for i in range(4)])
        ledger.steps.stage(job.id, plan, n, "upsert", [MODEL], 4, blob, 10, 1 << 30)
        assert worker._embed(batch=f"{job.id}.{n}", step=f"embed.{MODEL}") == "embedded"
        notes.append(ledger.steps.take(f"{job.id}.{n}", "aggregate").parts[MODEL].notes)
    worker.refresh()
    ledger.alive.announce(worker.process)
    (seen,) = ledger.alive.list()
    worker.ledger.close()
    assert seen.counters["chunks"] == 8
    assert [note["chunks"] for note in notes] == [4, 4]
    for name in ("useful_tokens", "padded_tokens"):
        assert seen.counters[name] == sum(note[name] for note in notes) > 0
    # Neither the warm-up nor the golden vectors of the start are among them.
    assert seen.counters["busy_seconds"] == pytest.approx(
        sum(note["forward_seconds"] for note in notes), abs=0.01
    )
    assert 0.008 <= seen.counters["busy_seconds"] < seen.counters["working_seconds"]
    assert seen.counters["micro_batch_tokens"] == worker.encoder.budget.tokens
