"""A backlog is not rung to death, however long nobody answers, and every batch is served in the end."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable

import pytest

from ledger.jobs import Job
from ledger.ledger import Ledger
from ledger.reconciler import Reconciler
from ledger.steps import PartRecord, Taken, space_mark
from registry.chunks import Chunk, chunk_id
from registry.frames import pack_chunks
from registry.names import QUEUE_AGGREGATE, embed_queue
from registry.plan import Plan
from registry.settings import Settings

BATCHES = 1000
#: Simulated time between two rounds: every ring period has run out by then. Seconds.
STEP = 300
#: Lets time pass, for what is scored by it.
LATER = """
for _, key in ipairs(redis.call('KEYS', 'v5:steps:*')) do
  for _, batch in ipairs(redis.call('ZRANGE', key, 0, -1)) do redis.call('ZINCRBY', key, -ARGV[1], batch) end
end
"""


class Backlog:
    """Open batches, a reconciler, and queues that nobody reads until `serve`."""

    def __init__(self, ledger: Ledger, job: Job) -> None:
        self._ledger = ledger
        self._job = job
        self.queues: defaultdict[str, list[str]] = defaultdict(list)
        self.rung = 0
        self._reconciler = Reconciler(ledger, self._ring, lambda queue: len(self.queues[queue]))
        names = [vector.name for vector in job.plan.vectors()]
        blob = pack_chunks([Chunk(chunk_id("1"), "text")])
        for n in range(BATCHES):
            for step in ledger.steps.stage(job.id, job.plan, n, "upsert", names, 1, blob, 10, 1 << 30):
                self.queues[step].append(f"{job.id}.{n}")

    def _ring(self, batch: str, step: str) -> None:
        self.queues[step].append(batch)
        self.rung += 1

    def pass_hours(self, hours: float) -> int:
        """Let time pass, round by round; returns the longest that a queue was, and checks it against the
        steps that are open."""
        longest = 0
        for _ in range(int(hours * 3600 / STEP)):
            self._ledger.redis.eval(LATER, 0, STEP * 1000)
            self._reconciler.round()
            open_steps = self._ledger.depths()
            for queue, messages in self.queues.items():
                assert len(messages) <= open_steps[queue]
                longest = max(longest, len(messages))
        return longest

    def serve(self) -> int:
        """Answer every message, and those that follow; returns how many it took."""
        taken = 0
        while any(self._ledger.depths().values()):
            self._ledger.redis.eval(LATER, 0, STEP * 1000)
            self._reconciler.round()
            for queue in list(self.queues):
                messages, self.queues[queue] = self.queues[queue], []
                taken += len(messages)
                for batch in messages:
                    self._work(batch, queue)
        return taken

    def _work(self, batch: str, queue: str) -> None:
        steps = self._ledger.steps
        taken = steps.take(batch, queue)
        if not isinstance(taken, Taken):
            return
        if queue == QUEUE_AGGREGATE:
            assert steps.close(taken, 1, 0, 0, 0, []) is not None
            return
        model = queue.removeprefix("embed.")
        part = PartRecord(taken.token, 7, 0.1, "w")
        if steps.record(taken, space_mark(taken.plan, model), part, b"vectors"):
            self.queues[QUEUE_AGGREGATE].append(batch)


@pytest.fixture
def backlog(ledger: Ledger, plan: Plan, settings: Settings) -> Callable[[], Backlog]:
    assert settings.ring_seconds < STEP
    return lambda: Backlog(ledger, ledger.jobs.open("c", plan, ["src"])[0])


def test_eight_hours_without_workers_ring_nothing_that_waits_already(
    backlog: Callable[[], Backlog], ledger: Ledger, plan: Plan
) -> None:
    made = backlog()
    assert made.pass_hours(4) == BATCHES
    assert made.rung == 0
    # Every message is lost, then some: what is missing is rung again, and no more.
    for queue in made.queues.values():
        queue.clear()
    assert made.pass_hours(2) == BATCHES
    assert made.rung == len(plan.models) * BATCHES
    lost = random.Random(1).sample(range(BATCHES), 300)
    first = made.queues[embed_queue(plan.models[0])]
    first[:] = [batch for i, batch in enumerate(first) if i not in lost]
    assert made.pass_hours(2) == BATCHES
    assert made.rung == len(plan.models) * BATCHES + len(lost)
    # The workers come back. Some of the lost were not among those rung again: their turn comes.
    taken = made.serve()
    assert ledger.jobs.list()[0].open_batches == 0
    assert ledger.jobs.list()[0].done == BATCHES
    assert taken < 4 * BATCHES
    assert ledger.reserved() == 0
