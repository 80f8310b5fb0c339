"""Messages, names, settings, the Celery application."""

from __future__ import annotations

from pathlib import Path

import pytest

from ledger.ledger import Ledger
from registry.celery_app import make_app
from registry.errors import CodecError, UsageError
from registry.messages import Request, Ring
from registry.settings import Settings, load_settings


def test_a_ring_is_what_it_says() -> None:
    ring = Ring(batch="261122-101500-1a2b3c.17", step="aggregate")
    assert Ring.read(ring.model_dump()) == ring


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"batch": "x.1"},
        {"batch": "x", "step": "aggregate"},
        {"batch": "x.1; DEL", "step": "aggregate"},
        {"batch": 5, "step": "aggregate"},
        {"batch": "x.1", "step": "s" * 81},
        {"batch": "x.1", "step": "aggregate", "more": 1},
        {"batch": "x.1", "step": "aggregate", "v": 2},
    ],
)
def test_a_message_that_is_not_ours_is_refused(arguments: dict) -> None:
    with pytest.raises(CodecError):
        Ring.read(arguments)


def test_a_request_id_cannot_name_another_key() -> None:
    with pytest.raises(CodecError):
        Request.read({"id": "../job:1", "deadline": 1.0})


def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("V5_BATCH_CHUNKS", "many")
    with pytest.raises(UsageError, match="V5_BATCH_CHUNKS"):
        load_settings()
    monkeypatch.setenv("V5_BATCH_CHUNKS", "8")
    monkeypatch.setenv("V5_WEIGHTS", "not json")
    with pytest.raises(UsageError, match="weights"):
        load_settings()


def test_settings_come_from_a_dotenv_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("V5_BATCH_CHUNKS=7\n")
    monkeypatch.chdir(tmp_path)
    assert load_settings().batch_chunks == 7


def test_the_socket_fits_its_address_wherever_the_data_is(tmp_path: Path) -> None:
    long = load_settings(data_dir=tmp_path / ("d" * 120))
    assert len(str(long.redis_socket)) < 108
    assert long.redis_socket != load_settings(data_dir=tmp_path / ("e" * 120)).redis_socket
    assert load_settings(data_dir=Path("/tmp/x")).redis_socket == Path("/tmp/x/redis.sock")


def test_the_application_trusts_nothing_from_the_wire(tmp_path: Path) -> None:
    conf = make_app(load_settings(data_dir=tmp_path)).conf
    assert conf.accept_content == ["json"]
    assert conf.task_serializer == "json"
    assert conf.task_acks_late
    assert conf.task_ignore_result
    assert conf.worker_prefetch_multiplier == 1
    assert conf.broker_connection_max_retries is None
    assert conf.broker_transport_options["global_keyprefix"] == "v5:mq:"
    assert conf.broker_transport_options["priority_steps"] == [0]
    assert conf.broker_url.startswith("redis+socket://")


def test_a_channel_keeps_its_client_until_its_connections_close(ledger: Ledger, settings: Settings) -> None:
    with make_app(settings).connection_for_write() as connection:
        channel = connection.default_channel
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
            assert first is not channel.client
        channel._disconnect_pools()
        with channel.conn_or_acquire() as third:
            assert third.connection_pool is channel.pool
            assert third.ping()
