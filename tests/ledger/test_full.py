"""A server at its maxmemory: what adds is refused, what frees goes through."""

from __future__ import annotations

import pytest

from ledger.alive import Process
from ledger.ledger import Ledger
from ledger.server import check_server, is_full
from ledger.steps import PartRecord, Taken, space_mark
from registry.chunks import Chunk, chunk_id
from registry.errors import LedgerFull, LedgerUnavailable
from registry.frames import pack_chunks
from registry.plan import Plan

NAMES = ["qdrant-minilm-onnx", "all-miniLM-l6"]


def fill(ledger: Ledger) -> None:
    ledger.redis.config_set("maxmemory", 100)
    assert is_full(ledger.redis)


def part(taken: Taken) -> tuple[PartRecord, bytes]:
    return PartRecord(taken.token, 100, 0.1, "w"), b"x" * 100


def test_a_full_server_refuses_new_work_and_empties_itself(ledger: Ledger, plan: Plan) -> None:
    job, _ = ledger.jobs.open("c", plan, ["src"])
    blob = pack_chunks([Chunk(chunk_id("1"), "text")])
    for n in range(2):
        ledger.steps.stage(job.id, plan, n, "upsert", NAMES, 1, blob, 10, 1 << 30)
    batch = f"{job.id}.0"
    first = ledger.steps.take(batch, f"embed.{NAMES[0]}")
    second = ledger.steps.take(batch, f"embed.{NAMES[1]}")
    assert isinstance(first, Taken)
    assert isinstance(second, Taken)
    assert not ledger.steps.record(first, space_mark(plan, NAMES[0]), *part(first))
    assert ledger.steps.record(second, space_mark(plan, NAMES[1]), *part(second))
    third = ledger.steps.take(f"{job.id}.1", f"embed.{NAMES[0]}")
    assert isinstance(third, Taken)
    fill(ledger)
    with pytest.raises(LedgerFull):
        ledger.steps.stage(job.id, plan, 2, "upsert", NAMES, 1, blob, 10, 1 << 30)
    with pytest.raises(LedgerFull):
        ledger.steps.record(third, space_mark(plan, NAMES[0]), *part(third))
    assert not ledger.redis.hexists(f"v5:batch:{third.batch}", f"part:{NAMES[0]}")
    # Everything on the way out still works.
    assert ledger.steps.renew(third) == "kept"
    aggregate = ledger.steps.take(batch, "aggregate")
    assert isinstance(aggregate, Taken)
    assert ledger.steps.close(aggregate, 1, 0, 0, 0, []) is not None
    assert ledger.jobs.drop(f"{job.id}.1")
    seen = ledger.jobs.get(job.id)
    assert (seen.done, seen.lost, seen.open_batches) == (1, 1, 0)
    assert ledger.reserved() == 0


def test_the_script_that_opens_a_batch_is_refused_by_the_server_itself(ledger: Ledger, plan: Plan) -> None:
    job, _ = ledger.jobs.open("c", plan, ["src"])
    fill(ledger)
    with pytest.raises(LedgerFull):
        ledger.scripts.run(
            "open_batch", job.id, 0, "d", 1, 1, 100, 1, "upsert", "[]", "[]", "[]", "t", "", ""
        )
    assert ledger.jobs.get(job.id).next == 0


def test_a_server_that_evicts_is_refused(ledger: Ledger) -> None:
    ledger.redis.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(LedgerUnavailable, match="noeviction"):
        check_server(ledger.redis, "Redis")


def test_an_absent_server_says_what_to_do(settings) -> None:
    with pytest.raises(LedgerUnavailable, match="v5 up"):
        Ledger(settings).check()


def test_a_fleet_on_a_full_server_is_still_seen_to_live(ledger: Ledger) -> None:
    fill(ledger)
    with pytest.raises(Exception, match=r"OOM|maxmemory"):
        ledger.redis.set("more", b"x" * 100_000)
    process = Process(kind="worker", name="w", condition="ready")
    ledger.alive.announce(process)
    assert ledger.alive.list() == [process]
