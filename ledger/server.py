"""Connections to Redis or Valkey: how they are made, checked, and how their errors are named."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from registry.errors import LedgerFull, LedgerUnavailable

#: Script flags (`allow-oom`), which let a full server empty itself, came with 7.0.
MINIMUM_VERSION = (7, 0)
#: Seconds until a silent server counts as away.
SOCKET_TIMEOUT = 30.0
#: A server this close to its maxmemory is treated as full.
FULL_SHARE = 0.97

#: redis-py's annotations serve its sync and async clients at once; they say nothing strict typing can use.
Redis = Any


def connect(url: str) -> Redis:
    """A client with bounded waits. Every script behind it may be sent twice and count once."""
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), 3)
    return redis.Redis.from_url(
        url,
        socket_timeout=SOCKET_TIMEOUT,
        socket_connect_timeout=5.0,
        health_check_interval=15,
        retry=retry,
        retry_on_error=[ConnectionError, TimeoutError],
    )


def hide_password(url: str) -> str:
    """The URL with `***` for its password, for messages."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    netloc = parts.netloc.replace(f":{parts.password}@", ":***@")
    return urlunsplit(parts._replace(netloc=netloc))


@contextmanager
def named_errors() -> Iterator[None]:
    """Turn redis-py's errors into LedgerFull and LedgerUnavailable; a script's own error stays one."""
    try:
        yield
    except OutOfMemoryError as error:
        raise LedgerFull(f"Redis is at its maxmemory and refuses writes: {error}") from error
    except AuthenticationError as error:
        raise LedgerUnavailable(
            f"Redis refused the login ({error}); check user and password in V5_REDIS_URL"
        ) from error
    except (ConnectionError, TimeoutError, BusyLoadingError, ReadOnlyError) as error:
        raise LedgerUnavailable(f"Redis cannot be reached or does not answer: {error}") from error
    except ResponseError as error:
        # A script that hits the limit inside reports it as its own error.
        if "OOM" in str(error):
            raise LedgerFull(f"Redis is at its maxmemory and refuses writes: {error}") from error
        if str(error).startswith(("MISCONF", "NOREPLICAS", "CLUSTERDOWN", "MASTERDOWN")):
            raise LedgerUnavailable(
                f"Redis refuses writes: {error}; is the disk of its data directory full?"
            ) from error
        raise
    except RedisError as error:
        raise LedgerUnavailable(f"Redis failed: {error}") from error


def check_server(client: Redis, url: str) -> None:
    """Refuse a server on which the fleet's promises do not hold.

    Raises LedgerUnavailable: not reachable, older than 7.0, or allowed to evict keys.
    """
    with named_errors():
        about: dict[str, Any] = client.info("server")
        memory: dict[str, Any] = client.info("memory")
    version = str(about.get("valkey_version") or about.get("redis_version", "0"))
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < MINIMUM_VERSION:
        raise LedgerUnavailable(
            f"the server at {hide_password(url)} is version {version}; Redis 7.0 or Valkey is needed"
        )
    policy = str(memory.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        raise LedgerUnavailable(
            f"the server at {hide_password(url)} has maxmemory-policy {policy}: it would throw work away "
            "when full. Set `maxmemory-policy noeviction` and start again"
        )


def maxmemory(client: Redis) -> int:
    """The server's limit in bytes; 0 for none."""
    with named_errors():
        memory: dict[str, Any] = client.info("memory")
    return int(memory.get("maxmemory", 0))


def is_full(client: Redis, share: float = FULL_SHARE) -> bool:
    """Whether the server uses this share of its maxmemory or more."""
    with named_errors():
        memory: dict[str, Any] = client.info("memory")
    limit = int(memory.get("maxmemory", 0))
    return limit > 0 and int(memory.get("used_memory", 0)) >= limit * share


def wait_for(client: Redis, url: str, seconds: float, said: Callable[[str], None] | None = None) -> None:
    """Wait until the server answers and pass it through `check_server`.

    Raises LedgerUnavailable if it still does not after `seconds`.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            check_server(client, url)
            return
        except LedgerUnavailable as error:
            if time.monotonic() >= end or "maxmemory-policy" in str(error) or "version" in str(error):
                raise
            if said is not None:
                said(str(error))
                said = None
            time.sleep(0.1)
