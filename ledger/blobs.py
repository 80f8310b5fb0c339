"""Blobs: the bytes beside the broker, on one or several servers, each with a TTL."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ledger.scripts import Argument, Scripts
from ledger.server import maxmemory, named_errors
from ledger.servers import Server
from registry.names import PREFIX
from registry.settings import MIB

#: In-flight budget where no server has a maxmemory. Bytes.
DEFAULT_BUDGET = 1024 * MIB
#: Answers to requests are kept this long, and their arguments this long past their deadline. Seconds.
REQUEST_TTL = 120


def text_key(batch: str, token: str) -> str:
    """The blob of a batch's chunks; each staging has its own, so that a producer that slept while another
    took its job over cannot put its text in the place of what was staged."""
    return f"{PREFIX}blob:{batch}:text:{token}"


def part_key(batch: str, model: str, token: str) -> str:
    """The blob of one attempt's vectors; each attempt has its own, so that no loser overwrites a winner."""
    return f"{PREFIX}blob:{batch}:{model}:{token}"


def blob_keys(batch: str, fields: Mapping[str, str]) -> list[str]:
    """All blobs of a batch, from what the ledger has of it; none if it has nothing."""
    keys = [text_key(batch, fields["text"])] if "text" in fields else []
    for name, value in fields.items():
        if name.startswith("part:"):
            keys.append(part_key(batch, name.removeprefix("part:"), json.loads(value)["token"]))
    return keys


def request_key(identity: str) -> str:
    """The arguments of a request."""
    return f"{PREFIX}blob:request:{identity}"


def tries_key(identity: str) -> str:
    """The processes that run a request, or ended while they did."""
    return f"{request_key(identity)}:tries"


def answer_key(identity: str) -> str:
    """The answer to a request."""
    return f"{PREFIX}blob:answer:{identity}"


class Blobs:
    """Reads and writes blobs on the servers of `V5_BLOB_URLS`, chosen by the batch (or request) id."""

    def __init__(self, servers: Sequence[Server], ttl_seconds: int) -> None:
        self.servers = servers
        self._ttl = ttl_seconds

    def server(self, owner: str) -> Server:
        """Where the blobs of a batch are. Every process must have the servers in the same order."""
        return self.servers[zlib.crc32(owner.encode()) % len(self.servers)]

    def put(self, owner: str, key: str, blob: bytes, ttl: int = 0) -> None:
        """Write a blob of a batch. Raises LedgerFull or LedgerUnavailable."""
        server = self.server(owner)
        with named_errors(str(server)):
            server.client.set(key, blob, ex=ttl or self._ttl)

    def put_and_run(
        self, scripts: Scripts, owner: str, key: str, blob: bytes, name: str, *arguments: Argument
    ) -> Any:
        """Write a blob of a batch, then run a script of the ledger; in one round trip if one server has both.

        The script's last argument is the blob's key if it is to see whether the blob is there, else empty:
        a server that refused the blob runs the script all the same. Raises as `put`, and then no script
        counts.
        """
        if self.beside(scripts, owner):
            return scripts.run_after(("SET", key, blob, "EX", self._ttl), name, *arguments, key)
        self.put(owner, key, blob)
        return scripts.run(name, *arguments, "")

    def beside(self, scripts: Scripts, owner: str) -> bool:
        """Whether the blobs of a batch are on the ledger's own server."""
        return self.server(owner).client is scripts.client

    def get(self, owner: str, keys: Sequence[str]) -> list[bytes | None]:
        """Read several blobs of a batch in one round trip; None for each that is gone."""
        if not keys:
            return []
        server = self.server(owner)
        with named_errors(str(server)):
            found: list[bytes | None] = server.client.mget(list(keys))
        return found

    def delete(self, owner: str, keys: Iterable[str]) -> None:
        """Delete blobs of a batch."""
        names = list(keys)
        server = self.server(owner)
        if names:
            with named_errors(str(server)):
                server.client.unlink(*names)

    def renew(self, owner: str, keys: Iterable[str]) -> None:
        """Start the TTL of a batch's blobs again."""
        server = self.server(owner)
        with named_errors(str(server)):
            pipe = server.client.pipeline(transaction=False)
            for key in keys:
                pipe.expire(key, self._ttl)
            pipe.execute()

    def budget(self, configured: int) -> int:
        """Bytes that may be in flight: as configured, else half of the servers' maxmemory."""
        if configured:
            return configured
        limits = [maxmemory(server.client) for server in self.servers]
        bounded = [limit for limit in limits if limit]
        return min(bounded) * len(self.servers) // 2 if bounded else DEFAULT_BUDGET
