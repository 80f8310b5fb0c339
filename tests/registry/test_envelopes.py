"""Messages are read strictly: what is not ours is refused by kind, and only what is known comes out."""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from kombu.transport import redis as kombu_redis

from ledger.ledger import Ledger
from registry.celery_app import make_app
from registry.envelopes import (
    Refusal,
    RefusedMessage,
    printable,
    read_command,
    read_kept,
    read_other,
    read_task,
)
from registry.messages import Request, Ring
from registry.names import BROKER_PREFIX, TASK_EMBED, TASK_EMBED_QUERY, query_queue
from registry.settings import Settings, load_settings
from registry.transport import Channel, Screen, Transport
from tests.bad_messages import (
    BAD_KEPT,
    Bad,
    bad_commands,
    bad_rings,
    changed,
    content,
    real_command,
    real_ring,
)

MODEL = "qdrant-minilm-onnx"
QUEUE = f"embed.{MODEL}"
SERVED = {TASK_EMBED, TASK_EMBED_QUERY, "celery.map"}
#: A real doorbell but for its ids.
RING = json.dumps(
    {
        "body": base64.b64encode(
            json.dumps([[], Ring(batch="nobody.0", step=QUEUE).model_dump(), {}]).encode()
        ).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "task": TASK_EMBED,
            "id": "0-0",
            "expires": None,
            "retries": 0,
            "timelimit": [None, None],
        },
        "properties": {
            "delivery_info": {"exchange": "", "routing_key": QUEUE},
            "body_encoding": "base64",
            "delivery_tag": "1-1",
        },
    }
).encode()


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    app = make_app(settings)
    yield app
    app.close()


def let_in(raw: bytes, queue: str = QUEUE) -> Any:
    """What a message is made anew to, as JSON; reading that again changes nothing."""
    once = read_task(raw, queue, SERVED)
    assert read_task(once, queue, SERVED) == once
    return json.loads(once)


def refusals(bad: Bad, read: Any) -> dict[str, str]:
    """By name, the kind each is refused as where that is not the expected one."""
    wrong = {}
    for name, (kind, raw) in bad.items():
        try:
            read(raw)
            wrong[name] = "let in"
        except Refusal as error:
            if error.kind != kind:
                wrong[name] = f"{error.kind}: {error}"
    return wrong


def test_what_celery_sends_for_us_is_let_in(app: Celery, settings: Settings, ledger: Ledger) -> None:
    raw = real_ring(app, settings, ledger.redis, QUEUE)
    ring = let_in(raw)
    assert content(json.dumps(ring).encode()) == [[], content(raw)[1], {}]
    before = json.loads(raw)
    assert ring["headers"]["id"] == before["headers"]["id"]
    assert ring["properties"]["delivery_tag"] == before["properties"]["delivery_tag"]
    queue = query_queue(MODEL)
    asked = Request(id="0" * 32, deadline=time.time() + 9).model_dump()
    app.send_task(TASK_EMBED_QUERY, kwargs=asked, queue=queue, ignore_result=True, expires=9.0)
    request = let_in(ledger.redis.rpop(BROKER_PREFIX + queue), queue)
    assert request["headers"]["expires"]
    command = real_command(app, ledger.redis)
    assert content(read_command(command))["method"] == "ping"
    assert json.loads(read_other(command))["headers"] == json.loads(command)["headers"]


def test_every_bad_doorbell_is_refused_as_what_it_is(
    app: Celery, settings: Settings, ledger: Ledger, tmp_path: Path
) -> None:
    trace = tmp_path / "unpickled"
    bad = bad_rings(real_ring(app, settings, ledger.redis, QUEUE), trace)
    assert refusals(bad, lambda raw: read_task(raw, QUEUE, SERVED)) == {}
    assert not trace.exists()


def test_every_bad_command_is_refused_as_what_it_is(app: Celery, ledger: Ledger, tmp_path: Path) -> None:
    trace = tmp_path / "unpickled"
    assert refusals(bad_commands(real_command(app, ledger.redis), trace), read_command) == {}
    assert not trace.exists()


