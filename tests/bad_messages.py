"""Messages that are not ours, too large, compressed or pickled, each made of a real one by one change."""

from __future__ import annotations

import base64
import bz2
import json
import lzma
import os
import pickle
import zlib
from functools import cache
from pathlib import Path
from typing import Any

from celery import Celery

from ledger.doorbell import Doorbell
from ledger.server import Redis
from registry.envelopes import MOST_OTHER, MOST_TASK, Kind
from registry.names import BROKER_PREFIX
from registry.settings import Settings

#: Where remote control is heard; the broker's database is 0.
CONTROL = f"{BROKER_PREFIX}/0.celery.pidbox"
#: Bytes that a decompression bomb comes to.
BOMB = 900 << 20
Bad = dict[str, tuple[Kind, bytes]]


class Dangerous:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


def real_ring(app: Celery, settings: Settings, redis: Redis, queue: str) -> bytes:
    """A doorbell as Celery sends it; nobody else may consume the queue meanwhile."""
    assert Doorbell(app, settings).ring("nobody.0", queue)
    raw: bytes = redis.rpop(BROKER_PREFIX + queue)
    return raw


def real_command(app: Celery, redis: Redis) -> bytes:
    """A remote control command as Celery sends it."""
    listening = redis.pubsub(ignore_subscribe_messages=True)
    listening.subscribe(CONTROL)
    listening.get_message(timeout=10)
    app.control.broadcast("ping")
    heard = listening.get_message(timeout=10)
    listening.close()
    raw: bytes = heard["data"]
    return raw


def content(raw: bytes) -> Any:
    """What is inside a message."""
    return json.loads(base64.b64decode(json.loads(raw)["body"]))


def changed(raw: bytes, *without: str, inside: Any = ..., **fields: Any) -> bytes:
    """The message with other content (bytes as they are), other headers, properties or fields (`a__b` for
    `a-b`), or without some."""
    message = json.loads(raw)
    for name in ("headers", "properties"):
        if isinstance(fields.get(name), dict):
            message[name] |= fields.pop(name)
    message |= {name.replace("__", "-"): value for name, value in fields.items()}
    if inside is not ...:
        body = inside if isinstance(inside, bytes) else json.dumps(inside).encode()
        message["body"] = base64.b64encode(body).decode()
    for name in without:
        del message[name]
    return json.dumps(message).encode()


@cache
def bombs() -> dict[str, bytes]:
    """By name of kombu's compression; the second unpacks to BOMB."""
    zeros = b"\0" * (9 << 20)
    # Both kinds may be streams one after another.
    return {
        "gzip": zlib.compress(zeros * 4, 9),
        "bzip2": bz2.compress(zeros) * 100,
        "lzma": lzma.compress(zeros) * 9,
    }


def no_messages(good: bytes) -> Bad:
    """What is not even an envelope; `good` is a doorbell or a command."""
    parts = json.loads(good)
    bad: Bad = {
        "bytes": ("not a message", b"\xff\xfe\x1b[2J\r\nno"),
        "empty": ("not a message", b" "),
        "huge number": ("not a message", b'{"body":' + b"9" * 5000 + b"}"),
        "nested": ("not a message", b"[" * 60_000),
        "surrogate": ("not a message", good.replace(b'"utf-8"', b'"\\ud800"')),
    }
    for value in ("[1]", "5", "null", '"x"', "{}"):
        bad[f"bare {value}"] = ("not a message", value.encode())
    for name in ("body", "headers", "properties"):
        bad[f"without {name}"] = ("not a message", changed(good, name))
        for value in (None, 5, "é", [1]):
            kind: Kind = "not JSON" if (name, value) == ("body", "é") else "not a message"
            bad[f"{name} {value}"] = (kind, changed(good, **{name: value}))
    for name in parts["properties"].keys() & {"delivery_tag", "delivery_info", "body_encoding"}:
        for value in (None, 5, "\n", [1], {}):
            bad[f"{name} {value!r}"] = ("not a message", changed(good, properties={name: value}))
    return bad


def not_json(good: bytes, trace: Path) -> Bad:
    """Bodies that are not JSON, or are not to be unpacked; the pickle makes `trace`."""
    pickled = pickle.dumps(Dangerous(trace))
    yaml = f"!!python/object/apply:os.mkdir ['{trace}']".encode()
    bad: Bad = {
        "pickle": ("not JSON", changed(good, inside=pickled, content__type="application/x-python-serialize")),
        "pickle as data": ("not JSON", changed(good, inside=pickled, content__type="application/data")),
        "pickle as JSON": ("not JSON", changed(good, inside=pickled)),
        "yaml": ("not JSON", changed(good, inside=yaml, content__type="application/x-yaml")),
        "msgpack": ("not JSON", changed(good, inside=b"\x90", content__type="application/x-msgpack")),
        "no type": ("not JSON", changed(good, content__type=None)),
        "type of a list": ("not JSON", changed(good, content__type=["x"])),
        "nested body": ("not JSON", changed(good, inside=b"[" * 40_000)),
        "endless number": ("not JSON", changed(good, inside=b"NaN")),
        "unknown compression": ("compressed", changed(good, headers={"compression": ["x"]})),
    }
    for name, bomb in bombs().items():
        bad[f"{name} bomb"] = ("compressed", changed(good, inside=bomb, headers={"compression": name}))
    return bad


