"""A blob and the step that goes with it: one round trip where one server has both, the same end where not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from redis.connection import AbstractConnection

from ledger.ledger import Ledger
from ledger.steps import PartRecord, Taken, space_mark
from registry.chunks import Chunk, chunk_id
from registry.frames import pack_chunks
from registry.plan import Plan
from registry.settings import Settings, load_settings
from tests.redis_servers import KINDS, ServerFactory

MODEL = "qdrant-minilm-onnx"
BLOB = pack_chunks([Chunk(chunk_id("1"), "text")])

Counted = Callable[[], int]


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counted:
    """How often something was sent since the last call."""
    calls: list[None] = []
    send = AbstractConnection.send_packed_command

    def counting(self: AbstractConnection, *args: object, **kwargs: object) -> None:
        calls.append(None)
        send(self, *args, **kwargs)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counting)

    def count() -> int:
        seen = len(calls)
        calls.clear()
        return seen

    return count


def through(ledger: Ledger, plan: Plan, n: int, job: str, sent: Counted) -> list[int]:
    """What was sent to stage, take, record and close a batch, each."""
    steps, counts = ledger.steps, []
    sent()
    steps.stage(job, plan, n, "upsert", [MODEL], 1, BLOB, 10, 1 << 30)
    counts.append(sent())
    taken = steps.take(f"{job}.{n}", f"embed.{MODEL}")
    assert isinstance(taken, Taken)
    assert len(steps.chunks(taken)) == 1
    counts.append(sent())
    assert steps.record(taken, space_mark(plan, MODEL), PartRecord(taken.token, 7, 0.1, "w"), b"vectors")
    counts.append(sent())
    last = steps.take(f"{job}.{n}", "aggregate")
    assert isinstance(last, Taken)
    assert ledger.blobs.get(last.batch, [last.part_key(MODEL)]) == [b"vectors"]
    assert [0 < ttl <= ledger.settings.blob_ttl_seconds for ttl in ttls(ledger, last)] == [True, True]
    sent()
    assert steps.close(last, 1, 0, 0, 0, []) is not None
    counts.append(sent())
    assert ttls(ledger, last) == [-2, -2]
    return counts


def ttls(ledger: Ledger, taken: Taken) -> list[int]:
    client = ledger.blobs.server(taken.batch).client
    return [client.ttl(key) for key in (taken.text, taken.part_key(MODEL))]


def test_on_one_server_a_blob_travels_with_its_step(ledger: Ledger, plan: Plan, sent: Counted) -> None:
    job, _ = ledger.jobs.open("c", plan, ["src"])
    through(ledger, plan, 0, job.id, sent)
    assert through(ledger, plan, 1, job.id, sent) == [1, 1, 1, 1]
    # A server that was started anew knows no script.
    ledger.redis.script_flush()
    through(ledger, plan, 2, job.id, sent)
    assert ledger.jobs.get(job.id).done == 3


def test_blobs_on_a_server_of_their_own_go_before_the_step(
    settings: Settings, plan: Plan, redis_servers: ServerFactory, sent: Counted
) -> None:
    main, other = redis_servers.start(KINDS[0]), redis_servers.start(KINDS[0])
    ledger = Ledger(load_settings(data_dir=settings.data_dir, redis_url=main.url(), blob_urls=(other.url(),)))
    job, _ = ledger.jobs.open("c", plan, ["src"])
    through(ledger, plan, 0, job.id, sent)
    assert through(ledger, plan, 1, job.id, sent) == [2, 2, 2, 2]
    assert not ledger.redis.keys("v5:blob:*")
    ledger.close()


def test_a_part_whose_vectors_are_not_there_is_not_recorded(ledger: Ledger, plan: Plan) -> None:
    job, _ = ledger.jobs.open("c", plan, ["src"])
    ledger.steps.stage(job.id, plan, 0, "upsert", [MODEL], 1, BLOB, 10, 1 << 30)
    mark = space_mark(plan, MODEL)
    assert ledger.scripts.run("record", f"{job.id}.0", MODEL, "t", "{}", mark, 1, "v5:gone") == ["unwritten"]
    assert not ledger.redis.hexists(f"v5:batch:{job.id}.0", f"part:{MODEL}")
    opening = (job.id, 1, "d", 1, 1, 1 << 30, 1, "upsert", "[]", "[]", "[]", "t", "")
    assert ledger.scripts.run("open_batch", *opening, "v5:gone") == ["unwritten"]
    assert ledger.jobs.get(job.id).next == 1
