"""The life of a batch, move by move: each check first, each repeated or late move changing nothing."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest

from ledger.blobs import part_key
from ledger.jobs import DeadLetter, Job
from ledger.ledger import Ledger
from ledger.steps import Full, PartRecord, Refused, Taken, space_mark
from ledger.work import since, told
from registry.chunks import Chunk, chunk_id
from registry.errors import BlobLost, JobClosed, LedgerRewound, SpaceMismatch
from registry.frames import pack_chunks
from registry.plan import Plan

MODELS = ("qdrant-minilm-onnx", "all-miniLM-l6")
FIRST = "embed.qdrant-minilm-onnx"
SECOND = "embed.all-miniLM-l6"
CHUNKS = [Chunk(chunk_id(str(i)), f"text {i}") for i in range(3)]


@pytest.fixture
def job(ledger: Ledger, plan: Plan) -> Job:
    return ledger.jobs.open("c", plan, ["src"])[0]


def stage(ledger: Ledger, job: Job, n: int = 0, limit: int = 1 << 30, reserve: int = 1000) -> object:
    names = [vector.name for vector in job.plan.vectors()]
    return ledger.steps.stage(
        job.id, job.plan, n, "upsert", names, len(CHUNKS), pack_chunks(CHUNKS), reserve, limit
    )


def take(ledger: Ledger, job: Job, step: str, n: int = 0) -> Taken:
    taken = ledger.steps.take(f"{job.id}.{n}", step)
    assert isinstance(taken, Taken), taken
    return taken


def embed(ledger: Ledger, job: Job, step: str, n: int = 0) -> bool:
    taken = take(ledger, job, step, n)
    return finish(ledger, taken)


def finish(ledger: Ledger, taken: Taken) -> bool:
    model, blob = taken.step.removeprefix("embed."), b"vectors of " + taken.token.encode()
    part = PartRecord(taken.token, len(blob), 0.1, "w")
    return ledger.steps.record(taken, space_mark(taken.plan, model), part, blob)


def test_a_batch_goes_from_staging_to_done_and_leaves_nothing(ledger: Ledger, job: Job) -> None:
    assert stage(ledger, job) == [FIRST, SECOND]
    assert ledger.reserved() > 1000
    assert ledger.depths() == {"aggregate": 0, FIRST: 1, SECOND: 1}
    assert embed(ledger, job, FIRST) is False
    assert ledger.steps.take(f"{job.id}.0", "aggregate") == Refused("early")
    assert embed(ledger, job, SECOND) is True
    taken = take(ledger, job, "aggregate")
    assert ledger.steps.chunks(taken) == CHUNKS
    assert set(taken.parts) == set(MODELS)
    assert ledger.steps.close(taken, 3, 30, 20, 1, []) == []
    seen = ledger.jobs.get(job.id)
    assert (seen.done, seen.open_batches, seen.tokens_seen, seen.truncated) == (3, 0, 30, 1)
    assert ledger.reserved() == 0
    assert set(ledger.depths().values()) == {0}
    assert not ledger.redis.keys("v5:blob:*")
    assert not ledger.redis.keys("v5:batch:*")


def test_who_holds_a_job_learns_at_once_that_nothing_of_it_is_open(ledger: Ledger, job: Job) -> None:
    """Whether it waits already or comes a moment later; and what is dropped counts, too."""
    key = f"v5:job:{job.id}:idle"
    stage(ledger, job, 0)
    ledger.jobs.drop(f"{job.id}.0")
    assert not ledger.redis.exists(key), "a word that nobody holds the job to hear"
    ledger.jobs.hold(job.id, "me")
    for number in (1, 2, 3):
        stage(ledger, job, number)
    ledger.jobs.drop(f"{job.id}.1")
    ledger.jobs.drop(f"{job.id}.2")
    assert not ledger.redis.exists(key), "one is open"
    dropping = threading.Timer(0.3, ledger.jobs.drop, [f"{job.id}.3"])
    dropping.start()
    began = time.monotonic()
    ledger.jobs.await_idle(job.id, 20.0)
    assert 0.2 < time.monotonic() - began < 10.0
    dropping.join()
    stage(ledger, job, 4)
    ledger.jobs.drop(f"{job.id}.4")
    assert 0 < ledger.redis.pttl(key) <= 1000
    began = time.monotonic()
    ledger.jobs.await_idle(job.id, 20.0)
    assert time.monotonic() - began < 10.0
    assert not ledger.redis.exists(key)
    began = time.monotonic()
    ledger.jobs.await_idle(job.id, 0.2)
    assert time.monotonic() - began > 0.1


def test_closing_twice_counts_once(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    embed(ledger, job, FIRST)
    embed(ledger, job, SECOND)
    taken = take(ledger, job, "aggregate")
    letter = DeadLetter("x", "why", "embed")
    assert ledger.steps.close(taken, 2, 0, 0, 0, [letter]) == []
    assert ledger.steps.close(taken, 2, 0, 0, 0, [letter]) is None
    seen = ledger.jobs.get(job.id)
    assert (seen.done, seen.dead) == (2, 1)
    assert list(ledger.jobs.dead(job.id)) == [letter]


def test_staging_again_after_a_lost_answer_counts_once(ledger: Ledger, job: Job) -> None:
    assert stage(ledger, job) == stage(ledger, job)
    reserved = ledger.reserved()
    assert stage(ledger, job) == [FIRST, SECOND]
    assert ledger.reserved() == reserved
    seen = ledger.jobs.get(job.id)
    assert (seen.staged, seen.next, seen.batches) == (3, 1, 1)


def test_staging_again_after_the_batch_was_done_opens_nothing(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    ledger.jobs.drop(f"{job.id}.0")
    assert stage(ledger, job) == [FIRST, SECOND]
    assert ledger.jobs.get(job.id).open_batches == 0
    assert ledger.steps.take(f"{job.id}.0", FIRST) == Refused("closed")


def test_a_number_out_of_turn_shows_that_redis_went_back(ledger: Ledger, job: Job) -> None:
    with pytest.raises(LedgerRewound):
        stage(ledger, job, n=5)
    assert not ledger.redis.keys("v5:blob:*")


def test_the_budget_refuses_but_always_allows_one(ledger: Ledger, job: Job) -> None:
    assert stage(ledger, job, 0, limit=10) == [FIRST, SECOND]
    full = stage(ledger, job, 1, limit=10)
    assert isinstance(full, Full)
    assert full.used == ledger.reserved()
    assert not ledger.redis.keys(f"v5:blob:{job.id}.1:*")
    ledger.jobs.drop(f"{job.id}.0")
    assert stage(ledger, job, 1, limit=10) == [FIRST, SECOND]


def test_a_live_lease_keeps_others_away_until_it_runs_out(ledger: Ledger, job: Job, eventually) -> None:
    stage(ledger, job)
    first = take(ledger, job, FIRST)
    assert ledger.steps.take(first.batch, FIRST) == Refused("live")
    assert ledger.steps.renew(first) == "kept"
    ledger.redis.zadd(f"v5:steps:{FIRST}", {first.batch: 1})
    second = take(ledger, job, FIRST)
    assert second.tries == 2
    assert ledger.steps.renew(first) == "lost"
    assert ledger.steps.renew(second) == "kept"


def test_of_two_workers_the_first_to_finish_wins_and_the_other_loses_only_its_own(
    ledger: Ledger, job: Job
) -> None:
    stage(ledger, job)
    slow = take(ledger, job, FIRST)
    ledger.redis.zadd(f"v5:steps:{FIRST}", {slow.batch: 1})
    fast = take(ledger, job, FIRST)
    assert finish(ledger, fast) is False
    assert finish(ledger, slow) is False
    batch = slow.batch
    assert ledger.redis.exists(part_key(batch, MODELS[0], fast.token)) == 1
    assert ledger.redis.exists(part_key(batch, MODELS[0], slow.token)) == 0
    assert embed(ledger, job, SECOND) is True
    assert take(ledger, job, "aggregate").parts[MODELS[0]].token == fast.token


def test_recording_again_after_a_lost_answer_says_the_same(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    embed(ledger, job, FIRST)
    taken = take(ledger, job, SECOND)
    assert finish(ledger, taken) is True
    assert finish(ledger, taken) is True
    assert ledger.redis.exists(part_key(taken.batch, MODELS[1], taken.token)) == 1
    assert int(ledger.redis.hget(f"v5:batch:{taken.batch}", "wait")) == 0


def test_a_part_of_another_space_is_refused(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    taken = take(ledger, job, FIRST)
    with pytest.raises(SpaceMismatch, match="wants qdrant-minilm-onnx in space"):
        ledger.steps.record(taken, "another", PartRecord(taken.token, 1, 0.1, "w"), b"x")
    assert not ledger.redis.keys(f"v5:blob:{taken.batch}:{MODELS[0]}:*")
    assert ledger.steps.take(taken.batch, "aggregate") == Refused("early")


def test_a_lost_part_is_due_again_only_if_it_still_stands(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    embed(ledger, job, FIRST)
    embed(ledger, job, SECOND)
    old = take(ledger, job, "aggregate")
    ledger.steps.unrecord(old, MODELS[0])
    assert ledger.depths() == {"aggregate": 0, FIRST: 1, SECOND: 0}
    assert embed(ledger, job, FIRST) is True
    ledger.steps.unrecord(old, MODELS[0])  # late: the part of that token is not the one that stands
    assert ledger.depths() == {"aggregate": 1, FIRST: 0, SECOND: 0}


def test_an_aggregator_whose_batch_lost_a_part_does_not_get_it_back(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    embed(ledger, job, FIRST)
    embed(ledger, job, SECOND)
    slow = take(ledger, job, "aggregate")
    ledger.steps.unrecord(slow, MODELS[0])
    assert ledger.steps.renew(slow) == "lost"
    assert ledger.depths() == {"aggregate": 0, FIRST: 1, SECOND: 0}
    assert embed(ledger, job, FIRST) is True
    assert take(ledger, job, "aggregate").tries == 2


def test_deferring_gives_the_step_back(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    taken = take(ledger, job, FIRST)
    ledger.steps.defer(taken, 0.0)
    assert ledger.steps.due(FIRST, 0, 10) == [taken.batch]
    again = take(ledger, job, FIRST)
    ledger.steps.defer(taken, 0.0)  # late, by the one that had it before
    assert ledger.steps.renew(again) == "kept"


def test_overdue_steps_are_rung_oldest_first_and_never_beyond_what_waits(ledger: Ledger, job: Job) -> None:
    for n in range(4):
        stage(ledger, job, n)
        ledger.redis.zadd(f"v5:steps:{FIRST}", {f"{job.id}.{n}": n + 1})
    assert ledger.steps.due(FIRST, 4, 10) == []
    assert ledger.steps.due(FIRST, 3, 10) == [f"{job.id}.0"]
    assert ledger.steps.due(FIRST, 0, 2) == [f"{job.id}.1", f"{job.id}.2"]
    assert ledger.steps.due(FIRST, 0, 10) == [f"{job.id}.3"]
    assert ledger.steps.due(FIRST, 0, 10) == []


def test_ringing_an_overdue_step_ends_the_lease_that_ran_out(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    sleeper = take(ledger, job, FIRST)
    ledger.redis.zadd(f"v5:steps:{FIRST}", {sleeper.batch: 1})
    ledger.steps.due(FIRST, 0, 10)
    assert isinstance(ledger.steps.take(sleeper.batch, FIRST), Taken)
    assert ledger.steps.renew(sleeper) == "lost"


def test_a_slow_worker_takes_its_lease_back_if_nobody_has_it(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    slow = take(ledger, job, FIRST)
    ledger.redis.zadd(f"v5:steps:{FIRST}", {slow.batch: 1})
    ledger.steps.due(FIRST, 0, 10)
    assert ledger.steps.renew(slow) == "kept"
    assert ledger.steps.take(slow.batch, FIRST) == Refused("live")
    assert finish(ledger, slow) is False
    assert ledger.steps.renew(slow) == "recorded"


def test_dropping_leaves_no_blob_of_any_part(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    embed(ledger, job, FIRST)
    assert len(ledger.redis.keys("v5:blob:*")) == 2
    assert ledger.jobs.drop(f"{job.id}.0") is True
    assert not ledger.redis.keys("v5:blob:*")


def test_a_batch_whose_text_is_gone_or_damaged_is_dropped_as_lost(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    taken = take(ledger, job, FIRST)
    blob = bytearray(ledger.redis.get(taken.text))
    # What came with the lease stays; whoever takes it next sees what has become of it.
    blob[-1] ^= 1
    ledger.redis.set(taken.text, bytes(blob))
    assert ledger.steps.chunks(taken) == CHUNKS
    for why in ("damaged", "gone"):
        ledger.steps.defer(taken, 0.0)
        taken = take(ledger, job, FIRST)
        for fetched in (taken.fetched, None):
            with pytest.raises(BlobLost, match=why):
                ledger.steps.chunks(replace(taken, fetched=fetched))
        ledger.redis.unlink(taken.text)
    assert ledger.jobs.drop(taken.batch) is True
    assert ledger.jobs.drop(taken.batch) is False
    assert ledger.reserved() == 0
    assert ledger.jobs.get(job.id).lost == 3


def test_a_closed_batch_cannot_be_revived(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    late = take(ledger, job, FIRST)
    ledger.jobs.drop(late.batch)
    assert ledger.steps.renew(late) == "closed"
    ledger.steps.defer(late, 0.0)
    assert finish(ledger, late) is False
    ledger.steps.unrecord(
        Taken(**{**late.__dict__, "parts": {MODELS[0]: PartRecord("t", 1, 0.1, "w")}}), MODELS[0]
    )
    assert not ledger.redis.keys("v5:batch:*")
    assert not ledger.redis.keys("v5:blob:*")
    assert set(ledger.depths().values()) == {0}


def test_a_sealed_job_takes_nothing_and_is_done_with_its_last_batch(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    assert ledger.jobs.seal(job.id) == "sealed"
    with pytest.raises(JobClosed, match="sealed"):
        stage(ledger, job, 1)
    ledger.jobs.drop(f"{job.id}.0")
    assert ledger.jobs.get(job.id).state == "done"


def test_every_blob_has_a_ttl(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    embed(ledger, job, FIRST)
    keys = ledger.redis.keys("v5:blob:*")
    assert len(keys) == 2
    assert all(ledger.redis.ttl(key) > 3600 for key in keys)


def test_what_each_worker_did_moves_with_its_batch_once(ledger: Ledger, job: Job) -> None:
    def record(taken: Taken, worker: str, seconds: float) -> None:
        model = taken.step.removeprefix("embed.")
        notes = {"chunks": 3, "forward_seconds": seconds, "useful_tokens": 90, "padded_tokens": 100}
        part = PartRecord(taken.token, 1, 9.0, worker, notes)
        ledger.steps.record(taken, space_mark(taken.plan, model), part, b"vectors")
        ledger.steps.record(taken, space_mark(taken.plan, model), part, b"vectors")

    for n, pid in enumerate((7, 8)):
        stage(ledger, job, n)
        record(take(ledger, job, FIRST, n), f"w1@host:{pid}", 0.25)
        record(take(ledger, job, SECOND, n), f"w2@host:{pid}", 4.0)
        assert len(ledger.jobs.get(job.id).work) == 2 * n
        taken = take(ledger, job, "aggregate", n)
        assert [ledger.steps.close(taken, 3, 0, 0, 0, []) for _ in range(2)] == [[], None]
    first, second = ledger.jobs.get(job.id).work
    assert (first.worker, first.model, first.chunks, first.forward_seconds) == ("w1@host", MODELS[0], 6, 0.5)
    assert (second.worker, second.forward_seconds, second.padding_waste) == (
        "w2@host",
        8.0,
        pytest.approx(0.1),
    )
    (row, _) = ledger.jobs.get(job.id).summary()["workers"]
    assert row["device_busy"] * ledger.jobs.get(job.id).seconds * 1.01 >= 0.5
    assert second.summary(10.0)["device_busy"] == 0.8
    assert told(second.summary(10.0)) == "w2@host: device busy 80%, 6 chunks, 10.0% padding"
    assert since([first, second], [first]) == [second]
