"""The oracle itself: it is content with what is right, and names what is lost, wrong or too much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ledger.ledger import Ledger
from registry.plan import Ensemble, Plan, make_plan
from registry.settings import Settings
from store.base import Point
from store.edge import EdgeStore
from store.points import build_point
from tests.chaos.material import Material
from tests.chaos.oracle import Encoders, Expected, Findings, check_ledger, check_store, read_expected

PLANS = (
    make_plan(
        primary="qdrant-minilm-onnx",
        companions=["all-miniLM-l6"],
        ensemble=Ensemble(members=("qdrant-minilm-onnx", "all-miniLM-l6")),
        fake=True,
    ),
    make_plan(
        primary="jina-code-embeddings-1.5b",
        matryoshka={"jina-code-embeddings-1.5b": (256,)},
        companions=["bge-m3"],
        outputs={"bge-m3": ("dense", "sparse", "multi")},
        fake=True,
    ),
)


@pytest.fixture
def expected(settings: Settings, corpus: Callable[..., Path]) -> Expected:
    found = read_expected([corpus(20)], settings, None)
    assert len(found.chunks) == 20
    return found


def points(expected: Expected, encoders: Encoders) -> list[Point]:
    return [build_point(c, encoders.vectors(c.text), "j", 1) for c in expected.chunks.values()]


def found_in(settings: Settings, plan: Plan, expected: Expected, standing: list[Point]) -> Findings:
    store = EdgeStore(settings.data_dir / "store", min_free_bytes=0)
    store.open("c", plan)
    store.upsert("c", standing, 1)
    store.close()
    found = Findings()
    check_store(settings, "c", expected, Encoders(plan, settings), plan, found)
    return found


@pytest.mark.parametrize("plan", PLANS)
def test_it_names_what_is_lost_wrong_or_too_much(plan: Plan, settings: Settings, expected: Expected) -> None:
    encoders = Encoders(plan, settings)
    first, second, third, *others = points(expected, encoders)
    name = next(vector.name for vector in plan.vectors() if vector.derived)
    # One value of a derived vector by one part in ten thousand, and another chunk's primary vector.
    values = np.array(first.vectors[name])
    values[0] += 1e-4
    off = replace(first, vectors={**first.vectors, name: values})
    swapped = replace(second, vectors={**second.vectors, plan.primary: third.vectors[plan.primary]})
    stale = replace(others[0], payload={**others[0].payload, "metadata": {"n": -1}})
    foreign = replace(others[1], id="00000000-0000-4000-8000-000000000000")
    found = found_in(settings, plan, expected, [off, swapped, third, stale, foreign, *others[2:]])
    assert found.lost == [f"{others[1].id} {expected.chunks[others[1].id].where}"]
    assert found.extra == [foreign.id]
    assert sorted(found.wrong) == sorted(
        [f"{first.id} vector {name}", f"{second.id} vector {plan.primary}", f"{stale.id} payload: metadata"]
        # What is made of the swapped vector is not: only what stands is compared.
    )


@pytest.mark.parametrize("plan", PLANS)
def test_it_is_content_with_what_is_right(plan: Plan, settings: Settings, expected: Expected) -> None:
    assert list(found_in(settings, plan, expected, points(expected, Encoders(plan, settings)))) == []


def test_it_names_counters_that_are_off_and_keys_that_stay(
    ledger: Ledger, plan: Plan, expected: Expected
) -> None:
    job, _ = ledger.jobs.open("c", plan, ["s"])
    ledger.jobs.seal(job.id)
    clean, found = Findings(), Findings()
    check_ledger(ledger, job.id, expected, clean)
    assert list(clean) == []
    redis: Any = ledger.redis
    redis.hset(f"v5:job:{job.id}", "staged", 3)
    redis.set("v5:blob:x.0:text", b"x")
    redis.zadd("v5:steps:aggregate", {"gone.1": 1})
    redis.incrby("v5:credit", 5)
    check_ledger(ledger, job.id, expected, found)
    assert [one for one in found.counters if "3 staged, 0 done" in one]
    assert [one for one in found.counters if "5 bytes" in one]
    assert {one.split()[0] for one in found.keys} >= {"v5:blob:x.0:text", "v5:steps:aggregate", "step"}


def test_letters_may_go_with_a_wiped_redis_and_not_otherwise(ledger: Ledger, expected: Expected) -> None:
    poison = min(expected.chunks)
    expected = replace(expected, poison=frozenset({poison}))
    wiped, found = Findings(), Findings()
    check_ledger(ledger, "gone", expected, wiped, wiped=True)
    assert list(wiped) == []
    check_ledger(ledger, "gone", expected, found)
    assert list(found) == [f"dead: {poison} is poison and not among them"]


def test_a_corpus_has_equal_texts_and_of_these_one_is_embedded(settings: Settings, tmp_path: Path) -> None:
    plan = PLANS[0]
    encoders = Encoders(plan, settings)
    material = Material(tmp_path / "corpus", 1)
    before = None
    for _ in range(2):
        expected = read_expected(material.paths, settings, before)
        stood = {chunk.text for chunk in before.standing.values()} if before else set()
        texts = [chunk.text for chunk in expected.good.values()]
        assert len(texts) - len(set(texts)) > 10
        fresh = len(set(texts) - stood) + len(expected.poison)
        assert encoders.embedded(expected, before) == fresh * len(plan.models)
        before = expected
        material.change()
