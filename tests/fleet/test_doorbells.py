"""A message is only a doorbell: jobs end complete and exact whatever becomes of the messages."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from registry.names import BROKER_PREFIX

pytestmark = pytest.mark.fleet

QUEUES = ("embed.qdrant-minilm-onnx", "embed.all-miniLM-l6", "aggregate")


def keys_left(ledger: Ledger) -> list[str]:
    """Keys of work in flight."""
    return [
        key.decode()
        for pattern in ("v5:batch:*", "v5:blob:*", "v5:job:*:open", "v5:steps:*")
        for key in ledger.redis.keys(pattern)
    ]


def check_complete(fleet: Any, corpus: Path, count: int) -> None:
    """Everything there, exact, once, and nothing left in Redis."""
    found = fleet.ok("verify", str(corpus), "-c", "c")
    assert (found["expected"], found["present"], found["missing"], found["stale"]) == (count, count, 0, 0)
    (job, *_) = fleet.ok("jobs")
    assert (job["done"], job["staged"], job["dead"], job["lost"]) == (count, count, 0, 0)
    ledger = Ledger(fleet.settings())
    assert ledger.reserved() == 0
    assert keys_left(ledger) == []
    assert fleet.ok("get", "c1", "-c", "c")["payload"]["metadata"] == {"n": 1}
    ledger.close()


def test_every_message_of_a_running_job_is_deleted_again_and_again(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.002"}
    fake_fleet.up()
    path = corpus(600)
    submit = fake_fleet.start("submit", str(path), "-c", "c", "--json")
    ledger = Ledger(fake_fleet.settings())
    deleted = 0
    while submit.poll() is None:
        # Queues, and what workers hold unacknowledged.
        deleted += ledger.redis.delete(
            *(BROKER_PREFIX + queue for queue in (*QUEUES, "unacked", "unacked_index"))
        )
    ledger.close()
    out, err = submit.communicate(timeout=60)
    assert submit.returncode == 0, err
    assert deleted > 3
    assert json.loads(out.splitlines()[-1])["done"] == 600
    check_complete(fake_fleet, path, 600)


def test_every_message_is_delivered_three_times(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.01"}
    fake_fleet.up()
    path = corpus(600)
    submit = fake_fleet.start("submit", str(path), "-c", "c", "--json")
    ledger = Ledger(fake_fleet.settings())
    seen: set[bytes] = set()
    while submit.poll() is None:
        for queue in QUEUES:
            for message in ledger.redis.lrange(BROKER_PREFIX + queue, 0, -1):
                if message not in seen:
                    seen.add(message)
                    ledger.redis.lpush(BROKER_PREFIX + queue, message)
                    ledger.redis.rpush(BROKER_PREFIX + queue, message)
    _out, err = submit.communicate(timeout=60)
    assert submit.returncode == 0, err
    assert len(seen) > 10
    # Once more, all of them, after the job is done.
    for message in seen:
        queue = json.loads(message)["properties"]["delivery_info"]["routing_key"]
        ledger.redis.lpush(BROKER_PREFIX + queue, message)
    eventually(lambda: not any(ledger.redis.llen(BROKER_PREFIX + queue) for queue in QUEUES))
    ledger.close()
    check_complete(fake_fleet, path, 600)


def test_two_workers_finish_the_same_step_at_once(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    """A worker is stopped in the middle of its steps until another has done them, then goes on."""
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.05", "V5_LEASE_SECONDS": "1.5"}
    fake_fleet.up()
    second = fake_fleet.start("worker", "qdrant-minilm-onnx", "--name", "second")
    path = corpus(200)
    submit = fake_fleet.start("submit", str(path), "-c", "c", "--json")
    ledger = Ledger(fake_fleet.settings())
    try:
        held = eventually(
            lambda: [
                key
                for key in ledger.redis.keys("v5:batch:*")
                if ledger.redis.hexists(key, "lease:embed.qdrant-minilm-onnx")
            ]
        )
        assert held
        os.kill(fake_fleet.pids()["worker-qdrant-minilm-onnx"], signal.SIGSTOP)
        out, err = submit.communicate(timeout=90)
        os.kill(fake_fleet.pids()["worker-qdrant-minilm-onnx"], signal.SIGCONT)
        assert submit.returncode == 0, err
        assert json.loads(out.splitlines()[-1])["done"] == 200
        # What the sleeper still finishes finds its batches closed.
        eventually(lambda: not ledger.redis.keys("v5:blob:*"))
        check_complete(fake_fleet, path, 200)
    finally:
        second.terminate()
        second.communicate(timeout=60)
        ledger.close()


def test_a_flushed_broker_loses_nothing(fake_fleet: Any, corpus: Callable[..., Path]) -> None:
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.005"}
    fake_fleet.up()
    path = corpus(300)
    submit = fake_fleet.start("submit", str(path), "-c", "c", "--json")
    ledger = Ledger(fake_fleet.settings())
    flushed = 0
    while submit.poll() is None and flushed < 3:
        keys = ledger.redis.keys(BROKER_PREFIX + "*")
        if ledger.jobs.list() and ledger.jobs.list()[0].done >= 50 * (flushed + 1):
            ledger.redis.delete(*keys)
            flushed += 1
    ledger.close()
    _out, err = submit.communicate(timeout=60)
    assert submit.returncode == 0, err
    assert flushed
    check_complete(fake_fleet, path, 300)
