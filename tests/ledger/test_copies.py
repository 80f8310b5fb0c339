"""Batches of copies: they wait for the batches of their originals, and become ordinary where these fail."""

from __future__ import annotations

import pytest

from ledger.jobs import DeadLetter, Job
from ledger.ledger import Ledger
from ledger.steps import PartRecord, Refused, Taken, space_mark
from registry.chunks import STORED, Chunk, Original, chunk_id
from registry.frames import pack_chunks
from registry.plan import Plan

MODELS = ("qdrant-minilm-onnx", "all-miniLM-l6")


@pytest.fixture
def job(ledger: Ledger, plan: Plan) -> Job:
    return ledger.jobs.open("c", plan, ["src"])[0]


def stage(ledger: Ledger, job: Job, after: int | None = None, number: int | None = None) -> list[str]:
    """The job's next batch, of one chunk."""
    number = ledger.jobs.get(job.id).next if number is None else number
    original = None if after is None else Original(chunk_id("0"), after)
    blob = pack_chunks([Chunk(chunk_id(str(number)), "text", original=original)])
    names = [vector.name for vector in job.plan.vectors()]
    what = (job.id, job.plan, number, "upsert", names, 1, blob, 100, 1 << 30)
    staged = ledger.steps.stage(*what, after=after)
    assert isinstance(staged, list)
    return staged


def take(ledger: Ledger, job: Job, number: int, step: str = "aggregate") -> Taken:
    taken = ledger.steps.take(f"{job.id}.{number}", step)
    assert isinstance(taken, Taken), taken
    return taken


def embed(ledger: Ledger, job: Job, number: int) -> None:
    for model in MODELS:
        taken = take(ledger, job, number, f"embed.{model}")
        ledger.steps.record(taken, space_mark(job.plan, model), PartRecord(taken.token, 1, 0.1, "w"), b"v")


def close(ledger: Ledger, job: Job, number: int) -> list[str] | None:
    return ledger.steps.close(take(ledger, job, number), 1, 0, 0, 0, [])


def due(ledger: Ledger) -> list[str]:
    return ledger.steps.due("aggregate", 0, 100)


def nothing_left(ledger: Ledger) -> bool:
    return not (ledger.reserved() or any(ledger.depths().values()) or ledger.redis.keys("v5:b[al]*"))


def test_copies_are_rung_when_the_last_batch_that_they_wait_for_has_ended(ledger: Ledger, job: Job) -> None:
    for _ in range(3):
        assert stage(ledger, job) == [f"embed.{model}" for model in MODELS]
    assert stage(ledger, job, after=1) == []
    assert stage(ledger, job, after=STORED) == ["aggregate"]
    assert due(ledger) == []
    for number in range(3):
        embed(ledger, job, number)
    copies = f"{job.id}.3"
    assert close(ledger, job, 0) == []
    assert close(ledger, job, 1) == [copies]
    assert due(ledger) == [copies]
    taken = take(ledger, job, 3)
    assert (taken.copies, taken.models, taken.parts) == (True, (), {})
    assert ledger.steps.wait(taken, {1, STORED}) is False
    assert ledger.steps.close(taken, 1, 0, 0, 0, [], work={"work:cached:m:a": 1}) == []
    assert close(ledger, job, 2) == close(ledger, job, 4) == []
    assert [(one.worker, one.cached) for one in ledger.jobs.get(job.id).work] == [("a", 1)]
    assert nothing_left(ledger)


def test_who_looks_too_early_waits_for_what_is_left_and_is_kept_from_no_other(
    ledger: Ledger, job: Job
) -> None:
    for _ in range(3):
        stage(ledger, job)
    stage(ledger, job, after=2)
    early = take(ledger, job, 3)
    assert ledger.steps.wait(early, {0, 1, STORED}) is True
    # The lease is given back, and a second word of the same holder changes nothing.
    assert ledger.steps.wait(early, {STORED}) is True
    again = take(ledger, job, 3)
    assert ledger.steps.embed(early) == []
    for number in (0, 1, 2):
        embed(ledger, job, number)
    # A holder at work is not rung.
    assert close(ledger, job, 1) == close(ledger, job, 2) == []
    assert due(ledger) == []
    assert ledger.steps.wait(again, {0, 1}) is True
    assert close(ledger, job, 0) == [f"{job.id}.3"]
    assert due(ledger) == [f"{job.id}.3"]


@pytest.mark.parametrize("how", ["dropped", "forgotten"])
def test_copies_look_again_where_what_they_wait_for_is_lost(ledger: Ledger, job: Job, how: str) -> None:
    stage(ledger, job)
    stage(ledger, job, after=0)
    copies = f"{job.id}.1"
    if how == "dropped":
        assert ledger.jobs.drop(f"{job.id}.0")
    else:
        ledger.redis.delete(f"v5:batch:{job.id}.0")
        # What nobody can wake any more is looked at all the same.
        assert ledger.redis.zscore("v5:steps:aggregate", copies) > 0
        ledger.redis.zadd("v5:steps:aggregate", {copies: 1})
    assert due(ledger) == [copies]
    assert ledger.steps.wait(take(ledger, job, 1), {0}) is False


def test_what_waited_and_has_ended_is_not_brought_back(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    stage(ledger, job, after=0)
    ledger.jobs.drop(f"{job.id}.1")
    embed(ledger, job, 0)
    close(ledger, job, 0)
    assert nothing_left(ledger)
    stage(ledger, job)
    stage(ledger, job, after=2)
    assert ledger.jobs.cancel(job.id) == ("cancelled", 2)
    assert nothing_left(ledger)


def test_staging_copies_again_after_a_lost_answer_counts_once(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    assert stage(ledger, job, after=0) == []
    seen = ledger.jobs.get(job.id)
    assert stage(ledger, job, after=0, number=1) == ["aggregate"]
    assert ledger.jobs.get(job.id) == seen
    assert len(ledger.redis.keys(f"v5:blob:{job.id}.1:*")) == 1


def test_copies_without_originals_are_embedded_like_any_others(ledger: Ledger, job: Job) -> None:
    stage(ledger, job, after=STORED)
    reserved = ledger.reserved()
    slept = take(ledger, job, 0)
    ledger.redis.zadd("v5:steps:aggregate", {slept.batch: 1})
    taken = take(ledger, job, 0)
    assert ledger.steps.embed(slept) == []
    assert ledger.steps.embed(taken) == [f"embed.{model}" for model in MODELS]
    assert ledger.steps.embed(taken) == []
    assert ledger.steps.take(taken.batch, "aggregate") == Refused("early")
    assert (ledger.depths()["aggregate"], ledger.reserved()) == (0, reserved)
    embed(ledger, job, 0)
    last = take(ledger, job, 0)
    assert (last.copies, set(last.parts)) == (False, set(MODELS))
    assert ledger.steps.close(last, 1, 0, 0, 0, []) == []
    assert nothing_left(ledger)


def test_dead_letters_are_found_by_id(ledger: Ledger, job: Job) -> None:
    letter = DeadLetter("a", "why", "embed")
    ledger.jobs.bury(job.id, [letter, DeadLetter("b", "why", "read")])
    assert ledger.jobs.letters(job.id, ["x", "a"]) == {"a": letter}
    assert ledger.jobs.letters(job.id, []) == {}
