"""Attempts that vanish without a word: what they leave in the ledger, and who takes it back."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from ledger.alive import Process
from ledger.jobs import Job
from ledger.ledger import Ledger
from ledger.steps import PartRecord, Refused, Steps, Taken, space_mark
from registry.chunks import Chunk, chunk_id
from registry.frames import pack_chunks
from registry.plan import Plan

STEP = "embed.qdrant-minilm-onnx"
OTHER = "embed.all-miniLM-l6"


@pytest.fixture
def batch(ledger: Ledger, plan: Plan) -> str:
    job: Job = ledger.jobs.open("c", plan, ["src"])[0]
    chunks = pack_chunks([Chunk(chunk_id(str(i)), f"text {i}") for i in range(5)])
    ledger.steps.stage(job.id, plan, 0, "upsert", list(plan.models), 5, chunks, 100, 1 << 30)
    return f"{job.id}.0"


def take(ledger: Ledger, batch: str, step: str = STEP) -> Taken:
    taken = ledger.steps.take(batch, step)
    assert isinstance(taken, Taken), taken
    return taken


def runs_out(ledger: Ledger, batch: str, *, reconcile: bool = False, step: str = STEP) -> None:
    """The lease runs out; a reconciler may be the first to see it, or the next to take the step."""
    ledger.redis.zadd(f"v5:steps:{step}", {batch: 1})
    if reconcile:
        assert ledger.steps.due(step, 0, 10) == [batch]


def seen(taken: Taken) -> tuple[bool, dict[int, int]]:
    return taken.vanished, dict(taken.strikes)


@pytest.fixture(params=[False, True], ids=["as a client", "with every answer lost"])
def answers(request: pytest.FixtureRequest, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each script runs once; or twice, as it does where the client never saw the first answer."""
    if request.param:
        run = ledger.scripts.run

        def twice(name: str, *arguments: Any) -> Any:
            first = run(name, *arguments)
            # A reconciler that does not hear what it rang rings it later.
            return first if name == "due" else run(name, *arguments)

        monkeypatch.setattr(ledger.steps, "_run", twice)


@pytest.mark.usefixtures("answers")
@pytest.mark.parametrize("reconcile", [False, True])
def test_a_chunk_that_was_named_when_its_attempt_vanished_has_a_strike(
    ledger: Ledger, batch: str, reconcile: bool
) -> None:
    first = take(ledger, batch)
    assert seen(first) == (False, {})
    runs_out(ledger, batch, reconcile=reconcile)
    second = take(ledger, batch)
    assert seen(second) == (True, {})
    assert ledger.steps.name(second, 3) == "kept"
    runs_out(ledger, batch, reconcile=reconcile)
    third = take(ledger, batch)
    assert seen(third) == (True, {3: 1})
    assert ledger.steps.name(third, 1) == "kept"
    assert ledger.steps.name(third, 3) == "kept"
    runs_out(ledger, batch, reconcile=reconcile)
    fourth = take(ledger, batch)
    assert seen(fourth) == (True, {3: 2})
    assert ledger.steps.name(fourth, 0) == "kept"
    assert ledger.steps.name(fourth, None) == "kept"
    runs_out(ledger, batch, reconcile=reconcile)
    assert seen(take(ledger, batch)) == (True, {3: 2})
    assert seen(take(ledger, batch, OTHER)) == (False, {}), "another model's attempts are its own"


def test_a_step_nobody_took_has_no_attempt_to_vanish(ledger: Ledger, batch: str) -> None:
    runs_out(ledger, batch, reconcile=True)
    runs_out(ledger, batch)
    assert seen(take(ledger, batch)) == (False, {})


def gives_back(steps: Steps, taken: Taken) -> None:
    steps.defer(taken, 0.0)


def renews(steps: Steps, taken: Taken) -> None:
    steps.renew(taken)


def goes_on(steps: Steps, taken: Taken) -> None:
    steps.name(taken, None)


