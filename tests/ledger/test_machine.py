"""The ledger's state machine under all interleavings: writes, crashes, sleepers, repeats, lost blobs.

Hypothesis draws sequences of moves; a model in plain Python says what each must have come to. Leases run out
by setting the moment they end into the past, which is all that time does to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ledger.blobs import part_key
from ledger.jobs import DeadLetter
from ledger.ledger import Ledger
from ledger.steps import Full, Kind, PartRecord, Refused, Taken, space_mark
from registry.chunks import Chunk, chunk_id
from registry.errors import LedgerRewound
from registry.frames import pack_chunks
from registry.plan import Plan
from registry.settings import Settings

AGGREGATE = "aggregate"
STEPS = ["embed.qdrant-minilm-onnx", "embed.all-miniLM-l6", AGGREGATE]
#: Room for about three batches, so that the budget is felt.
LIMIT = 3300
RESERVE = 1000


@dataclass
class Batch:
    """What must be true of a batch."""

    n: int
    count: int
    credit: int
    chunks: list[Chunk]
    models: tuple[str, ...]
    open: bool = True
    #: Token of the recorded part, by model.
    parts: dict[str, str] = field(default_factory=dict)
    #: Token of the attempt that holds the lease, by step.
    leases: dict[str, str] = field(default_factory=dict)
    #: Steps whose ring or lease has run out.
    overdue: set[str] = field(default_factory=set)
    #: The chunk that the holder of the lease is at, alone, by step.
    named: dict[str, int] = field(default_factory=dict)
    #: By step and attempt: the chunk that an attempt was at when its lease was taken and it said no word.
    strikes: dict[tuple[str, str], int] = field(default_factory=dict)
    #: By step: the first attempt that vanished while it named none.
    vanished: dict[str, str] = field(default_factory=dict)

    @property
    def steps(self) -> set[str]:
        """What is to be done to it."""
        missing = {f"embed.{model}" for model in self.models if model not in self.parts}
        return missing or {AGGREGATE}

    def lose_lease(self, step: str) -> None:
        """Time took the lease from its holder, who said no word."""
        holder, chunk = self.leases.pop(step, None), self.named.pop(step, None)
        if holder is None or step == AGGREGATE:
            return
        if chunk is None:
            self.vanished.setdefault(step, holder)
        else:
            self.strikes[step, holder] = chunk

    def hear(self, taken: Taken) -> int | None:
        """An attempt says a word: nothing is held against what it was at."""
        if self.vanished.get(taken.step) == taken.token:
            del self.vanished[taken.step]
        return self.strikes.pop((taken.step, taken.token), None)

    def let_go(self, step: str) -> None:
        """Nobody has the step any more, and nobody vanished."""
        self.leases.pop(step, None)
        self.named.pop(step, None)
        self.overdue.discard(step)


class LedgerMachine(RuleBasedStateMachine):
    """One job, its batches, and attempts that live, crash, or sleep and wake at any time."""

    def __init__(self, ledger: Ledger, plan: Plan) -> None:
        super().__init__()
        self.ledger, self.plan = ledger, plan
        ledger.redis.flushall()
        self.names = [vector.name for vector in plan.vectors()]
        self.batches: list[Batch] = []
        self.attempts: list[Taken] = []
        #: Vectors that were written and neither recorded nor deleted: their writer crashed in between.
        self.strays: set[str] = set()
        self.done = self.dead = self.lost = 0
        self.letters: set[str] = set()
        self.ended = False

    @initialize()
    def open_job(self) -> None:
        self.job, _ = self.ledger.jobs.open("c", self.plan, ["src"])

    @contextmanager
    def answers_lost(self, lost: bool) -> Iterator[None]:
        """The client repeats each script, as it does where it never saw the first answer."""
        scripts = self.ledger.scripts
        run = scripts.run_raw

        def twice(name: str, *arguments: Any) -> Any:
            run(name, *arguments)
            return run(name, *arguments)

        with patch.object(scripts, "run_raw", twice) if lost else nullcontext():
            yield

    # What a producer does.

    @precondition(lambda self: not self.ended)
    @rule(kind=st.sampled_from(["upsert", "update", "payload"]), count=st.integers(1, 3), lost=st.booleans())
    def stage(self, kind: Kind, count: int, lost: bool) -> None:
        n = len(self.batches)
        chunks = [Chunk(chunk_id(f"{n}.{i}"), f"text {n}.{i}") for i in range(count)]
        blob, reserve = pack_chunks(chunks), RESERVE if kind != "payload" else 0
        names = self.names[:1] if kind == "update" else self.names
        credit = len(blob) + reserve
        with self.answers_lost(lost):
            found = self.ledger.steps.stage(
                self.job.id, self.plan, n, kind, names, count, blob, reserve, LIMIT
            )
        used = sum(batch.credit for batch in self.batches if batch.open)
        if used and used + credit > LIMIT:
            assert found == Full(used)
            return
        models = self.plan.models_for(names) if kind != "payload" else ()
        self.batches.append(Batch(n, count, credit, chunks, tuple(models)))
        assert found == ([f"embed.{model}" for model in models] or [AGGREGATE])

    @precondition(lambda self: self.batches and not self.ended)
    @rule(data=st.data(), same=st.booleans())
    def a_producer_that_slept_stages_an_old_number(self, data: st.DataObject, same: bool) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        chunks = batch.chunks if same else [Chunk(chunk_id("other"), "another text")]
        stage = (self.job.id, self.plan, batch.n, "upsert", self.names, len(chunks), pack_chunks(chunks))
        if same and batch is self.batches[-1]:
            self.ledger.steps.stage(*stage, RESERVE, LIMIT)
            return
        with pytest.raises(LedgerRewound):
            self.ledger.steps.stage(*stage, RESERVE, LIMIT)

    @precondition(lambda self: self.batches and not self.ended)
    @rule(ahead=st.integers(1, 3))
    def redis_went_back_in_time(self, ahead: int) -> None:
        n = len(self.batches) + ahead
        with pytest.raises(LedgerRewound):
            self.ledger.steps.stage(
                self.job.id, self.plan, n, "upsert", self.names, 1, b"text", RESERVE, LIMIT
            )

    # What workers and aggregators do.

    @precondition(lambda self: self.batches)
    @rule(data=st.data(), lost=st.booleans())
    def take(self, data: st.DataObject, lost: bool) -> None:
        batch = data.draw(st.sampled_from(self.batches))
        step = data.draw(st.sampled_from([*(f"embed.{m}" for m in batch.models), AGGREGATE]))
        self._take(batch, step, lost)

    def _take(self, batch: Batch, step: str, lost: bool) -> None:
        with self.answers_lost(lost):
            found = self.ledger.steps.take(f"{self.job.id}.{batch.n}", step)
        if not batch.open:
            assert found == Refused("closed")
        elif step not in batch.steps:
            assert found == Refused("early" if step == AGGREGATE else "recorded")
        elif step in batch.leases and step not in batch.overdue:
            assert found == Refused("live")
        else:
            assert isinstance(found, Taken)
            assert {m: part.token for m, part in found.parts.items()} == batch.parts
            batch.lose_lease(step)
            batch.leases[step] = found.token
            struck = Counter(chunk for (at, _), chunk in batch.strikes.items() if at == step)
            assert found.strikes == struck
            assert found.vanished == bool(struck or step in batch.vanished)
            batch.overdue.discard(step)
            self.attempts.append(found)

    @precondition(lambda self: any(b.open for b in self.batches))
    @rule(data=st.data(), lost=st.booleans())
    def a_worker_does_what_is_to_be_done(self, data: st.DataObject, lost: bool) -> None:
        """Without anybody's interference, so that batches come to their later stages often enough."""
        batch = data.draw(st.sampled_from([b for b in self.batches if b.open]))
        step = sorted(batch.steps)[0]
        before = len(self.attempts)
        self._take(batch, step, lost)
        if step != AGGREGATE and len(self.attempts) > before:
            self._finish(self.attempts[-1], lost)

    def _of(self, taken: Taken) -> Batch:
        return self.batches[int(taken.batch.rpartition(".")[2])]

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), lost=st.booleans(), name=st.sampled_from(["", "none", 0, 1]))
    def renew(self, data: st.DataObject, lost: bool, name: int | str) -> None:
        taken = data.draw(st.sampled_from(self.attempts))
        batch = self._of(taken)
        chunk = name if isinstance(name, int) else None
        names = name != "" and taken.step != AGGREGATE
        with self.answers_lost(lost):
            steps = self.ledger.steps
            found = steps.name(taken, chunk) if names else steps.renew(taken)
        holder = batch.leases.get(taken.step)
        if not batch.open:
            assert found == "closed"
        elif taken.step not in batch.steps:
            # An aggregator's batch has lost a part meanwhile: it is not due until that has come again.
            assert found == ("lost" if taken.step == AGGREGATE else "recorded")
        elif holder not in (None, taken.token):
            assert found == "lost"
            batch.hear(taken)
        else:
            assert found == "kept"
            was_at = batch.hear(taken)
            if holder is None and was_at is not None:
                batch.named[taken.step] = was_at
            if names:
                batch.named.pop(taken.step, None)
                batch.named.update({taken.step: chunk} if chunk is not None else {})
            batch.leases[taken.step] = taken.token
            batch.overdue.discard(taken.step)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data(), lost=st.booleans(), delay=st.sampled_from([0.0, 60.0]))
    def give_back(self, data: st.DataObject, lost: bool, delay: float) -> None:
        taken = data.draw(st.sampled_from(self.attempts))
        batch = self._of(taken)
        with self.answers_lost(lost):
            self.ledger.steps.defer(taken, delay)
        if batch.open:
            batch.hear(taken)
        if batch.open and batch.leases.get(taken.step) == taken.token:
            batch.let_go(taken.step)
            (batch.overdue.discard if delay else batch.overdue.add)(taken.step)
        self.attempts.remove(taken)

    @precondition(lambda self: any(t.step != AGGREGATE for t in self.attempts))
    @rule(data=st.data(), lost=st.booleans(), crash=st.booleans())
    def finish_embedding(self, data: st.DataObject, lost: bool, crash: bool) -> None:
        taken = data.draw(st.sampled_from([t for t in self.attempts if t.step != AGGREGATE]))
        batch, model = self._of(taken), taken.step.removeprefix("embed.")
        if not crash:
            self._finish(taken, lost)
            return
        key = part_key(taken.batch, model, taken.token)
        self.ledger.blobs.put(taken.batch, key, b"vectors")
        if batch.parts.get(model) != taken.token or not batch.open:
            self.strays.add(key)
        self.attempts.remove(taken)

    def _finish(self, taken: Taken, lost: bool) -> None:
        batch, model = self._of(taken), taken.step.removeprefix("embed.")
        self.strays.discard(part_key(taken.batch, model, taken.token))
        with self.answers_lost(lost):
            ready = self.ledger.steps.record(
                taken, space_mark(self.plan, model), PartRecord(taken.token, 1, 0.1, "w"), b"vectors"
            )
        if batch.open:
            batch.hear(taken)
        if batch.open and model not in batch.parts:
            batch.parts[model] = taken.token
            batch.let_go(taken.step)
        assert ready == (batch.open and batch.parts.get(model) == taken.token and batch.steps == {AGGREGATE})

    @precondition(lambda self: any(t.step == AGGREGATE for t in self.attempts))
    @rule(data=st.data(), lost=st.booleans(), dead=st.booleans())
    def close(self, data: st.DataObject, lost: bool, dead: bool) -> None:
        taken = data.draw(st.sampled_from([t for t in self.attempts if t.step == AGGREGATE]))
        batch = self._of(taken)
        letters = [DeadLetter(f"{batch.n}", "why", "embed")] if dead else []
        with self.answers_lost(lost):
            ended = self.ledger.steps.close(taken, batch.count - len(letters), 0, 0, 0, letters)
        assert (ended is not None) == (batch.open and not lost)
        # Whether it was the one that ended the batch or not.
        self.strays.difference_update(taken.part_key(model) for model in taken.parts)
        if batch.open:
            batch.open = False
            self.done += batch.count - len(letters)
            self.dead += len(letters)
            # Parts that came after this attempt began are not its to delete; they die alone.
            self._stray(batch, {model: part.token for model, part in taken.parts.items()})
        self.attempts.remove(taken)

    @precondition(lambda self: any(t.step == AGGREGATE and t.parts for t in self.attempts))
    @rule(data=st.data(), lost=st.booleans())
    def vectors_are_lost(self, data: st.DataObject, lost: bool) -> None:
        taken = data.draw(st.sampled_from([t for t in self.attempts if t.step == AGGREGATE and t.parts]))
        batch, model = self._of(taken), data.draw(st.sampled_from(sorted(taken.parts)))
        self.ledger.redis.delete(taken.part_key(model))
        self.strays.discard(taken.part_key(model))
        with self.answers_lost(lost):
            self.ledger.steps.unrecord(taken, model)
        if batch.open and batch.parts.get(model) == taken.parts[model].token:
            del batch.parts[model]
            batch.let_go(AGGREGATE)
            batch.overdue.add(f"embed.{model}")
        self.attempts.remove(taken)

    @precondition(lambda self: any(b.open for b in self.batches))
    @rule(data=st.data(), lost=st.booleans())
    def text_is_lost(self, data: st.DataObject, lost: bool) -> None:
        batch = data.draw(st.sampled_from([b for b in self.batches if b.open]))
        with self.answers_lost(lost):
            dropped = self.ledger.jobs.drop(f"{self.job.id}.{batch.n}")
        assert dropped is not lost
        batch.open = False
        self.lost += batch.count

    def _stray(self, batch: Batch, deleted: dict[str, str]) -> None:
        for model, token in batch.parts.items():
            if deleted.get(model) != token:
                self.strays.add(part_key(f"{self.job.id}.{batch.n}", model, token))

    # What time does, and the reconciler.

    @precondition(lambda self: any(b.open for b in self.batches))
    @rule(data=st.data())
    def time_passes(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from([b for b in self.batches if b.open]))
        step = data.draw(st.sampled_from(sorted(batch.steps)))
        self.ledger.redis.zadd(f"v5:steps:{step}", {f"{self.job.id}.{batch.n}": 1})
        batch.overdue.add(step)

    @rule(
        step=st.sampled_from(["embed.qdrant-minilm-onnx", "embed.all-miniLM-l6", AGGREGATE]),
        waiting=st.integers(0, 2),
    )
    def reconcile(self, step: str, waiting: int) -> None:
        overdue = {b.n for b in self.batches if b.open and step in b.overdue}
        rung = self.ledger.steps.due(step, waiting, 10)
        assert len(rung) == max(0, len(overdue) - waiting)
        for batch in (self.batches[int(name.rpartition(".")[2])] for name in rung):
            assert batch.n in overdue
            batch.lose_lease(step)
            batch.overdue.discard(step)

    # What must always hold.

    @invariant()
    def totals_and_credit_are_exact(self) -> None:
        if not hasattr(self, "job"):
            return
        seen = self.ledger.jobs.get(self.job.id)
        staged = sum(batch.count for batch in self.batches)
        assert (seen.staged, seen.done, seen.dead, seen.lost) == (staged, self.done, self.dead, self.lost)
        waiting = sum(batch.count for batch in self.batches if batch.open)
        assert self.done + self.dead + self.lost + waiting == staged
        assert self.ledger.reserved() == sum(batch.credit for batch in self.batches if batch.open)

    @invariant()
    def what_is_open_is_due_and_what_has_ended_is_gone(self) -> None:
        if not hasattr(self, "job"):
            return
        redis = self.ledger.redis
        expected = {f"{self.job.id}.{batch.n}" for batch in self.batches if batch.open}
        assert {key.decode().removeprefix("v5:batch:") for key in redis.keys("v5:batch:*")} == expected
        assert {name.decode() for name in redis.smembers(f"v5:job:{self.job.id}:open")} == expected
        due = {
            (key.decode().removeprefix("v5:steps:"), name.decode())
            for key in redis.keys("v5:steps:*")
            for name in redis.zrange(key, 0, -1)
        }
        assert due == {
            (step, f"{self.job.id}.{batch.n}") for batch in self.batches if batch.open for step in batch.steps
        }

    @invariant()
    def blobs_are_those_that_are_needed(self) -> None:
        if not hasattr(self, "job"):
            return
        there = {key.decode() for key in self.ledger.redis.keys("v5:blob:*")}
        parts = {
            part_key(f"{self.job.id}.{batch.n}", model, token)
            for batch in self.batches
            if batch.open
            for model, token in batch.parts.items()
        }
        texts = {key for key in there if ":text" in key}
        assert there - texts == parts | self.strays
        assert len(texts) == sum(batch.open for batch in self.batches)
        assert all(self.ledger.redis.ttl(key) > 0 for key in there)

    def teardown(self) -> None:
        """Whatever happened: a fleet that lives ends the job, and nothing is left."""
        if not hasattr(self, "job"):
            return
        steps = self.ledger.steps
        for batch in [b for b in self.batches if b.open]:
            name = f"{self.job.id}.{batch.n}"
            for step in sorted(batch.steps - {AGGREGATE}):
                self._expire(name, step)
                taken = steps.take(name, step)
                assert isinstance(taken, Taken)
                assert steps.chunks(taken) == batch.chunks, "another text than was staged"
                model = step.removeprefix("embed.")
                part = PartRecord(taken.token, 1, 0.1, "w")
                steps.record(taken, space_mark(self.plan, model), part, b"vectors")
            self._expire(name, AGGREGATE)
            taken = steps.take(name, AGGREGATE)
            assert isinstance(taken, Taken)
            assert steps.close(taken, batch.count, 0, 0, 0, []) is not None
        assert self.ledger.jobs.seal(self.job.id) == "done"
        for pattern in ("v5:batch:*", "v5:steps:*", "v5:job:*:open", "v5:active:*", "v5:adopt:*"):
            assert not self.ledger.redis.keys(pattern), pattern
        assert {key.decode() for key in self.ledger.redis.keys("v5:blob:*")} == self.strays
        assert self.ledger.reserved() == 0

    def _expire(self, batch: str, step: str) -> None:
        self.ledger.redis.zadd(f"v5:steps:{step}", {batch: 1}, xx=True)


@pytest.mark.parametrize(
    "examples", [100, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_no_interleaving_loses_doubles_or_revives_anything(
    redis_server: object, settings: Settings, plan: Plan, examples: int
) -> None:
    # The test moves the clocks; they must not move by themselves.
    ledger = Ledger(settings.model_copy(update={"ring_seconds": 3600.0, "lease_seconds": 3600.0}))
    run_state_machine_as_test(
        lambda: LedgerMachine(ledger, plan),
        settings=hypothesis.settings(
            max_examples=examples,
            stateful_step_count=40,
            # The short run is the same every time; the long one looks for what nobody has thought of.
            derandomize=examples <= 100,
            # To trace what an example ran takes longer than the example.
            phases=[Phase.generate, Phase.shrink],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    ledger.close()
