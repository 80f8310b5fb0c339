"""Bad messages to a running fleet: none ends a process, comes back or is run; all are counted and shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from ledger.refused import MOST
from registry.celery_app import make_app
from registry.names import BROKER_PREFIX, QUEUE_AGGREGATE, embed_queue
from tests.bad_messages import (
    BAD_KEPT,
    BOMB,
    CONTROL,
    Bad,
    bad_commands,
    bad_rings,
    changed,
    content,
    no_messages,
    real_command,
    real_ring,
)

pytestmark = pytest.mark.fleet

MODEL = "qdrant-minilm-onnx"
WORKER = f"worker-{MODEL}"
QUEUE = embed_queue(MODEL)
#: Takes three times as much while it is read from Redis.
LARGE = 64 << 20


def peak(pid: int) -> int:
    """Most memory that a process ever had. Bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def ring_in(raw: bytes, queue: str) -> bytes:
    """A doorbell as if it had been sent to this queue."""
    arguments, ring, embedded = content(raw)
    to = {"delivery_info": {"exchange": "", "routing_key": queue}}
    return changed(raw, inside=[arguments, {**ring, "step": queue}, embedded], properties=to)


def test_the_same_processes_go_on_and_say_what_they_refused(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any], tmp_path: Path
) -> None:
    fake_fleet.up("--primary", MODEL)
    pids = fake_fleet.pids()
    settings = fake_fleet.settings()
    ledger, app = Ledger(settings), make_app(settings)
    redis, trace = ledger.redis, tmp_path / "unpickled"
    before = peak(pids[WORKER])

    def all_answer() -> bool:
        return len(app.control.ping(timeout=2.0)) == 2

    # A process is ready a moment before it listens to remote control.
    eventually(all_answer, 60)

    elsewhere = real_ring(app, settings, redis, "embed.nobody")
    rings = bad_rings(ring_in(elsewhere, QUEUE), trace)
    commands = bad_commands(real_command(app, redis), trace)
    expected: Counter[str] = Counter({"too large": 1})

    def send(bad: Bad, put: Callable[[str, bytes], int]) -> None:
        for name, (kind, raw) in bad.items():
            expected[kind] += put(name, raw)

    def queued(queue: str) -> Callable[[str, bytes], int]:
        return lambda _name, raw: int(redis.lpush(BROKER_PREFIX + queue, raw) > 0)

    def kept(name: str, raw: bytes) -> int:
        redis.hset(f"{BROKER_PREFIX}unacked", name, raw)
        return int(redis.zadd(f"{BROKER_PREFIX}unacked_index", {name: 1}))

    send(rings, queued(QUEUE))
    send(no_messages(ring_in(elsewhere, QUEUE_AGGREGATE)), queued(QUEUE_AGGREGATE))
    redis.lpush(BROKER_PREFIX + QUEUE, b"[" + b"[]," * (LARGE // 3) + b"[]]")
    heard: set[int] = set()
    send(commands, lambda _name, raw: heard.add(n := redis.publish(CONTROL, raw)) or n)
    assert heard == {2}, "worker and aggregator hear every command"
    send(BAD_KEPT, kept)

    total = sum(expected.values())
    eventually(lambda: sum(ledger.refused.counts().values()) >= total, 60, "all are refused")
    assert ledger.refused.counts() == expected
    assert redis.hlen(f"{BROKER_PREFIX}unacked") == redis.zcard(f"{BROKER_PREFIX}unacked_index") == 0
    assert not trace.exists(), "a pickle was read"
    assert not redis.exists(f"{BROKER_PREFIX}embed.victim"), "a worker sent what a message asked it to"
    assert peak(pids[WORKER]) - before < 4 * LARGE < BOMB

    eventually(all_answer, 60)
    end = fake_fleet.ok("submit", str(corpus(50)), "-c", "c")
    assert (end["done"], end["dead"]) == (50, 0)
    assert fake_fleet.pids() == pids
    assert ledger.refused.counts() == expected, "something came back"

    newest, process = ledger.refused.last()[0]
    found = next(f for f in fake_fleet.ok("doctor") if f["what"] == "refused messages")
    assert found["verdict"] == "warning"
    assert found["said"].startswith(f"{total} (")
    assert f"{expected['more than a task']} more than a task" in found["said"]
    assert "something else writes to the broker" in found["said"]
    assert len(found["details"]) == MOST < total
    assert (found["details"][0]["process"], found["details"][0]["why"]) == (process, newest.why)
    assert {row["process"] for row in found["details"]} <= {p.id for p in ledger.alive.list()}
    assert f"refused messages: {total} (" in fake_fleet.v5("doctor").stdout
    for name in (WORKER, "aggregator"):
        log = (fake_fleet.data_dir / "logs" / f"{name}.log").read_text()
        assert "refused a message of" in log
        assert "Traceback" not in log
        assert all(line.isprintable() for line in log.split("\n"))
    assert not [row for row in json.loads((fake_fleet.data_dir / "fleet.json").read_text())["processes"]
                if row["restarts"]]  # fmt: skip
    ledger.close()
    app.close()
