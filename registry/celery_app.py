"""The Celery application that every process of the fleet shares, each setting with its reason."""

from __future__ import annotations

from typing import Any

from celery import Celery

from registry.names import BROKER_PREFIX
from registry.settings import Settings, load_settings

#: A message unacknowledged for this long is delivered again. Seconds. Steps do not depend on it (their lease
#: does that); it only has to outlast a batch.
VISIBILITY_TIMEOUT = 180
#: Answers to requests are kept this long. Seconds.
ANSWER_TTL = 60

_TRANSPORT: dict[str, Any] = {
    "global_keyprefix": BROKER_PREFIX,
    # Shared by all queues of a database, and the shortest value of any client wins.
    "visibility_timeout": VISIBILITY_TIMEOUT,
    # Default: one sweep in about 100 s.
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    # One Redis list per queue, so that LLEN is the queue's length.
    "priority_steps": [0],
    # Queues are served in the order they are listed: requests before bulk work.
    "queue_order_strategy": "priority",
    # Without it a publish hangs while Redis is frozen.
    "socket_timeout": 30,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
}


def make_app(settings: Settings) -> Celery:
    """A configured application; it connects on first use."""
    url = settings.celery_url
    app = Celery("v5", broker=url, backend=url, set_as_current=False)
    transport = dict(_TRANSPORT)
    if url.startswith("redis+socket://"):
        transport.pop("socket_keepalive")
    app.conf.update(
        task_serializer="json",
        result_serializer="json",
        # Nothing from the wire is ever unpickled.
        accept_content=["json"],
        task_ignore_result=True,
        result_expires=ANSWER_TTL,
        # The message is kept until the step is done; losing it costs a wait, not work.
        task_acks_late=True,
        # Every exception is handled at the edge of the task; should one slip out, the doorbell is spent.
        task_acks_on_failure_or_timeout=True,
        # A worker holds no more messages than it works on, so queues stay visible to other workers.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_send_task_events=True,
        task_send_sent_event=True,
        # Stop waits for running steps, which give back their lease between micro-batches.
        worker_soft_shutdown_timeout=30,
        worker_cancel_long_running_tasks_on_connection_loss=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        # Default: 100 tries, then the worker ends.
        broker_connection_max_retries=None,
        broker_transport_options=transport,
        result_backend_transport_options={
            "global_keyprefix": BROKER_PREFIX,
            "socket_timeout": 30,
            "socket_connect_timeout": 5,
        },
        task_default_queue="v5.unrouted",
        task_publish_retry_policy={"max_retries": 3, "interval_start": 0.1, "interval_max": 1.0},
    )
    return app


def __getattr__(name: str) -> Celery:
    """`celery -A registry.celery_app …` finds `app` here, built from the environment on first use."""
    if name == "app":
        return make_app(load_settings())
    raise AttributeError(name)
