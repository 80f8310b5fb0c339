"""Names on the wire: queues, tasks, Redis keys. One place, so that they cannot drift apart."""

#: Every key of ours starts with this.
PREFIX = "v5:"
#: Celery's and kombu's keys (queues, unacked, bindings) start with this.
BROKER_PREFIX = "v5:mq:"

TASK_EMBED = "v5.embed"
TASK_AGGREGATE = "v5.aggregate"
TASK_EMBED_QUERY = "v5.embed_query"
#: Requests to the store are tasks `v5.store.<operation>`.
TASK_STORE = "v5.store"

QUEUE_AGGREGATE = "aggregate"
QUEUE_STORE = "store"


def embed_queue(model: str) -> str:
    """Bulk work of one model."""
    return f"embed.{model}"


def query_queue(model: str) -> str:
    """Requests with an answer to one model."""
    return f"query.{model}"


def step_model(queue: str) -> str:
    """The model of an `embed.<model>` queue; empty for `aggregate`."""
    return queue.removeprefix("embed.") if queue.startswith("embed.") else ""
