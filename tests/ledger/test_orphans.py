"""Orphans: every kind is found and removed, and nothing live is, however old it looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ledger.alive import Process
from ledger.blobs import part_key, text_key
from ledger.jobs import DeadLetter, Job
from ledger.ledger import Ledger
from ledger.orphans import Orphan, Orphans
from ledger.steps import Taken
from registry.chunks import Chunk, chunk_id
from registry.frames import pack_chunks
from registry.plan import Plan

BLOB = pack_chunks([Chunk(chunk_id("1"), "text " * 200)])


@pytest.fixture
def job(ledger: Ledger, plan: Plan) -> Job:
    return ledger.jobs.open("c", plan, ["src"])[0]


def stage(ledger: Ledger, job: Job, n: int = 0) -> str:
    names = [vector.name for vector in job.plan.vectors()]
    ledger.steps.stage(job.id, job.plan, n, "upsert", names, 1, BLOB, 1000, 1 << 30)
    return f"{job.id}.{n}"


def sweep(orphans: Orphans) -> dict[tuple[str, str, str], bool]:
    return {(o.kind, o.name, o.inner): orphans.remove(o) for o in orphans.find()}


def dump(ledger: Ledger) -> dict[bytes, Any]:
    redis = ledger.redis
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"set": redis.smembers,
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
    }
    return {key: read[redis.type(key)](key) for key in redis.scan_iter("v5:*")}


def test_a_job_in_the_middle_of_everything_is_left_alone(ledger: Ledger, job: Job, plan: Plan) -> None:
    batch = stage(ledger, job)
    stage(ledger, job, 1)
    taken = ledger.steps.take(batch, "embed.all-miniLM-l6")
    assert isinstance(taken, Taken)
    ledger.blobs.put(batch, part_key(batch, "all-miniLM-l6", taken.token), b"vectors")
    ledger.jobs.hold(job.id, "host:1")
    ledger.jobs.bury(job.id, [DeadLetter("x", "why", "read")])
    ledger.alive.announce(Process("worker", "w"))
    ledger.requests.ask("1", b"arguments", 60)
    paused, _ = ledger.jobs.open("d", plan, ["other"])
    ledger.redis.hset(f"v5:job:{paused.id}", "state", "paused")
    before = dump(ledger)
    orphans = Orphans(ledger, grace=0)
    assert list(orphans.find()) == []
    assert orphans.unaccounted(correct=True) == 0
    assert dump(ledger) == before


def test_what_a_finished_job_left_goes_and_its_history_stays(ledger: Ledger, job: Job) -> None:
    batch = stage(ledger, job)
    (text,) = (key.decode() for key in ledger.redis.keys("v5:blob:*"))
    ledger.jobs.hold(job.id, "host:1")
    # As a `v5 cancel` leaves it that died after its first script.
    ledger.scripts.run("cancel", job.id)
    ledger.redis.hset("v5:active:c", job.id, "plan")
    ledger.redis.set("v5:adopt:signature", job.id)
    ledger.redis.set(f"v5:job:{job.id}:producer", "host:1")
    ledger.jobs.bury(job.id, [DeadLetter("x", "why", "read")])
    gone = sweep(Orphans(ledger, grace=0))
    assert gone == {
        ("batch", batch, ""): True,
        ("blob", text, ""): True,
        ("active", "c", job.id): True,
        ("adopt", "signature", ""): True,
        ("hold", job.id, ""): True,
    }
    assert ledger.reserved() == 0
    assert ledger.depths()["embed.all-miniLM-l6"] == 0
    assert [letter.id for letter in ledger.jobs.dead(job.id)] == ["x"]
    assert ledger.jobs.get(job.id).state == "cancelled"
    assert sweep(Orphans(ledger, grace=0)) == {}


def test_what_no_job_knows_goes(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    redis = ledger.redis
    redis.set(part_key("gone.3", "bge-m3", "token"), b"x" * 50_000)
    redis.zadd("v5:steps:embed.bge-m3", {"gone.3": 1})
    redis.sadd(f"v5:job:{job.id}:open", f"{job.id}.77")
    redis.zadd("v5:alive", {"w@host:1": 1})
    redis.hset("v5:dead:forgotten", "x", "{}")
    orphans = Orphans(ledger, grace=0)
    found = {(o.kind, o.name, o.inner): o for o in orphans.find()}
    assert set(found) == {
        ("blob", part_key("gone.3", "bge-m3", "token"), ""),
        ("step", "embed.bge-m3", "gone.3"),
        ("open", job.id, f"{job.id}.77"),
        ("alive", "w@host:1", ""),
        ("letters", "forgotten", ""),
    }
    assert found["blob", part_key("gone.3", "bge-m3", "token"), ""].bytes >= 50_000
    assert all(orphans.remove(orphan) for orphan in found.values())
    assert not any(orphans.remove(orphan) for orphan in found.values())
    assert ledger.jobs.get(job.id).open_batches == 1


def test_a_sealed_job_that_waited_for_a_batch_that_is_gone_is_done(ledger: Ledger, job: Job) -> None:
    ledger.redis.sadd(f"v5:job:{job.id}:open", f"{job.id}.77")
    assert ledger.jobs.seal(job.id) == "sealed"
    assert sweep(Orphans(ledger)) == {("open", job.id, f"{job.id}.77"): True}
    assert ledger.jobs.get(job.id).state == "done"


def test_the_young_are_spared_and_looking_does_not_make_young(
    ledger: Ledger, job: Job, eventually: Callable[..., Any]
) -> None:
    batch = stage(ledger, job)
    ledger.scripts.run("cancel", job.id)
    ledger.redis.set(text_key("gone.1", "t"), b"x")
    assert list(Orphans(ledger, grace=60).find()) == []
    orphans = Orphans(ledger, grace=1.5)
    kinds = eventually(lambda: {o.kind for o in orphans.find()} >= {"batch", "blob"}, 20)
    assert kinds
    assert {"batch", "blob"} <= {o.kind for o in orphans.find()}
    assert sweep(orphans)["batch", batch, ""]
    assert not ledger.redis.exists(text_key("gone.1", "t"))


def test_what_came_to_life_between_looking_and_removing_stays(ledger: Ledger, job: Job) -> None:
    orphans = Orphans(ledger, grace=0)
    key = text_key(f"{job.id}.0", "t")
    ledger.redis.set(key, BLOB)
    (orphan,) = orphans.find()
    assert (orphan.kind, orphan.name) == ("blob", key)
    step = Orphan("step", "embed.all-miniLM-l6", f"{job.id}.0")
    alive = Orphan("alive", Process("worker", "w").id)
    stage(ledger, job)
    ledger.alive.announce(Process("worker", "w"))
    assert not any(orphans.remove(one) for one in (orphan, step, alive))
    assert ledger.redis.get(key) == BLOB


def test_a_budget_that_no_batch_accounts_for_is_freed(ledger: Ledger, job: Job) -> None:
    stage(ledger, job)
    right = ledger.reserved()
    ledger.redis.incrby("v5:credit", 5000)
    orphans = Orphans(ledger)
    assert orphans.unaccounted(correct=False) == 5000
    assert ledger.reserved() == right + 5000
    assert orphans.unaccounted(correct=True) == 5000
    assert ledger.reserved() == right
    assert orphans.unaccounted(correct=True) == 0