def test_every_bad_note_of_an_unacknowledged_message_is_refused() -> None:
    assert refusals(BAD_KEPT, read_kept) == {}
    note = json.dumps([json.loads(RING), "", QUEUE]).encode()
    assert read_kept(note) == note


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(copy[path[0]], path[1:], new)
    return copy


#: The message with its body opened.
OPENED = {**json.loads(RING), "body": content(RING)}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


@given(st.sampled_from(list(places(OPENED))), JSON)
def test_whatever_is_changed_it_is_refused_or_a_plain_doorbell_comes_out(path: Any, new: Any) -> None:
    message = put(OPENED, path, new)
    raw = json.dumps(message).encode()
    if isinstance(message, dict) and "body" in message:
        raw = changed(raw, inside=message["body"])
    try:
        out = let_in(raw)
    except Refusal:
        return
    arguments, ring, embedded = content(json.dumps(out).encode())
    assert (arguments, embedded) == ([], {})
    assert Ring.read(ring).step == QUEUE
    assert set(out) == set(json.loads(RING))
    assert set(out["properties"]) == {"delivery_info", "body_encoding", "delivery_tag"}
    assert not set(out["headers"]) & {"eta", "callbacks", "errbacks", "chain", "chord", "timelimit", "group"}


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_but_a_refusal(raw: bytes) -> None:
    for read in (lambda raw: read_task(raw, QUEUE, SERVED), read_command, read_other, read_kept):
        with pytest.raises(Refusal):
            read(raw)


def test_a_refusal_is_told_in_one_printable_line_and_nothing_escapes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[RefusedMessage] = []

    def note(message: RefusedMessage) -> None:
        told.append(message)
        raise OSError("the ledger is away")

    screen = Screen(lambda: SERVED, note)
    assert screen.queued(QUEUE, RING) is not None
    assert screen.queued(QUEUE, b"\x1b[2J\r\nforged line\xff" + "\u202e".encode() + b"x" * 70_000) is None
    assert screen.heard("/0.celery.pidbox", b"[") is None
    assert screen.heard("/0.celeryev/worker.heartbeat", b"[") is None
    assert screen.queued("1.reply.celery.pidbox", b"[") is None
    monkeypatch.setattr("registry.transport.read_kept", lambda _raw: 1 // 0)
    assert not screen.kept("tag\n", b"[]")
    assert Counter(message.kind for message in told) == {"too large": 1, "not a message": 4}
    assert told[0].sample.startswith(r"\x1b[2J\r\nforged line\xff\u202e")
    assert len(told[0].sample) <= 500
    assert told[0].bytes > 70_000
    lines = [line for record in caplog.records for line in record.getMessage().splitlines()]
    assert len(lines) == 2 * len(told), "one says what was refused, one that the ledger does not know"
    assert all(line.isprintable() for line in lines)
    assert printable("é 好") == "é 好"


@pytest.mark.parametrize("url", ["redis://h", "rediss://h", "unix:///run/r.sock"])
def test_every_connection_is_behind_the_screen(url: str) -> None:
    app = make_app(load_settings(redis_url=url))
    connections = [app.connection(), app.connection_for_read(), app.connection_for_write().clone()]
    assert all(connection.get_transport_cls() is Transport for connection in connections)


@pytest.mark.parametrize(
    ("owner", "method"),
    [
        (Connection, "get_transport_cls"),
        (kombu_redis.Channel, "_get_client"),
        (kombu_redis.PrefixedStrictRedis, "pubsub"),
        (kombu_redis.PrefixedStrictRedis, "parse_response"),
        (kombu_redis.PrefixedRedisPubSub, "parse_response"),
        (kombu_redis.QoS, "restore_by_tag"),
        (kombu_redis.QoS, "_remove_from_indices"),
    ],
)
def test_kombu_still_has_what_the_screen_overrides(owner: type, method: str) -> None:
    assert callable(getattr(owner, method, None)), f"the screen hangs on {owner.__name__}.{method}"
    assert issubclass(Channel.QoS, kombu_redis.QoS)
