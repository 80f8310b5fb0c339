"""Events: sent in groups that the screen lets through, by a thread that holds nothing up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from ledger.doorbell import Doorbell
from ledger.ledger import Ledger
from registry.celery_app import make_app
from registry.envelopes import MOST_TASK, read_other
from registry.events import MOST_GROUP, MOST_WAITING, grouped
from registry.settings import Settings

#: JSON of an event, in bytes: two that fill a group to the last byte, and the first that is too large.
SIZES = (100, MOST_GROUP - 2 - 100 - 1, MOST_GROUP // 3, MOST_GROUP - 2, MOST_GROUP - 1)
TYPES = ("task-received", "task-succeeded", "worker-heartbeat")


def sized(event: dict[str, Any], size: int) -> dict[str, Any]:
    """The event with arguments that make its JSON so many bytes."""
    return {**event, "args": "x" * (size - len(json.dumps({**event, "args": ""})))}


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    found = make_app(settings)
    yield found
    found.events.outbox.close()
    found.close()


class Listener:
    """Hears what Flower would, through the same screen."""

    def __init__(self, settings: Settings) -> None:
        self.heard: list[dict[str, Any]] = []
        self._app = make_app(settings)
        self._receiver: Any = None
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._receiver.should_stop = True
        self._thread.join(10)
        self._app.close()

    def _listen(self) -> None:
        with self._app.connection_for_read() as connection:
            self._receiver = self._app.events.Receiver(connection, handlers={"*": self.heard.append})
            self._receiver.capture(limit=None, timeout=None, wakeup=False)


@pytest.fixture
def listener(ledger: Ledger, settings: Settings, eventually: Callable[..., Any]) -> Iterator[Listener]:
    with Listener(settings) as found:
        eventually(lambda: ledger.redis.pubsub_numpat() == 1, what="the listener to listen")
        yield found


def published(ledger: Ledger) -> int:
    """Messages that this server was told to publish."""
    return int(ledger.redis.info("commandstats").get("cmdstat_publish", {"calls": 0})["calls"])


@hypothesis.settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(TYPES), st.sampled_from(SIZES)), max_size=30))
def test_groups_are_bounded_and_keep_their_order(made: list[tuple[str, int]]) -> None:
    told = [sized({"type": kind, "n": n, "args": ""}, size) for n, (kind, size) in enumerate(made)]
    found: dict[str, list[int]] = {"task": [], "worker": []}
    for group, body in grouped(told):
        assert len(body.encode()) <= MOST_GROUP
        rows = json.loads(body)
        assert rows
        assert {row["type"].split("-")[0] for row in rows} == {group}
        found[group] += [row["n"] for row in rows]
    for group, numbers in found.items():
        fits = [n for n, (kind, size) in enumerate(made) if kind.startswith(group) and size <= MOST_GROUP - 2]
        assert numbers == fits


def test_a_thousand_events_arrive_in_order_in_a_few_messages(
    app: Celery, ledger: Ledger, settings: Settings, listener: Listener, eventually: Callable[..., Any]
) -> None:
    dispatcher = app.events.Dispatcher(hostname="worker@here")
    doorbell = Doorbell(app, settings)
    before = published(ledger)
    for n in range(500):
        dispatcher.send("task-received", uuid=f"{n}", args="x" * 1000)
        doorbell.ring(f"job-1.{n}", "embed.m")
    dispatcher.send("worker-heartbeat", freq=2.0)
    eventually(lambda: len(listener.heard) >= 1001, what="the events")
    told = [(event["type"], event.get("uuid")) for event in listener.heard]
    assert [uuid for kind, uuid in told if kind == "task-received"] == [str(n) for n in range(500)]
    sent = [event["kwargs"] for event in listener.heard if event["type"] == "task-sent"]
    assert sent == [f"job-1.{n} embed.m" for n in range(500)]
    assert {event["hostname"] for event in listener.heard if event["type"] != "task-sent"} == {"worker@here"}
    assert published(ledger) - before < 60
    assert ledger.redis.llen("v5:mq:embed.m") == 500


def test_the_largest_group_passes_the_screen(
    app: Celery, ledger: Ledger, eventually: Callable[..., Any]
) -> None:
    heard: list[bytes] = []
    with ledger.redis.pubsub() as pubsub:
        pubsub.psubscribe("*celeryev*")
        app.events.outbox.add(sized({"type": "task-failed"}, MOST_GROUP - 2))
        app.events.outbox.close()
        eventually(lambda: heard.extend(m["data"] for m in [pubsub.get_message()] if m) or len(heard) > 1)
    (raw,) = [data for data in heard if isinstance(data, bytes)]
    assert len(raw) <= MOST_TASK
    assert json.loads(read_other(raw))["body"] == json.loads(raw)["body"]


def test_a_process_that_ends_sends_its_last_events(
    settings: Settings, listener: Listener, eventually: Callable[..., Any]
) -> None:
    code = """
from registry.celery_app import app
dispatcher = app.events.Dispatcher(hostname="worker@here")
for n in range(100):
    dispatcher.send("task-succeeded", uuid=str(n))
"""
    environment = {**os.environ, "V5_DATA_DIR": str(settings.data_dir)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
    eventually(lambda: len(listener.heard) == 100, what="the events of the process")


def test_while_redis_hangs_tasks_go_on_and_memory_is_bounded(
    app: Celery,
    ledger: Ledger,
    redis_server: subprocess.Popen[bytes],
    listener: Listener,
    eventually: Callable[..., Any],
) -> None:
    dispatcher = app.events.Dispatcher(hostname="worker@here")
    dispatcher.send("task-started", uuid="before")
    eventually(lambda: listener.heard)
    redis_server.send_signal(signal.SIGSTOP)
    try:
        for n in range(2 * MOST_WAITING):
            dispatcher.send("task-started", uuid=f"{n}")
        assert len(app.events.outbox) <= MOST_WAITING
        began = time.monotonic()
        app.events.outbox.close()
        # A socket's timeout is ten seconds.
        assert time.monotonic() - began < 8
    finally:
        redis_server.send_signal(signal.SIGCONT)
    dispatcher.send("task-started", uuid="after")
    eventually(lambda: listener.heard[-1]["uuid"] == "after", 60)


def test_what_could_not_be_sent_is_dropped(
    app: Celery, caplog: pytest.LogCaptureFixture, eventually: Callable[..., Any]
) -> None:
    caplog.set_level("INFO", logger="registry.events")
    for _ in range(2):
        app.events.Dispatcher(hostname="worker@here").send("task-started", uuid="1")
        app.events.outbox.close()
        eventually(lambda: len(app.events.outbox) == 0)
    (said,) = [record.message for record in caplog.records if record.name == "registry.events"]
    assert "dropped" in said
