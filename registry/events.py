"""Celery's events, off the way of the tasks: gathered, and sent in groups by a thread.

They are for people who watch, with Flower. Nothing is driven by them: they may be lost, and must never hold
up what they tell of.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any

from celery import Celery
from celery.app.events import Events
from celery.events.dispatcher import EventDispatcher
from celery.events.event import get_exchange, group_from
from kombu.utils.json import dumps

log = logging.getLogger(__name__)

#: How long events gather. Seconds.
EVERY = 0.5
#: Events that wait at most, about 1 KB each; of more, the oldest are dropped.
MOST_WAITING = 4_000
#: A group's JSON at most; with kombu's envelope and base64 around it, it stays under 64 KiB. Bytes.
MOST_GROUP = 32 << 10
#: A process that ends waits for its last events no longer than this. Seconds.
FAREWELL = 1.0


class Outbox:
    """A process' events on their way. While Redis is away they are dropped, and the tasks go on."""

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MOST_WAITING)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._sender: threading.Thread | None = None
        self._lost = False

    def __len__(self) -> int:
        """Events that wait."""
        return len(self._waiting)

    def add(self, event: dict[str, Any]) -> None:
        """Send an event soon; never waits for Redis."""
        with self._lock:
            self._waiting.append(event)
            if self._sender is not None:
                return
            sender = threading.Thread(target=self._run, name="events", daemon=True)
            # Where no thread can be started, the next event tries again.
            with contextlib.suppress(RuntimeError):
                sender.start()
                self._sender = sender
                atexit.register(self.close)

    def close(self) -> None:
        """Send what waits without gathering any longer; waits for it, but not for a Redis that hangs."""
        self._closing.set()
        if self._sender is not None:
            self._sender.join(FAREWELL)

    def _run(self) -> None:
        """Until nothing waits any more: an idle process has no thread for it."""
        while True:
            self._closing.wait(EVERY)
            with self._lock:
                events = list(self._waiting)
                self._waiting.clear()
            self._send(events)
            with self._lock:
                if not self._waiting:
                    self._sender = None
                    atexit.unregister(self.close)
                    return

    def _send(self, events: list[dict[str, Any]]) -> None:
        try:
            with self._app.producer_or_acquire() as producer:
                exchange = get_exchange(producer.connection, name=self._app.conf.event_exchange)
                for group, body in grouped(events):
                    producer.publish(
                        body,
                        exchange=exchange.name,
                        routing_key=f"{group}.multi",
                        declare=[exchange],
                        content_type="application/json",
                        content_encoding="utf-8",
                        delivery_mode=1,
                        retry=False,
                    )
        except Exception as error:
            # Whatever it is, it must not be what ends the thread.
            if not self._lost:
                log.info("events for Flower are dropped: %s", error)
            self._lost = True
        else:
            self._lost = False


def grouped(events: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Events as JSON lists of at most MOST_GROUP bytes, each with the group it is of (`task`, `worker`), in
    their order. An event that alone is larger is left out."""
    groups: dict[str, list[str]] = defaultdict(list)
    sizes: dict[str, int] = defaultdict(int)
    for event in events:
        group, text = group_from(event["type"]), dumps(event)
        if len(text) > MOST_GROUP - 2:
            log.info("an event of %d bytes is left out: %s", len(text), event["type"])
            continue
        if sizes[group] + len(text) + 1 > MOST_GROUP:
            yield group, f"[{','.join(groups.pop(group))}]"
            sizes[group] = 0
        groups[group].append(text)
        sizes[group] += len(text) + 1
    for group, texts in groups.items():
        yield group, f"[{','.join(texts)}]"


class Dispatcher(EventDispatcher):  # type: ignore[misc]
    """Celery's, but for the sending."""

    def send(self, type: str, blind: bool = False, **fields: Any) -> None:
        """As Celery's; returns at once."""
        for how in ("retry", "retry_policy"):
            fields.pop(how, None)
        if self.enabled and (not self.groups or group_from(type) in self.groups):
            self.publish(type, fields, blind=blind)

    def publish(self, type: str, fields: dict[str, Any], *_producer: object, **options: Any) -> None:
        """As Celery's; returns at once. The producer, and how often it is to try, do not matter."""
        event = self._prepare_event(type, fields, blind=options.get("blind", False))
        self.app.events.outbox.add(event)


class FleetEvents(Events):  # type: ignore[misc]
    """An application's events."""

    dispatcher_cls = Dispatcher

    def __init__(self, app: Celery) -> None:
        super().__init__(app)
        self.outbox = Outbox(app)
