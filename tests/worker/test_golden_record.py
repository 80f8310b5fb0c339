"""Goldens kept with a collection: taken from the ledger once, and from then on the collection decides."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ledger.ledger import Ledger
from registry.codecs import CHECKSUM, Dense, Part
from registry.models import model
from registry.plan import Plan
from registry.settings import load_settings
from store.base import Store
from store.edge import EdgeStore
from worker.encoders.fake import FakeEncoder
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
