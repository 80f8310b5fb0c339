"""Jobs: adopted, refused, held, paused, cancelled."""

from __future__ import annotations

import os
import socket
import subprocess

import pytest

from ledger.jobs import DeadLetter
from ledger.ledger import Ledger
from registry.errors import FleetError, JobUnknown, UsageError
from registry.plan import Plan, make_plan
from registry.settings import Settings


def test_the_same_unfinished_submission_is_adopted(ledger: Ledger, plan: Plan) -> None:
    first, adopted = ledger.jobs.open("c", plan, ["a", "b"])
    assert not adopted
    again, adopted = ledger.jobs.open("c", plan, ["b", "a"])
    assert adopted
    assert again.id == first.id
    assert ledger.jobs.open("c", plan, ["other"])[0].id != first.id


def test_a_finished_submission_is_not_adopted_and_starts_later(ledger: Ledger, plan: Plan) -> None:
    first, _ = ledger.jobs.open("c", plan, ["a"])
    assert ledger.jobs.seal(first.id) == "done"
    second, adopted = ledger.jobs.open("c", plan, ["a"])
    assert not adopted
    assert second.started > first.started


def test_starts_only_move_forward_even_if_the_clock_does_not(ledger: Ledger, plan: Plan) -> None:
    ledger.redis.hset("v5:started", "c", 2**45)
    assert ledger.jobs.open("c", plan, ["a"])[0].started == 2**45 + 1


def test_another_plan_waits_its_turn(ledger: Ledger, plan: Plan) -> None:
    first, _ = ledger.jobs.open("c", plan, ["a"])
    other = make_plan(primary="all-miniLM-l6", fake=True)
    with pytest.raises(UsageError, match=f"unfinished job {first.id}.*v5 cancel {first.id}"):
        ledger.jobs.open("c", other, ["a"])
    ledger.jobs.open("another collection", other, ["a"])
    ledger.jobs.cancel(first.id)
    ledger.jobs.open("c", other, ["a"])


def test_one_producer_holds_a_job(ledger: Ledger, plan: Plan) -> None:
    job, _ = ledger.jobs.open("c", plan, ["a"])
    ledger.jobs.hold(job.id, "me")
    ledger.jobs.hold(job.id, "me")
    with pytest.raises(FleetError, match="submitted by me"):
        ledger.jobs.hold(job.id, "you")
    assert not ledger.jobs.get(job.id).interrupted
    ledger.jobs.let_go(job.id, "you")
    assert not ledger.jobs.get(job.id).interrupted
    ledger.jobs.let_go(job.id, "me")
    assert ledger.jobs.get(job.id).interrupted


def test_the_hold_of_a_process_that_is_gone_is_taken_over(ledger: Ledger, plan: Plan) -> None:
    job, _ = ledger.jobs.open("c", plan, ["a"])
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = socket.gethostname()
    ledger.jobs.hold(job.id, f"{here}:{ended.pid}")
    ledger.jobs.hold(job.id, f"{here}:{os.getpid()}")
    with pytest.raises(FleetError):
        ledger.jobs.hold(job.id, f"{here}:{ended.pid}")
    ledger.jobs.let_go(job.id, f"{here}:{os.getpid()}")
    ledger.jobs.hold(job.id, f"elsewhere:{ended.pid}")
    with pytest.raises(FleetError, match="elsewhere"):
        ledger.jobs.hold(job.id, f"{here}:{os.getpid()}")


def test_dead_letters_count_once_and_pause_the_job_at_the_limit(
    settings: Settings, ledger: Ledger, plan: Plan
) -> None:
    ledger = Ledger(settings.model_copy(update={"max_dead": 3}))
    job, _ = ledger.jobs.open("c", plan, ["a"])
    letters = [DeadLetter(str(i), "why", "read", "f:1") for i in range(3)]
    assert ledger.jobs.bury(job.id, letters[:2]) == "open"
    assert ledger.jobs.bury(job.id, letters[:2]) == "open"
    assert ledger.jobs.get(job.id).dead == 2
    assert ledger.jobs.bury(job.id, letters) == "paused"
    assert {letter.id for letter in ledger.jobs.dead(job.id)} == {"0", "1", "2"}
    # Submitted again, it goes on and tries them again.
    again, adopted = ledger.jobs.open("c", plan, ["a"])
    assert adopted
    assert (again.id, again.state, again.dead) == (job.id, "open", 0)
    assert not list(ledger.jobs.dead(job.id))
    ledger.close()


def test_letters_that_are_forgiven_are_off_the_list_and_the_count(ledger: Ledger, plan: Plan) -> None:
    job, _ = ledger.jobs.open("c", plan, ["a"])
    ledger.jobs.bury(job.id, [DeadLetter(str(i), "why", "read", "f:1") for i in range(3)])
    assert ledger.jobs.forgive(job.id, ["0", "2", "unknown"]) == 2
    assert ledger.jobs.forgive(job.id, ["0"]) == 0
    assert ledger.jobs.get(job.id).dead == 1
    assert [letter.id for letter in ledger.jobs.dead(job.id)] == ["1"]


def test_parts_of_one_corpus_are_jobs_of_their_own(ledger: Ledger, plan: Plan) -> None:
    whole, _ = ledger.jobs.open("c", plan, ["a"])
    first, adopted = ledger.jobs.open("c", plan, ["a"], "shard 1/2")
    assert not adopted
    second, _ = ledger.jobs.open("c", plan, ["a"], "shard 2/2")
    assert len({whole.id, first.id, second.id}) == 3
    assert (whole.part, first.part) == ("", "shard 1/2")
    assert ledger.jobs.open("c", plan, ["a"], "shard 1/2") == (ledger.jobs.get(first.id), True)


def test_an_adopted_job_with_nothing_under_way_starts_anew(ledger: Ledger, plan: Plan) -> None:
    first, _ = ledger.jobs.open("c", plan, ["a"])
    other, _ = ledger.jobs.open("c", plan, ["b"])
    again, adopted = ledger.jobs.open("c", plan, ["a"])
    assert adopted
    assert first.started < other.started < again.started


def test_cancelling_an_old_job_again_leaves_a_newer_one_alone(ledger: Ledger, plan: Plan) -> None:
    old, _ = ledger.jobs.open("c", plan, ["a"])
    assert ledger.jobs.cancel(old.id) == ("cancelled", 0)
    new, _ = ledger.jobs.open("c", plan, ["a"])
    ledger.jobs.cancel(old.id)
    assert ledger.jobs.open("c", plan, ["a"]) == (ledger.jobs.get(new.id), True)
    ledger.jobs.seal(new.id)
    assert ledger.jobs.cancel(new.id) == ("done", 0)


def test_an_unknown_job_is_a_clear_error(ledger: Ledger) -> None:
    with pytest.raises(JobUnknown, match="v5 jobs"):
        ledger.jobs.get("nope")
    with pytest.raises(JobUnknown, match="v5 jobs"):
        ledger.jobs.cancel("nope")


def test_listing_is_newest_first(ledger: Ledger, plan: Plan) -> None:
    ids = [ledger.jobs.open("c", plan, [name])[0].id for name in "ab"]
    ledger.redis.zadd("v5:jobs", {ids[0]: 4e12, ids[1]: 5e12})
    assert [job.id for job in ledger.jobs.list()] == [ids[1], ids[0]]