def bad_rings(good: bytes, trace: Path) -> Bad:
    """What may lie in a queue of steps instead of a doorbell."""
    _, ring, _ = content(good)
    to = json.loads(good)["properties"]["delivery_info"]
    chained = {"task": "v5.embed", "args": [], "kwargs": ring, "options": {"queue": "embed.victim"}}
    bad: Bad = {
        "of another queue": (
            "not a message",
            changed(good, properties={"delivery_info": {**to, "routing_key": "store"}}),
        ),
        "of an exchange": (
            "not a message",
            changed(good, properties={"delivery_info": {**to, "exchange": "x"}}),
        ),
        "large": ("too large", changed(good, inside=b'"' + b"x" * MOST_TASK + b'"')),
        "protocol 1": (
            "not a task",
            changed(good, inside={"task": "v5.embed", "id": "1", "args": [], "kwargs": ring}).replace(
                json.dumps(json.loads(good)["headers"]).encode(), b"{}"
            ),
        ),
        "positional": ("not a task", changed(good, inside=[["nobody.0"], {}, {}])),
        "unserved": ("unknown task", changed(good, headers={"task": "v5.aggregate"})),
        "foreign": ("unknown task", changed(good, headers={"task": "os.system"})),
        "celery's own": ("unknown task", changed(good, headers={"task": "celery.map"})),
        "other version": ("other version", changed(good, inside=[[], {**ring, "v": 2, "new": 1}, {}])),
    }
    for value in (None, 5, "x", {}, [], [[], ring], [[], [1], {}], [[], ring, "x"], [[], ring, {}, {}]):
        bad[f"body of {value}"] = ("not a task", changed(good, inside=value))
    for name, values in {
        "task": (None, 5, ["x"], "v5.embed\x1b[2J\nforged", "x" * 200),
        "id": (None, 5, ["x"], "\n", "x" * 65),
        "expires": (5, "garbage", "2026-01-01T00:00:00", "9" * 5000),
        "kwargsrepr": (5, "x" * 5000),
    }.items():
        for value in values:
            bad[f"{name} {str(value)[:30]!r}"] = ("not a task", changed(good, headers={name: value}))
    for name, value in {
        "eta": "2099-01-01T00:00:00+00:00",
        "group": "g",
        "retries": 3,
        "timelimit": [1, 1],
        "shadow": "v5.other",
        "stamped_headers": 5,
        "stamps": {"a": 1},
        "callbacks": [chained],
        "errbacks": [chained],
        "chain": [chained],
        "chord": chained,
    }.items():
        bad[f"header {name}"] = ("more than a task", changed(good, headers={name: value}))
        if name in ("callbacks", "errbacks", "chain", "chord"):
            bad[f"embedded {name}"] = ("more than a task", changed(good, inside=[[], ring, {name: value}]))
    for name, value in {
        "batch": "nobody.0\r\nDEL v5:fleet:plan",
        "step": "embed.another-model",
        "v": "1",
        "more": 1,
    }.items():
        bad[f"{name} of {value!r}"] = (
            "wrong arguments",
            changed(good, inside=[[], {**ring, name: value}, {}]),
        )
    return no_messages(good) | not_json(good, trace) | bad


def bad_commands(good: bytes, trace: Path) -> Bad:
    """What may be heard where remote control is."""
    ping = content(good)
    bad: Bad = {
        "large": ("too large", changed(good, inside=b'"' + b"x" * MOST_OTHER + b'"')),
        # Raised by one, it cannot be written as JSON any more.
        "endless clock": (
            "not a command",
            changed(good, headers={"clock": "@"}).replace(b'"@"', b"9" * 4300),
        ),
        "clock of a text": ("not a command", changed(good, headers={"clock": "x"})),
        "regular expression": (
            "not a command",
            changed(good, inside={**ping, "pattern": "([a-z0-9.@-]*)*" * 9 + "$x", "matcher": "pcre"}),
        ),
    }
    for value in (None, 5, "x", [], {}):
        bad[f"body of {value}"] = ("not a command", changed(good, inside=value))
    for name, value in {"method": 5, "arguments": [1], "destination": 5, "reply_to": "x"}.items():
        bad[f"{name} of {value!r}"] = ("not a command", changed(good, inside={**ping, name: value}))
    bad["reply to nowhere"] = ("not a command", changed(good, inside={**ping, "reply_to": {"exchange": "x"}}))
    return no_messages(good) | not_json(good, trace) | bad


#: What may stand among the unacknowledged messages.
BAD_KEPT: Bad = {
    "bytes": ("not a message", b"\xff"),
    "short": ("not a message", b"[1]"),
    "nothing": ("not a message", b"[null, null, null]"),
    "headless": ("not a message", b'[{"body": ""}, "", "embed.x"]'),
    "of an exchange": ("not a message", b'[{"headers":{},"properties":{"delivery_info":{}}},"x","y"]'),
    "large": ("too large", b'"' + b"x" * MOST_OTHER + b'"'),
}
