"""The edge of the task: every failure becomes a move in the ledger; nothing is raised into Celery."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from ledger.ledger import Ledger
from ledger.steps import Refused, Taken
from registry.chunks import Chunk, chunk_id
from registry.errors import BlobLost, DeviceFailed, LedgerFull, SpaceMismatch, StoreRefused, StoreUnavailable
from registry.frames import pack_chunks
from registry.plan import Plan
from worker.edge import MOST_UNEXPECTED, Abandoned, Edge, backoff
from worker.encoders.encode import Stopped

STEP = "embed.qdrant-minilm-onnx"


class Bell:
    def __init__(self) -> None:
        self.rung: list[tuple[str, str]] = []

    def ring(self, batch: str, step: str) -> bool:
        self.rung.append((batch, step))
        return True


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def edge(ledger: Ledger, bell: Bell, ended: list[str]) -> Edge:
    return Edge(ledger, bell, ended.append)  # type: ignore[arg-type]


@pytest.fixture
def batch(ledger: Ledger, plan: Plan) -> str:
    job, _ = ledger.jobs.open("c", plan, ["src"])
    blob = pack_chunks([Chunk(chunk_id("1"), "text")])
    ledger.steps.stage(job.id, plan, 0, "upsert", list(plan.models), 1, blob, 10, 1 << 30)
    return f"{job.id}.0"


def raising(error: BaseException) -> Callable[[Taken], str]:
    def work(_taken: Taken) -> str:
        raise error

    return work


def due_in(ledger: Ledger, batch: str) -> float:
    return float(ledger.redis.zscore(f"v5:steps:{STEP}", batch)) / 1000 - time.time()


@pytest.mark.parametrize("error", [LedgerFull("full"), StoreUnavailable("away"), MemoryError()])
def test_infrastructure_defers_and_counts_against_no_chunk(
    edge: Edge, ledger: Ledger, batch: str, error: BaseException, ended: list[str]
) -> None:
    for _ in range(MOST_UNEXPECTED + 1):
        assert edge.run({"batch": batch, "step": STEP}, raising(error)) == "deferred"
    assert 15 < due_in(ledger, batch) <= backoff(MOST_UNEXPECTED + 1) + 1
    assert ledger.jobs.list()[0].dead == 0
    assert not ended
    assert isinstance(ledger.steps.take(batch, STEP), Taken)


def test_a_stop_gives_the_step_back_at_once_and_rings(
    edge: Edge, ledger: Ledger, batch: str, bell: Bell
) -> None:
    assert edge.run({"batch": batch, "step": STEP}, raising(Stopped("stop"))) == "given back"
    assert due_in(ledger, batch) <= 0
    assert bell.rung == [(batch, STEP)]


def test_lost_text_drops_the_batch(edge: Edge, ledger: Ledger, batch: str) -> None:
    assert edge.run({"batch": batch, "step": STEP}, raising(BlobLost("gone"))) == "dropped"
    assert ledger.steps.take(batch, STEP) == Refused("closed")
    assert ledger.reserved() == 0


def test_a_lost_lease_is_left_to_whoever_has_it(edge: Edge, ledger: Ledger, batch: str) -> None:
    assert edge.run({"batch": batch, "step": STEP}, raising(Abandoned())) == "abandoned"
    assert ledger.steps.take(batch, STEP) == Refused("live")


@pytest.mark.parametrize("error", [SpaceMismatch("a ≠ b"), StoreRefused("the record of c is version 99")])
def test_a_collection_that_cannot_take_the_batch_ends_nobody(
    edge: Edge, ledger: Ledger, batch: str, error: Exception, ended: list[str]
) -> None:
    for _ in range(MOST_UNEXPECTED):
        assert edge.run({"batch": batch, "step": STEP}, raising(error)) == "wrong space"
    assert due_in(ledger, batch) > 10
    assert ledger.jobs.list()[0].dead == 0
    assert not ended


def test_a_process_that_only_fails_ends_itself(edge: Edge, batch: str, ended: list[str]) -> None:
    step = {"batch": batch, "step": STEP}
    for _ in range(MOST_UNEXPECTED - 1):
        assert edge.run(step, raising(RuntimeError("bug"))) == "failed"
    assert edge.run(step, lambda _taken: "fine") == "fine"
    assert not ended


def test_failures_in_a_row_end_it(edge: Edge, ledger: Ledger, batch: str, ended: list[str]) -> None:
    for _ in range(MOST_UNEXPECTED):
        assert edge.run({"batch": batch, "step": STEP}, raising(RuntimeError("bug"))) == "failed"
    assert len(ended) == 1


@pytest.mark.parametrize(
    "message", [{}, {"batch": "x", "step": STEP}, {"batch": "a.1", "step": STEP, "v": 9}]
)
def test_a_foreign_message_is_refused_and_nothing_runs(edge: Edge, message: dict) -> None:
    assert edge.run(message, raising(AssertionError("it ran"))) == "refused"
    assert edge.outcomes == {"refused": 1}


def test_a_device_that_fails_ends_the_process_without_a_word(
    ledger: Ledger, edge: Edge, batch: str, ended: list[str], bell: Bell
) -> None:
    assert edge.step(batch, STEP, raising(DeviceFailed("CUDA error: device-side assert"))) == "device failed"
    assert ended == ["CUDA error: device-side assert"]
    # Once its lease has run out, the batch goes chunk by chunk: a text may have done it.
    ledger.redis.zadd(f"v5:steps:{STEP}", {batch: 1})
    taken = ledger.steps.take(batch, STEP)
    assert isinstance(taken, Taken)
    assert taken.vanished
