"""Goldens kept with a collection: taken from the ledger once, and from then on the collection decides."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from ledger.ledger import Ledger
from registry.chunks import Chunk, chunk_id
from registry.codecs import Dense, Part
from registry.frames import CHECKSUM, pack_chunks
from registry.models import model
from registry.names import golden_key
from registry.plan import Plan, make_plan
from registry.settings import Settings, load_settings
from store.base import Store
from store.edge import EdgeStore
from worker.aggregator import Aggregator
from worker.embedder import EmbedWorker
from worker.encoders.encode import encode
from worker.encoders.fake import POISON_DRIFT, FakeEncoder
from worker.encoders.goldens import Golden, measure, pack_golden
from worker.golden_record import NOTE, GoldenRecords

MODEL = "qdrant-minilm-onnx"


@pytest.fixture
def store(tmp_path: Path, plan: Plan) -> Iterator[Store]:
    found = EdgeStore(tmp_path / "store")
    found.open("c", plan)
    yield found
    found.close()


@pytest.fixture
def records(store: Store, ledger: Ledger) -> GoldenRecords:
    return GoldenRecords(store, ledger.goldens)


@pytest.fixture
def space(plan: Plan) -> str:
    return plan.space(MODEL, "dense").fingerprint


def golden() -> Golden:
    encoder = FakeEncoder(model(MODEL), "", load_settings(fake_encoders=True))
    return measure(encoder, ["dense"])["dense"]


def close_to(one: Golden) -> bytes:
    """Another blob that agrees."""
    noise = np.random.default_rng(1).normal(0, 1e-3, one.vectors.values.shape)
    return pack_golden(replace(one, vectors=Dense((one.vectors.values + noise).astype(np.float32))))


def far_from(one: Golden) -> bytes:
    return pack_golden(replace(one, vectors=Dense(np.roll(one.vectors.values, 1, axis=1))))


def part(blob: bytes | None) -> Part:
    notes: dict[str, Any] = {} if blob is None else {"goldens": {"dense": blob[CHECKSUM].hex()}}
    return Part({"dense": Dense(np.zeros((1, 384), np.float32))}, np.ones(1), np.ones(1), {}, notes)


def test_the_ledgers_goldens_are_kept_with_the_collection(
    store: Store, ledger: Ledger, records: GoldenRecords, plan: Plan, space: str, tmp_path: Path
) -> None:
    records.settle("c", plan)
    assert store.notes("c") == {}
    mine = pack_golden(golden())
    ledger.goldens.offer(space, mine)
    records.settle("c", plan)
    store.close()
    again = EdgeStore(tmp_path / "store")
    assert base64.b64decode(again.notes("c")[NOTE + space]) == mine
    again.close()


def test_the_collections_goldens_go_back_to_a_ledger_that_lost_them(
    ledger: Ledger, records: GoldenRecords, plan: Plan, space: str
) -> None:
    mine = pack_golden(golden())
    ledger.goldens.offer(space, mine)
    records.settle("c", plan)
    ledger.redis.flushall()
    records.settle("c", plan)
    assert ledger.goldens.get(space) == mine


def test_the_collection_wins_over_goldens_that_contradict_it(
    store: Store, ledger: Ledger, records: GoldenRecords, plan: Plan, space: str
) -> None:
    mine, other = pack_golden(golden()), far_from(golden())
    ledger.goldens.offer(space, mine)
    records.settle("c", plan)
    ledger.redis.flushall()
    ledger.goldens.offer(space, other)
    fresh = GoldenRecords(store, ledger.goldens)
    fresh.settle("c", plan)
    assert ledger.goldens.get(space) == mine
    assert fresh.refuses("c", plan, MODEL, part(mine)) == ""
    assert "other golden dense vectors" in fresh.refuses("c", plan, MODEL, part(other))
    assert "other golden dense vectors" in fresh.refuses("c", plan, MODEL, part(None))


def test_a_full_ledger_does_not_keep_the_aggregator_from_writing(
    store: Store, ledger: Ledger, records: GoldenRecords, plan: Plan, space: str
) -> None:
    mine = pack_golden(golden())
    ledger.goldens.offer(space, mine)
    records.settle("c", plan)
    ledger.redis.flushall()
    ledger.redis.config_set("maxmemory", 100)
    fresh = GoldenRecords(store, ledger.goldens)
    fresh.settle("c", plan)
    assert fresh.refuses("c", plan, MODEL, part(mine)) == ""
    assert fresh.refuses("c", plan, MODEL, part(far_from(golden()))) != ""


def test_goldens_that_agree_may_stand_beside_each_other(
    store: Store, ledger: Ledger, plan: Plan, space: str
) -> None:
    """Two collections filled by different devices must not drive each other's workers out."""
    mine, near = pack_golden(golden()), close_to(golden())
    store.open("d", plan)
    records = GoldenRecords(store, ledger.goldens)
    ledger.goldens.offer(space, mine)
    records.settle("c", plan)
    ledger.redis.flushall()
    ledger.goldens.offer(space, near)
    records.settle("d", plan)
    for _ in range(2):
        for collection in ("c", "d"):
            records.settle(collection, plan)
            assert ledger.goldens.get(space) == near
            assert records.refuses(collection, plan, MODEL, part(near)) == ""
    # Made under the collection's own, before the ledger was lost.
    assert records.refuses("c", plan, MODEL, part(mine)) == ""


