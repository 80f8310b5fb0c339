"""The Celery application that every process of the fleet shares, each setting with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery

from registry.envelopes import RefusedMessage
from registry.errors import LedgerUnavailable
from registry.events import FleetEvents
from registry.names import BROKER_PREFIX
from registry.settings import Settings, load_settings
from registry.transport import Screen, guarded

#: A message unacknowledged for this long is delivered again. Seconds. Steps do not depend on it (their lease
#: does that); it only has to outlast a batch.
VISIBILITY_TIMEOUT = 180

_TRANSPORT: dict[str, Any] = {
    # Broker keys stand beside the ledger's without meeting them.
    "global_keyprefix": BROKER_PREFIX,
    # Shared by all queues of a database, and the shortest value of any client wins.
    "visibility_timeout": VISIBILITY_TIMEOUT,
    # Default: one sweep in about 100 s.
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    # Default: 300. A consumer that is killed while it sweeps keeps all others from it for as long. Two that
    # sweep at once deliver nothing twice.
    "unacked_mutex_expire": 20,
    # One Redis list per queue, so that LLEN is the queue's length.
    "priority_steps": [0],
    # Without it a publish hangs while Redis is frozen. On connections that a router forgot, a consumer waits
    # for as long several times in a row: for its acknowledgement, its events, its sweep.
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    # A host that lost power, and a connection that is open at one end only, are noticed.
    "socket_keepalive": True,
    "health_check_interval": 10,
}


def make_app(settings: Settings, refused: Callable[[RefusedMessage], None] = lambda _message: None) -> Celery:
    """A configured application; it connects on first use. `refused(message)` is told of each message that is
    not let in."""
    url = settings.celery_url
    screen = Screen(lambda: app.tasks, refused)
    # No result backend: answers to requests are blobs of the ledger, which a caller may ask for again.
    app = Celery("v5", broker=url, set_as_current=False, amqp=guarded(screen), events=FleetEvents)
    transport = dict(_TRANSPORT)
    if url.startswith("redis+socket://"):
        # A Unix socket knows no keepalive and refuses the option.
        transport.pop("socket_keepalive")
    app.conf.update(
        task_serializer="json",
        # Nothing from the wire is ever unpickled.
        accept_content=["json"],
        # Hot tasks store nothing; the ledger has what must be known.
        task_ignore_result=True,
        # The message is kept until the step is done; losing it costs a wait, not work.
        task_acks_late=True,
        # Every exception is handled at the edge of the task; should one slip out, the doorbell is spent.
        task_acks_on_failure_or_timeout=True,
        # A worker holds no more messages than it works on, so queues stay visible to other workers.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        # For Flower, with the moment of sending; nothing is driven by events.
        worker_send_task_events=True,
        task_send_sent_event=True,
        # Threads cannot be cancelled: said here so that Celery does not warn at every lost connection.
        worker_cancel_long_running_tasks_on_connection_loss=True,
        # The processes log in their own format.
        worker_hijack_root_logger=False,
        # A fleet may start before its Redis.
        broker_connection_retry_on_startup=True,
        # Default: 100 tries, then the worker ends.
        broker_connection_max_retries=None,
        broker_transport_options=transport,
        # Every message names its queue; one that does not shows here instead of among Celery's own.
        task_default_queue="v5.unrouted",
        # A doorbell that cannot be sent soon is not sent: the reconciler rings again.
        task_publish_retry_policy={"max_retries": 3, "interval_start": 0.1, "interval_max": 1.0},
    )
    return app


def __getattr__(name: str) -> Celery:
    """`celery -A registry.celery_app …` finds `app` here, built from the environment on first use."""
    if name == "app":
        return make_app(load_settings())
    raise AttributeError(name)


def send(app: Celery, task: str, **options: Any) -> None:
    """Send a message for which nobody waits at the broker; `options` are `Celery.send_task`'s.

    Raises LedgerUnavailable whatever kept the broker from taking it: of a connection lost under it, kombu
    raises AttributeErrors, too.
    """
    try:
        app.send_task(task, ignore_result=True, **options)
    except Exception as error:
        raise LedgerUnavailable(f"the broker took no request: {error!r}") from error
