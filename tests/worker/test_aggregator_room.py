"""Making room on one of several blob servers: only batches whose blobs are there are dropped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from registry.chunks import Chunk, chunk_id
from registry.frames import pack_chunks
from registry.plan import Plan
from registry.settings import Settings
from tests.redis_servers import ServerFactory
from worker.aggregator import Aggregator

NAMES = ["qdrant-minilm-onnx", "all-miniLM-l6"]


def test_only_batches_of_the_full_server_are_dropped(
    settings: Settings, plan: Plan, redis_servers: ServerFactory
) -> None:
    main, *blobs = [redis_servers.start("valkey") for _ in range(3)]
    placed = {"redis_url": main.url(), "blob_urls": tuple(server.url() for server in blobs)}
    aggregator = Aggregator(settings.model_copy(update=placed))
    ledger = aggregator.ledger
    job, _ = ledger.jobs.open("c", plan, ["src"])
    blob = pack_chunks([Chunk(chunk_id("1"), "text")])
    batches = [f"{job.id}.{n}" for n in range(16)]
    for n in range(16):
        ledger.steps.stage(job.id, plan, n, "upsert", NAMES, 1, blob, 10, 1 << 30)
    elsewhere = {batch for batch in batches if ledger.blobs.server(batch) is ledger.blobs.servers[0]}
    assert 0 < len(elsewhere) < 16
    assert not aggregator._drop_youngest()
    blobs[1].admin.config_set("maxmemory", 100)
    assert aggregator._drop_youngest()
    assert {name.decode() for name in main.admin.smembers(f"v5:job:{job.id}:open")} == elsewhere
    assert ledger.jobs.get(job.id).lost == 16 - len(elsewhere)
    assert not blobs[1].admin.keys("v5:blob:*")
    ledger.close()


def separate(settings: Settings, servers: ServerFactory, role: str) -> tuple[Aggregator, Any]:
    """An aggregator whose blobs or broker have a server of their own, and that server."""
    main, own = servers.start("valkey"), servers.start("valkey")
    placed: dict[str, Any] = {"redis_url": main.url()}
    placed[role] = (own.url(),) if role == "blob_urls" else own.url()
    return Aggregator(settings.model_copy(update=placed)), own


@pytest.mark.parametrize("role", ["blob_urls", "broker_url"])
def test_nothing_is_consumed_while_a_server_of_any_role_is_full(
    settings: Settings, redis_servers: ServerFactory, role: str, eventually: Callable[..., Any]
) -> None:
    aggregator, own = separate(settings, redis_servers, role)
    own.admin.config_set("maxmemory", 100)
    waiting = threading.Thread(target=aggregator.wait_for_room, daemon=True)
    waiting.start()
    eventually(lambda: aggregator.process.condition == "waiting", 5)
    assert waiting.is_alive()
    own.admin.config_set("maxmemory", 0)
    waiting.join(10)
    assert not waiting.is_alive()
    aggregator.ledger.close()


def test_a_running_aggregator_relieves_a_full_blob_server(
    settings: Settings,
    redis_servers: ServerFactory,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
) -> None:
    aggregator, own = separate(settings, redis_servers, "blob_urls")
    asked = threading.Event()
    monkeypatch.setattr(aggregator, "relieve", asked.set)
    loop = threading.Thread(target=aggregator._reconcile, daemon=True)
    loop.start()
    rounds = settings.reconcile_seconds * 5
    assert not asked.wait(rounds), "nothing is full yet"
    own.admin.config_set("maxmemory", 100)
    assert asked.wait(10)
    aggregator.stopping.set()
    loop.join(10)
    aggregator.ledger.close()
