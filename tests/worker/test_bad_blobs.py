"""Blobs that are bombs, nested without end or damaged: text ends its batch as lost, a part is made again."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import xxhash
import zstandard
from safetensors.numpy import save

from ledger.ledger import Ledger
from ledger.steps import PartRecord, Refused, Taken, space_mark
from registry.chunks import Chunk, chunk_id
from registry.frames import MAX_FRAME_BYTES, pack_chunks, seal
from registry.names import QUEUE_AGGREGATE, embed_queue
from registry.plan import Plan, make_plan
from registry.settings import Settings
from worker.aggregator import Aggregator
from worker.edge import MOST_UNEXPECTED
from worker.embedder import EmbedWorker

MODEL = "qdrant-minilm-onnx"
STEP = embed_queue(MODEL)
KINDS = {"chunks": 2, "vectors": 3}


def frame(kind: str, packed: bytes, claimed: int) -> bytes:
    """A compressed blob with a true checksum that claims to hold so many bytes."""
    digest = xxhash.xxh3_128_digest(packed)
    return struct.pack("<4sBBQ16s", b"V5b2", KINDS[kind], 1, claimed, digest) + packed


def bad(kind: str) -> list[bytes]:
    """More blobs than unexpected failures in a row would end a process."""
    zeros = zstandard.ZstdCompressor().compress(b"\0" * (64 << 20))
    about = np.frombuffer(b"[" * 100_000, np.uint8)
    nested = b"[" * 100_000 if kind == "chunks" else save({"about": about})
    odd = b"[[1]]" if kind == "chunks" else save({"about": np.frombuffer(b"[]", np.uint8)})
    return [
        frame(kind, zeros, 10),
        frame(kind, zeros, 64 << 20),
        frame(kind, zeros, MAX_FRAME_BYTES + 1),
        frame(kind, zeros[:-9], 64 << 20),
        seal(kind, nested, compress=True),  # type: ignore[arg-type]
        seal(kind, odd, compress=True),  # type: ignore[arg-type]
        b"",
    ]


@dataclass
class Staged:
    """Batches of one chunk each, one per bad blob."""

    plan: Plan
    job: str
    batches: list[str]


@pytest.fixture
def staged(ledger: Ledger) -> Callable[[int], Staged]:
    def stage(count: int) -> Staged:
        plan = make_plan(primary=MODEL, fake=True)
        job, _ = ledger.jobs.open("c", plan, ["src"])
        blob = pack_chunks([Chunk(chunk_id("1"), "text")])
        for n in range(count):
            ledger.steps.stage(job.id, plan, n, "upsert", list(plan.models), 1, blob, 10, 1 << 30)
        return Staged(plan, job.id, [f"{job.id}.{n}" for n in range(count)])

    return stage


@pytest.fixture
def aggregator(settings: Settings, ledger: Ledger) -> Iterator[Aggregator]:
    process = Aggregator(settings.model_copy(update={"reconcile_seconds": 3600.0}))
    process.prepare()
    yield process
    process.stopping.set()
    process.release()
    process.ledger.close()


def text_key(ledger: Ledger, batch: str) -> bytes:
    (key,) = ledger.redis.keys(f"v5:blob:{batch}:text:*")
    return bytes(key)


def test_bad_text_ends_its_batch_as_lost_at_the_worker(
    settings: Settings, ledger: Ledger, staged: Callable[[int], Staged]
) -> None:
    blobs = bad("chunks")
    assert len(blobs) > MOST_UNEXPECTED
    found = staged(len(blobs))
    worker = EmbedWorker(settings, MODEL)
    worker.prepare()
    for batch, blob in zip(found.batches, blobs, strict=True):
        ledger.redis.set(text_key(ledger, batch), blob)
        assert worker._embed(batch=batch, step=STEP) == "dropped"
        assert ledger.steps.take(batch, STEP) == Refused("closed")
    assert ledger.jobs.get(found.job).lost == len(blobs)
    assert ledger.reserved() == 0
    worker.ledger.close()


def test_a_bad_part_is_made_again_and_bad_text_is_lost_at_the_aggregator(
    ledger: Ledger, aggregator: Aggregator, staged: Callable[[int], Staged]
) -> None:
    parts, texts = bad("vectors"), bad("chunks")
    found = staged(len(parts) + len(texts))
    for batch, blob in zip(found.batches, [*parts, *texts], strict=True):
        taken = ledger.steps.take(batch, STEP)
        assert isinstance(taken, Taken)
        record = PartRecord(taken.token, len(blob), 0.1, "w")
        assert ledger.steps.record(taken, space_mark(found.plan, MODEL), record, blob)
    for batch in found.batches[: len(parts)]:
        assert aggregator._aggregate(batch=batch, step=QUEUE_AGGREGATE) == "incomplete"
        assert not ledger.redis.hexists(f"v5:batch:{batch}", f"part:{MODEL}")
        assert isinstance(ledger.steps.take(batch, STEP), Taken)
    for batch, blob in zip(found.batches[len(parts) :], texts, strict=True):
        ledger.redis.set(text_key(ledger, batch), blob)
        assert aggregator._aggregate(batch=batch, step=QUEUE_AGGREGATE) == "dropped"
    assert ledger.jobs.get(found.job).lost == len(texts)