@pytest.mark.usefixtures("answers")
def test_a_word_of_who_slept_takes_back_what_was_held_against_it(ledger: Ledger, batch: str) -> None:
    for word, chunk, overtaken in itertools.product((gives_back, renews, goes_on), (None, 2), (False, True)):
        sleeper = take(ledger, batch)
        assert seen(sleeper) == (False, {})
        if chunk is not None:
            ledger.steps.name(sleeper, chunk)
        runs_out(ledger, batch, reconcile=True)
        after = take(ledger, batch) if overtaken else None
        if after is not None:
            assert seen(after) == (True, {} if chunk is None else {chunk: 1})
        word(ledger.steps, sleeper)
        fields = {name.decode() for name in ledger.redis.hkeys(f"v5:batch:{batch}")}
        assert not {name for name in fields if name.startswith(("strike:", "vanished:"))}
        assert (f"lease:{STEP}" in fields) == (overtaken or word is not gives_back)
        ledger.steps.defer(after or sleeper, 0.0)


def test_who_takes_its_lease_back_takes_the_name_back(ledger: Ledger, batch: str) -> None:
    slow = take(ledger, batch)
    ledger.steps.name(slow, 4)
    runs_out(ledger, batch, reconcile=True)
    assert ledger.steps.renew(slow) == "kept"
    runs_out(ledger, batch)
    assert seen(take(ledger, batch)) == (True, {4: 1})


@pytest.mark.usefixtures("answers")
def test_a_lease_that_was_given_back_leaves_no_name(ledger: Ledger, batch: str) -> None:
    stopped = take(ledger, batch)
    ledger.steps.name(stopped, 2)
    ledger.steps.defer(stopped, 0.0)
    crashed = take(ledger, batch)
    assert seen(crashed) == (False, {})
    runs_out(ledger, batch)
    assert seen(take(ledger, batch)) == (True, {})


def test_only_the_holder_names_a_chunk(ledger: Ledger, batch: str) -> None:
    late = take(ledger, batch)
    runs_out(ledger, batch)
    holder = take(ledger, batch)
    ledger.steps.name(holder, 1)
    assert ledger.steps.name(late, 2) == "lost"
    assert ledger.steps.name(late, None) == "lost"
    assert ledger.redis.hget(f"v5:batch:{batch}", f"named:{STEP}") == b"1"
    ledger.jobs.drop(batch)
    assert ledger.steps.name(holder, 2) == "closed"
    assert not ledger.redis.keys("v5:batch:*")


def test_what_was_held_against_a_chunk_outlives_a_part_that_is_lost(ledger: Ledger, batch: str) -> None:
    for _ in range(2):
        ledger.steps.name(take(ledger, batch), 2)
        runs_out(ledger, batch)
    for step in (STEP, OTHER):
        taken = take(ledger, batch, step)
        ledger.steps.name(taken, 0)
        model = step.removeprefix("embed.")
        part = PartRecord(taken.token, 1, 0.1, "w")
        ledger.steps.record(taken, space_mark(taken.plan, model), part, b"vectors")
        assert ledger.steps.name(taken, 0) == "recorded"
    ready = take(ledger, batch, "aggregate")
    runs_out(ledger, batch, reconcile=True, step="aggregate")
    ledger.steps.unrecord(ready, STEP.removeprefix("embed."))
    assert seen(take(ledger, batch)) == (True, {2: 2})
    runs_out(ledger, batch)
    assert seen(take(ledger, batch)) == (True, {2: 2}), "what an attempt named went with its part"
    assert isinstance(ledger.steps.take(batch, OTHER), Refused)


def test_a_request_is_tried_by_two_processes_and_no_third(ledger: Ledger, eventually: Any) -> None:
    requests, alive = ledger.requests, ledger.alive
    # A container that is started again has the same name, host and pid.
    first, second = (Process("worker", "w", pid=1, since=since) for since in (1.0, 2.0))
    third = Process("worker", "another", pid=7)
    requests.ask("r", b"arguments", 60)
    assert [requests.begin("r", first, 60) for _ in range(3)] == ["free"] * 3
    alive.announce(second)
    assert requests.begin("r", second, 60) == "free"
    assert requests.begin("r", third, 60) == "busy"
    alive.withdraw(second)
    assert requests.begin("r", third, 60) == "spent"
    requests.answer("r", b"refused", third)
    assert requests.begin("r", third, 60) == "spent", "its caller may not have seen the answer"
    requests.forget("r")
    assert not ledger.redis.keys("v5:blob:*")
    assert requests.begin("q", first, 60) == "free"
    requests.answer("q", b"answer", first)
    assert [requests.begin("q", process, 60) for process in (second, third)] == ["free"] * 2