def test_a_part_is_refused_until_its_goldens_are_known(
    ledger: Ledger, records: GoldenRecords, plan: Plan, space: str
) -> None:
    mine = pack_golden(golden())
    # Nobody has goldens: nothing to hold it against.
    assert records.refuses("c", plan, MODEL, part(mine)) == ""
    # Recorded since: found without being told.
    ledger.goldens.offer(space, mine)
    assert records.refuses("c", plan, MODEL, part(mine)) == ""
    assert records.refuses("c", plan, MODEL, part(far_from(golden()))) != ""
    records.forget("c")
    assert records.refuses("c", plan, MODEL, part(mine)) == ""


class Resigned(BaseException):
    """A worker ended its process."""


def worker_of(settings: Settings, monkeypatch: pytest.MonkeyPatch, *, bad: bool) -> EmbedWorker:
    """A worker that has joined, with a good encoder or one that drifted before it was looked at."""
    worker = EmbedWorker(settings, MODEL)

    def resign(reason: str) -> NoReturn:
        raise Resigned(reason)

    def load(*_: Any, **__: Any) -> FakeEncoder:
        encoder = FakeEncoder(model(MODEL), "", settings)
        if bad:
            encode(encoder, [POISON_DRIFT], "document", ["dense"], device_lock=threading.Lock())
        return encoder

    monkeypatch.setattr(worker, "resign", resign)
    monkeypatch.setattr("worker.embedder.load_encoder", load)
    worker.prepare()
    return worker


def test_vectors_of_a_worker_that_joined_a_ledger_without_goldens_are_not_written(
    ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    plan = make_plan(primary=MODEL, fake=True)
    aggregator = Aggregator(settings)
    aggregator.prepare()
    # Only what the test asks for happens.
    aggregator.stopping.set()
    assert aggregator.store is not None
    job, _ = ledger.jobs.open("c", plan, ["src"])

    def stage(number: int) -> str:
        blob = pack_chunks([Chunk(chunk_id(str(number)), f"text {number}")])
        ledger.steps.stage(job.id, plan, number, "upsert", [MODEL], 1, blob, 10, 1 << 30)
        return f"{job.id}.{number}"

    def embed(worker: EmbedWorker, batch: str) -> str:
        return worker.edge.step(batch, f"embed.{MODEL}", worker._work)

    def aggregate(batch: str) -> str:
        return aggregator.edge.step(batch, "aggregate", aggregator._work)

    good = worker_of(settings, monkeypatch, bad=False)
    first = stage(0)
    assert (embed(good, first), aggregate(first)) == ("embedded", "written")
    space = plan.space(MODEL, "dense").fingerprint
    mine = ledger.goldens.get(space)

    ledger.redis.delete(golden_key(space))
    bad = worker_of(settings, monkeypatch, bad=True)
    second = stage(1)
    assert embed(bad, second) == "embedded"
    assert aggregate(second) == "incomplete"
    assert list(aggregator.store.standing("c", [chunk_id("0"), chunk_id("1")])) == [chunk_id("0")]
    # The collection's goldens stand again; the worker sees them before its next batch, and ends.
    assert ledger.goldens.get(space) == mine
    with pytest.raises(Resigned, match="does not give the golden vectors of its space"):
        embed(bad, second)
    outcome = eventually(lambda: (done := embed(good, second)) == "embedded" and done)
    assert (outcome, aggregate(second)) == ("embedded", "written")
    aggregator.release()
