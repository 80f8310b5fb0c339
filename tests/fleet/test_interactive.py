"""Requests with an answer while steps fill a worker: served between micro-batches, whatever becomes of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from producer.fleet import Fleet
from registry.codecs import unpack_part
from registry.names import BROKER_PREFIX, TASK_EMBED_QUERY, query_queue
from registry.plan import make_plan
from registry.settings import Settings
from tests.fleet.faulty_worker import MODEL
from tests.fleet.test_stuck import Watched
from tests.fleet.test_stuck import watched as watched  # a fixture
from worker.embedder import MOST_QUERIES, EmbedWorker

pytestmark = pytest.mark.fleet

#: A micro-batch of 16 of these is 0.5 s on the device, a batch four of them, and two batches take turns.
TEXT, COUNT = "word " * 300, 64
PACE = {"fake_seconds": 0.03}


@pytest.fixture
def fleet(settings: Settings, ledger: Any) -> Iterator[Fleet]:
    found = Fleet(settings)
    yield found
    found.close()


def fill(worker: Watched, eventually: Callable[..., Any]) -> None:
    """Have every slot for steps taken by a batch that has just begun, and another batch wait."""
    eventually(lambda: not worker.leased(), 60)
    for _ in range(EmbedWorker.threads + 1):
        worker.stage(TEXT, COUNT)
    eventually(lambda: worker.leased() == EmbedWorker.threads)
    assert worker.waiting() == 1


def test_a_query_waits_for_no_batch_and_both_consumers_come_back_from_a_lost_connection(
    watched: Callable[..., Watched], fleet: Fleet, eventually: Callable[..., Any]
) -> None:
    worker = watched("none", PACE)
    plan = make_plan(primary=MODEL, fake=True)
    for lost in (0, 1):
        if lost:
            worker.ledger.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            eventually(lambda: "Connection to broker lost" in worker.log())
        fill(worker, eventually)
        (blob,) = fleet.embed_query(plan, [MODEL], "a query").values()
        assert len(unpack_part(blob)) == 1
        assert (worker.leased(), worker.waiting()) == (EmbedWorker.threads, 1), "it waited for a batch"
    assert (worker.child.restarts, worker.child.last_exit) == (0, None)


def test_queries_at_work_keep_no_step_waiting_for_a_slot(
    watched: Callable[..., Watched], fleet: Fleet, eventually: Callable[..., Any]
) -> None:
    worker = watched("none", PACE)
    # Two seconds on the device each.
    texts = {"texts": ["a query"] * MOST_QUERIES}
    asked = [fleet.ask(TASK_EMBED_QUERY, query_queue(MODEL), texts) for _ in range(EmbedWorker.answering)]
    eventually(lambda: worker.ledger.redis.hlen(BROKER_PREFIX + "unacked") == len(asked))
    worker.stage(TEXT, COUNT)
    eventually(worker.leased)
    assert worker.ledger.redis.hlen(BROKER_PREFIX + "unacked") == len(asked) + 1, "it waited for a query"
    for pending in asked:
        assert fleet.answer(pending)


def test_a_worker_that_is_asked_to_stop_loses_no_query(
    watched: Callable[..., Watched], fleet: Fleet, eventually: Callable[..., Any]
) -> None:
    worker = watched("none", PACE)
    fill(worker, eventually)
    asked = []

    def ask(count: int) -> None:
        for i in range(count):
            asked.append(fleet.ask(TASK_EMBED_QUERY, query_queue(MODEL), {"texts": [f"query {i}"]}))

    # One that it is at, and some while its consumer, though stopping, still listens.
    ask(1)
    os.kill(worker.child.pid, signal.SIGTERM)
    ask(3)
    eventually(lambda: worker.child.last_exit is not None, 60)
    assert worker.child.last_exit == 0
    assert not worker.ledger.redis.hlen(BROKER_PREFIX + "unacked")
    # Answered by it, or by the process that follows, and none by a repetition.
    for pending in asked:
        assert fleet.ledger.requests.wait(pending.id, 9.0)
