"""Shards, cancel, retry, repair and gc: a job is steered, and nothing of it stays behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger

pytestmark = pytest.mark.fleet


def lines_of(done: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_shards_of_one_corpus_run_at_once_and_come_to_the_whole(
    fake_fleet: Any, corpus: Callable[..., Path]
) -> None:
    path = corpus(200)
    path.write_text(path.read_text() + "{broken\n")
    fake_fleet.environment["V5_FAKE_SECONDS"] = "0.01"
    fake_fleet.up()
    running = [
        fake_fleet.start("submit", str(path), "-c", "c", "--shard", f"{i}/3", "--json") for i in (1, 2, 3)
    ]
    ends = []
    for submit in running:
        out, err = submit.communicate(timeout=100)
        assert submit.returncode in (0, 3), err
        ends.append(json.loads(out.splitlines()[-1]))
    assert sum(end["done"] for end in ends) == 200
    assert sum(end["dead"] for end in ends) == 1
    assert all(40 < end["done"] < 100 for end in ends)
    jobs = {job["job"]: job["part"] for job in fake_fleet.ok("jobs")}
    assert sorted(jobs.values()) == ["shard 1/3", "shard 2/3", "shard 3/3"]
    assert fake_fleet.ok("verify", str(path), "-c", "c")["present"] == 200
    one = fake_fleet.ok("verify", str(path), "-c", "c", "--shard", "2/3")
    assert one["present"] == ends[1]["done"]
    wrong = fake_fleet.v5("submit", str(path), "-c", "c", "--shard", "4/3")
    assert (wrong.returncode, "is no shard" in wrong.stderr) == (2, True)


def test_cancel_ends_the_job_within_seconds_and_leaves_no_key(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment["V5_FAKE_SECONDS"] = "0.02"
    fake_fleet.up()
    ledger = Ledger(fake_fleet.settings())
    submit = fake_fleet.start("submit", str(corpus(3000)), "-c", "c", "--json")
    job = eventually(lambda: next((j for j in ledger.jobs.list() if j.done and j.open_batches > 3), None))
    dropped = fake_fleet.ok("cancel", job.id)
    assert (dropped["state"], dropped["dropped_batches"] > 0) == ("cancelled", True)
    out, _ = submit.communicate(timeout=10)
    assert submit.returncode == 1
    assert json.loads(out.splitlines()[-1])["state"] == "cancelled"

    def left() -> list[bytes]:
        redis = ledger.redis
        keys = [*redis.scan_iter("v5:batch:*"), *redis.scan_iter(f"v5:blob:{job.id}*")]
        keys += redis.scan_iter("v5:active:*")
        keys += redis.scan_iter("v5:adopt:*")
        keys += redis.scan_iter("v5:job:*:*")
        keys += redis.scan_iter("v5:steps:*")
        return keys

    # A worker may be in the middle of a pass; its vectors go as soon as it hears that nobody wants them.
    eventually(lambda: not left(), 10, "every key of the job is gone")
    assert ledger.reserved() == 0
    stored = ledger.jobs.get(job.id)
    assert (stored.state, stored.open_batches) == ("cancelled", 0)
    again = fake_fleet.ok("cancel", job.id)
    assert again["dropped_batches"] == 0
    assert fake_fleet.ok("submit", str(corpus(50, "next.jsonl")), "-c", "c")["chunks"] == 50
    swept = fake_fleet.ok("gc", "--older-than", "0")
    assert not any(swept["orphans"].values()), swept
    ledger.close()


def test_retry_tries_only_the_dead_letters_and_forgets_those_that_go_through(
    fake_fleet: Any, corpus: Callable[..., Path]
) -> None:
    fake_fleet.up()
    path = corpus(30)
    good = path.read_text().splitlines()
    bad = ["\u0002POISON:raise", "\u0002POISON:nan"]
    dead = [json.dumps({"id": f"p{i}", "text": text}) for i, text in enumerate(bad)]
    path.write_text("\n".join([*good, *dead, "{broken"]) + "\n")
    first = fake_fleet.ends(3, "submit", str(path), "-c", "c")
    assert first["dead"] == 3
    same = fake_fleet.ends(3, "retry", first["job"], str(path))
    assert (same["through"], same["left"]) == (0, 3)
    fixed = json.dumps({"id": "p0", "text": "mended"})
    line = json.dumps({"id": "new", "text": "could not be read before"})
    path.write_text("\n".join([*good, fixed, dead[1], line]) + "\n")
    partly = fake_fleet.ends(3, "retry", first["job"], str(path))
    assert (partly["through"], partly["left"]) == (2, 1)
    jobs = {job["job"]: job for job in fake_fleet.ok("jobs")}
    assert jobs[partly["by"]]["staged"] == 3
    assert jobs[first["job"]]["dead"] == 1
    left = lines_of(fake_fleet.v5("dead", first["job"], "--json"))
    assert [letter["text"] for letter in left] == [bad[1]]
    assert "POISON" in fake_fleet.v5("dead", first["job"]).stdout
    path.write_text("\n".join([*good, fixed, json.dumps({"id": "p1", "text": "mended"}), line]) + "\n")
    last = fake_fleet.ok("retry", first["job"], str(path))
    assert (last["through"], last["left"]) == (1, 0)
    assert fake_fleet.ok("verify", str(path), "-c", "c")["present"] == 33
    assert fake_fleet.ok("retry", first["job"], str(path))["by"] == ""
    assert fake_fleet.v5("retry", "nonsense", str(path)).returncode == 2


def test_repair_embeds_exactly_what_verify_names(fake_fleet: Any, corpus: Callable[..., Path]) -> None:
    fake_fleet.up()
    path = corpus(60)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:50]) + "\n")
    fake_fleet.ok("submit", str(path), "-c", "c")
    changed = json.dumps({"id": "c7", "text": "another text"})
    path.write_text("\n".join([*lines[:7], changed, *lines[8:]]) + "\n")
    done = fake_fleet.v5("verify", str(path), "-c", "c", "--json")
    *named, end = lines_of(done)
    assert done.returncode == 1
    assert (end["missing"], end["stale"], end["present"]) == (10, 1, 49)
    assert [row["kind"] for row in named].count("missing") == 10
    ids = {row["id"] for row in named}
    assert len(ids) == 11
    repaired = fake_fleet.ok("repair", str(path), "-c", "c")
    assert (repaired["before"]["missing"], repaired["after"]["present"]) == (10, 60)
    assert repaired["submission"]["done"] == 11
    assert repaired["submission"]["skipped"] == 0
    stored = fake_fleet.ok("get", next(iter(ids)), "-c", "c")
    assert stored["payload"]["v5"]["job"] == repaired["submission"]["job"]
    assert fake_fleet.ok("repair", str(path), "-c", "c")["submission"] is None
    path.write_text(path.read_text() + json.dumps({"id": "p", "text": "\u0002POISON:raise"}) + "\n")
    dead = fake_fleet.ends(3, "repair", str(path), "-c", "c")
    assert (dead["after"]["missing"], dead["submission"]["dead"]) == (1, 1)


def test_gc_beside_a_running_job_takes_what_is_nobodys_and_nothing_else(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment["V5_FAKE_SECONDS"] = "0.01"
    fake_fleet.up()
    ledger = Ledger(fake_fleet.settings())
    submit = fake_fleet.start("submit", str(corpus(400)), "-c", "c", "--json")
    eventually(lambda: any(job.done for job in ledger.jobs.list()))
    ledger.redis.zadd("v5:steps:aggregate", {"gone.1": 4e12})
    ledger.redis.zadd("v5:alive", {"w@host:1": 4e12})
    ledger.redis.set("v5:blob:gone.1:text", b"x" * 10_000)
    seen = fake_fleet.ok("gc", "--dry-run", "--older-than", "600")
    assert seen["removed"] is False
    assert {kind: n for kind, n in seen["orphans"].items() if n} == {"step": 1, "alive": 1}
    assert ledger.redis.zscore("v5:steps:aggregate", "gone.1") is not None
    # The blob is an orphan only once it is old enough that nobody may be about to open its batch.
    swept = eventually(lambda: (s := fake_fleet.ok("gc", "--older-than", "3"))["orphans"]["blob"] and s, 60)
    assert swept["bytes"] >= 10_000
    assert not ledger.redis.exists("v5:blob:gone.1:text")
    _, err = submit.communicate(timeout=100)
    assert submit.returncode == 0, err
    (job,) = ledger.jobs.list()
    assert (job.done, job.staged, job.lost, job.dead) == (400, 400, 0, 0)
    assert fake_fleet.ok("ps")["processes"]
    assert "nothing to remove" in fake_fleet.v5("gc").stdout
    ledger.close()
