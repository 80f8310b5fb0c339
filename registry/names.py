"""Names on the wire: queues, tasks, Redis keys. One place, so that they cannot drift apart."""

#: Every key of ours starts with this.
PREFIX = "v5:"
#: Celery's and kombu's keys (queues, unacked, bindings) start with this.
BROKER_PREFIX = "v5:mq:"

TASK_EMBED = "v5.embed"
TASK_AGGREGATE = "v5.aggregate"
TASK_EMBED_QUERY = "v5.embed_query"
TASK_RERANK = "v5.rerank"
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


def rerank_queue(model: str) -> str:
    """Requests for an order of candidates to one reranker."""
    return f"rerank.{model}"


def request_model(queue: str) -> str:
    """The model that answers requests on a `query.<model>` or `rerank.<model>` queue; empty for others."""
    kind, _, model = queue.partition(".")
    return model if kind in ("query", "rerank") else ""


def step_model(queue: str) -> str:
    """The model of an `embed.<model>` queue; empty for `aggregate`."""
    return queue.removeprefix("embed.") if queue.startswith("embed.") else ""


def golden_key(space: str) -> str:
    """Where the golden vectors of a space stand, by its fingerprint."""
    return f"{PREFIX}golden:{space}"
