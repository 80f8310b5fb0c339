"""A query beside the steps of a worker: it waits for the micro-batch on the device and for no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ledger.ledger import Ledger
from registry.codecs import unpack_part
from registry.settings import Settings
from worker.embedder import EmbedWorker
from worker.encoders import budget
from worker.encoders.encode import encode
from worker.encoders.fake import FakeEncoder

#: Four micro-batches.
TEXTS = ["word " * 300] * 16 * 4
QUERY = "a query"


class Device:
    """The worker's encoder, whose passes take as long as the test says."""

    def __init__(self, encoder: FakeEncoder) -> None:
        self.passes: list[str] = []
        self._go_on = threading.Semaphore(0)
        self._forward = encoder.forward
        encoder.forward = self._one_pass  # type: ignore[method-assign]

    def _one_pass(self, batch: Any) -> Any:
        self.passes.append("step" if len(batch.rows) > 1 else "query")
        assert self._go_on.acquire(timeout=20)
        return self._forward(batch)

    def finish(self, count: int = 1) -> None:
        self._go_on.release(count)


@pytest.fixture
def worker(settings: Settings, ledger: Ledger) -> Iterator[EmbedWorker]:
    found = EmbedWorker(settings, "qdrant-minilm-onnx")
    found.prepare()
    yield found
    found.ledger.close()


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_no_micro_batch_begins_while_a_query_waits(
    worker: EmbedWorker, eventually: Callable[..., Any]
) -> None:
    encoder = worker._serving()
    assert isinstance(encoder, FakeEncoder)
    device, answers = Device(encoder), []

    def step() -> None:
        encode(encoder, TEXTS, "document", ["dense"], device_lock=worker._device)

    steps = [in_thread(step) for _ in range(EmbedWorker.threads)]
    eventually(lambda: device.passes == ["step"] and worker._device._waiting[False] == 1)
    query = in_thread(lambda: answers.append(worker._embed_texts({"texts": [QUERY]})))
    eventually(lambda: worker._device._waiting[True] == 1)
    device.finish()
    eventually(lambda: len(device.passes) == 2)
    assert device.passes == ["step", "query"]
    device.finish(20)
    for thread in [*steps, query]:
        thread.join(20)
    # The first of each thread was on its way when the query came; the others are of half the size since.
    assert device.passes.count("step") == 2 * (1 + 3 * 2)
    assert len(unpack_part(answers[0])) == 1


def test_micro_batches_are_smaller_until_no_query_has_come_for_a_while(
    worker: EmbedWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = worker._serving()

    def widest() -> int:
        sizes: list[int] = []
        forward = encoder.forward
        with monkeypatch.context() as patched:
            patched.setattr(encoder, "forward", lambda b: sizes.append(b.padded_tokens) or forward(b))
            part = encode(encoder, TEXTS, "document", ["dense"], device_lock=worker._device)
        assert not part.rejected
        return max(sizes)

    usual = widest()
    assert encoder.budget.now == encoder.budget.tokens >= usual > encoder.budget.tokens / 2
    worker._embed_texts({"texts": [QUERY]})
    assert widest() <= encoder.budget.tokens / 2
    monkeypatch.setattr(budget, "QUERIES_COME", 0.0)
    assert widest() == usual


def test_a_query_does_not_wait_for_a_look_at_the_golden_vectors(
    worker: EmbedWorker, eventually: Callable[..., Any]
) -> None:
    gate, answers = worker._gate, []
    assert gate is not None
    # As a thread has it that holds the encoder against the golden vectors, pass by pass.
    with gate._lock:
        query = in_thread(lambda: answers.append(worker._embed_texts({"texts": [QUERY]})))
        query.join(20)
        assert answers
