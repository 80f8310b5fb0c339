"""kombu's Redis transport behind a screen: a message is read strictly before kombu or Celery see any of it.

What is refused is gone from Redis already and was never noted as unacknowledged, so it does not come back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Container
from functools import partial
from typing import Any

from celery.app.amqp import AMQP
from kombu import Connection
from kombu.transport import redis

from registry.envelopes import (
    SHOWN,
    Kind,
    Refusal,
    RefusedMessage,
    printable,
    read_command,
    read_kept,
    read_other,
    read_task,
)

log = logging.getLogger(__name__)

#: Where workers hear of remote control, and where those who ask await the answers.
_CONTROL, _ANSWERS = ".celery.pidbox", ".reply.celery.pidbox"


class Screen:
    """Decides about every message that a process reads."""

    def __init__(
        self, tasks: Callable[[], Container[str]], refused: Callable[[RefusedMessage], None]
    ) -> None:
        """`tasks()` are those that the process serves; `refused(message)` is told of what is refused."""
        self._tasks = tasks
        self._refused = refused

    def queued(self, queue: str, raw: bytes) -> bytes | None:
        """A message taken from a queue, made anew; None if it is refused."""
        if queue.endswith(_ANSWERS):
            return self._read(queue, raw, read_other)
        return self._read(queue, raw, partial(read_task, queue=queue, tasks=self._tasks()))

    def heard(self, channel: str, raw: bytes) -> bytes | None:
        """A message heard on a channel, made anew; None if it is refused."""
        return self._read(channel, raw, read_command if channel.endswith(_CONTROL) else read_other)

    def kept(self, tag: str, raw: bytes) -> bool:
        """Whether an unacknowledged message can be put back into its queue."""
        return self._read(tag, raw, read_kept) is not None

    def _read(self, queue: str, raw: bytes, read: Callable[[bytes], bytes]) -> bytes | None:
        kind: Kind
        try:
            return read(raw)
        except Refusal as error:
            kind, why = error.kind, str(error)
        except Exception as error:
            # Whatever reading it does, it must not be what ends the event loop.
            kind, why = "not a message", f"it cannot be read: {error!r}"
        start = raw[:SHOWN].decode(errors="backslashreplace")
        message = RefusedMessage(
            printable(queue), kind, printable(why), len(raw), printable(start), time.time()
        )
        log.error(
            "refused a message of %d bytes from %s (%s): %s", len(raw), message.queue, kind, message.why
        )
        try:
            self._refused(message)
        except Exception as error:
            log.warning("could not set the message aside: %s", error)
        return None


def guarded(screen: Screen) -> type[AMQP]:
    """Celery's connections, all of them behind the screen."""

    class Behind(Connection):  # type: ignore[misc]
        """Of any of our URLs: kombu serves `redis`, `rediss` and `redis+socket` with one transport."""

        def get_transport_cls(self) -> type[Any]:
            """The transport behind the screen."""
            return Transport

    Behind.screen = screen

    class Guarded(AMQP):  # type: ignore[misc]
        """Makes those connections."""

    Guarded.Connection = Behind
    return Guarded


class _PubSub(redis.PrefixedRedisPubSub):  # type: ignore[misc]
    def __init__(self, *args: Any, screen: Screen, **kwargs: Any) -> None:
        self._screen = screen
        super().__init__(*args, **kwargs)

    def parse_response(self, *args: Any, **kwargs: Any) -> Any:
        """As kombu's; nothing where a message was refused."""
        found = super().parse_response(*args, **kwargs)
        if not found or found[0] not in (b"message", b"pmessage"):
            return found
        item = self._screen.heard(found[-2].decode(errors="replace"), found[-1])
        return None if item is None else [*found[:-1], item]


class _Client(redis.PrefixedStrictRedis):  # type: ignore[misc]
    def __init__(self, *args: Any, screen: Screen, **kwargs: Any) -> None:
        self._screen = screen
        super().__init__(*args, **kwargs)

    def pubsub(self, **kwargs: Any) -> _PubSub:
        """Behind the same screen."""
        return _PubSub(
            self.connection_pool, global_keyprefix=self.global_keyprefix, screen=self._screen, **kwargs
        )

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        """As kombu's; as if the queues were empty where a message was refused."""
        found = super().parse_response(connection, command_name, **options)
        if command_name != "BRPOP" or not found:
            return found
        queue, raw = found
        item = self._screen.queued(queue.decode(), raw)
        return None if item is None else (queue, item)


class _QoS(redis.QoS):  # type: ignore[misc]
    """Puts back what was not acknowledged, and takes out for good what cannot be put back."""

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """As kombu's, if the message can be read."""
        with self.channel.conn_or_acquire(client) as found:
            raw = found.hget(self.unacked_key, tag)
        name = tag.decode(errors="replace") if isinstance(tag, bytes) else str(tag)
        if raw is None or self.channel.screen.kept(f"unacked {name}", raw):
            super().restore_by_tag(tag, client, leftmost)
        else:
            self._remove_from_indices(tag).execute()


class Channel(redis.Channel):  # type: ignore[misc]
    """kombu's, with clients behind the connection's screen."""

    QoS = _QoS
    #: The client of the pool's connections, once there is one.
    _pooled: Any = None

    @property
    def screen(self) -> Screen:
        """Of the connection."""
        found: Screen = self.connection.client.screen
        return found

    def _get_client(self) -> Any:
        # kombu's checks redis-py's version, and knows the prefix.
        prefixed = super()._get_client()
        return partial(_Client, **prefixed.keywords, screen=self.screen)

    def _create_client(self, asynchronous: bool = False) -> Any:
        # kombu makes one for every command, and making it takes longer than most commands.
        if asynchronous:
            return super()._create_client(asynchronous=True)
        # Its pool is another one after the connections were closed.
        if self._pooled is None or self._pooled.connection_pool is not self.pool:
            self._pooled = super()._create_client()
        return self._pooled


class Transport(redis.Transport):  # type: ignore[misc]
    """kombu's, with channels behind the screen."""

    Channel = Channel
