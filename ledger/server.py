"""Connections to Redis or Valkey: how they are made, checked, and how their errors are named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError
from redis.retry import Retry

from ledger.refusals import explained
from registry.errors import LedgerUnavailable, LedgerUnfit

#: Script flags (`allow-oom`), which let a full server empty itself, came with 7.0.
MINIMUM_VERSION = (7, 0)
#: Seconds until a silent server counts as away.
SOCKET_TIMEOUT = 30.0
#: A server this close to its maxmemory is treated as full.
FULL_SHARE = 0.97

#: redis-py's annotations serve its sync and async clients at once; they say nothing strict typing can use.
Redis = Any


def connect(url: str, tries: int = 4, seconds: float = SOCKET_TIMEOUT) -> Redis:
    """A client that waits so many seconds for an answer. Every script behind it may be sent twice and count
    once.

    Tries of connecting are inside tries of commands: they multiply.
    """
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), tries - 1)
    return redis.Redis.from_url(
        url,
        socket_timeout=seconds,
        socket_connect_timeout=5.0,
        health_check_interval=15,
        retry=retry,
        retry_on_error=[ConnectionError, TimeoutError],
    )


@contextmanager
def named_errors(who: str = "Redis") -> Iterator[None]:
    """Turn redis-py's errors into LedgerFull, LedgerUnavailable and LedgerUnfit; a script's own error stays
    one. `who` names the server in the message."""
    try:
        yield
    except RedisError as error:
        meant = explained(error, who)
        if meant is None:
            raise
        raise meant from error


def check_server(client: Redis, who: str, *, may_evict_volatile: bool = False) -> None:
    """Refuse a server on which the fleet's promises do not hold; `who` names it in messages.

    Raises LedgerUnavailable if it cannot be reached, and LedgerUnfit if it is older than 7.0, a replica, a
    cluster, or allowed to evict keys (with `may_evict_volatile`: keys without a TTL).
    """
    with named_errors(who):
        # One round trip; the sections are named because old servers know no `INFO a b`.
        pipe = client.pipeline(transaction=False)
        for section in ("server", "memory", "replication", "cluster"):
            pipe.info(section)
        about: dict[str, Any] = {key: value for part in pipe.execute() for key, value in part.items()}
    version = str(about.get("valkey_version") or about.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < MINIMUM_VERSION:
        raise LedgerUnfit(f"{who} is version {version}; Redis 7.0 or Valkey is needed")
    if about.get("cluster_enabled") or about.get("redis_mode") == "cluster":
        raise LedgerUnfit(f"{who} runs in cluster mode, which is not supported; use a server of its own")
    if about.get("role") not in ("master", None):
        primary = f"{about.get('master_host', '')}:{about.get('master_port', '')}"
        raise LedgerUnfit(f"{who} is a replica; name its primary ({primary}) instead")
    policy = str(about.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction" and not (may_evict_volatile and policy.startswith("volatile-")):
        raise LedgerUnfit(
            f"{who} has maxmemory-policy {policy}: it would throw work away when full. Set "
            "`maxmemory-policy noeviction` and start again"
        )


def persistence_warning(client: Redis, who: str) -> str:
    """What a restart of the server would lose, in words; empty if it writes a log or snapshots."""
    with named_errors(who):
        about: dict[str, Any] = client.info("persistence")
        if int(about.get("aof_enabled", 0)) or int(about.get("rdb_saves", 0)):
            return ""
        try:
            if client.config_get("save").get("save"):
                return ""
        except ResponseError:
            # CONFIG is often forbidden; that it never saved is all that can be seen.
            pass
    return (
        f"{who} keeps nothing on disk: its restart loses what is in flight and the history of jobs (what is "
        "stored stays, and submitting again does the rest); set `appendonly yes` there"
    )


def maxmemory(client: Redis) -> int:
    """The server's limit in bytes; 0 for none."""
    with named_errors():
        memory: dict[str, Any] = client.info("memory")
    return int(memory.get("maxmemory", 0))


def as_text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    """A hash as Redis gives it, decoded."""
    return {name.decode(): value.decode() for name, value in fields.items()}


def is_full(client: Redis, share: float = FULL_SHARE) -> bool:
    """Whether the server uses this share of its maxmemory or more."""
    with named_errors():
        memory: dict[str, Any] = client.info("memory")
    limit = int(memory.get("maxmemory", 0))
    return limit > 0 and int(memory.get("used_memory", 0)) >= limit * share


def wait_for(client: Redis, who: str, seconds: float, said: Callable[[str], None] | None = None) -> None:
    """Wait until the server answers and pass it through `check_server`; `who` names it in messages.

    Raises LedgerUnavailable if it still does not after `seconds`, LedgerUnfit at once.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            check_server(client, who)
            return
        except LedgerUnfit:
            raise
        except LedgerUnavailable as error:
            if time.monotonic() >= end:
                raise
            if said is not None:
                said(str(error))
                said = None
            time.sleep(0.1)
