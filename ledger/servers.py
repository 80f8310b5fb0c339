"""The servers of a fleet and what each of them is for; one connection for roles that share a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redis.exceptions import NoPermissionError

from ledger.server import FULL_SHARE, Redis, check_server, connect, is_full, named_errors, persistence_warning
from registry.errors import LedgerUnfit
from registry.names import BROKER_PREFIX
from registry.redis_address import RedisAddress
from registry.settings import Settings

Role = Literal["ledger", "blobs", "broker"]
#: Seconds that a server has to answer when it is checked.
CHECK_TIMEOUT = 10.0
ROLES: tuple[Role, ...] = ("ledger", "blobs", "broker")


@dataclass(frozen=True, eq=False)
class Server:
    """A server, its connection, and its roles."""

    address: RedisAddress
    roles: frozenset[Role]
    client: Redis

    def __str__(self) -> str:
        roles = " and ".join(role for role in ROLES if role in self.roles)
        which = "Redis" if self.roles == set(ROLES) else f"the Redis of the {roles}"
        return f"{which} at {self.address.shown}"

    def check(self) -> None:
        """Refuse a server on which the fleet's promises do not hold. Raises LedgerUnavailable."""
        # Once, and not for long: a plain port that is spoken to with TLS says nothing at all.
        client = connect(self.address.url, tries=1, seconds=CHECK_TIMEOUT)
        try:
            # The broker's keys have no TTL: an eviction among keys that have one throws nothing of it away.
            check_server(client, str(self), may_evict_volatile=self.roles == {"broker"})
        finally:
            client.close()

    def check_consumer(self) -> None:
        """Refuse a broker whose user may not listen to Celery's control channel: its consumers would fail.

        Raises LedgerUnfit that names the channel. A pattern is granted word by word, not by another pattern.
        """
        channel = f"{BROKER_PREFIX}/{self.address.db}.celery.pidbox"
        with named_errors(str(self)):
            listening = self.client.pubsub()
            try:
                listening.psubscribe(channel)
                listening.get_message(timeout=5.0)
            except NoPermissionError as error:
                raise LedgerUnfit(
                    f"{self} does not permit its user to listen to the channel {channel}; grant it with "
                    f"`ACL SETUSER <user> '&{BROKER_PREFIX}*' '&{channel}'`"
                ) from error
            finally:
                listening.close()

    def is_full(self, share: float = FULL_SHARE) -> bool:
        """Whether it uses this share of its maxmemory or more."""
        return is_full(self.client, share)


class Servers:
    """Ledger, blobs and broker, wherever they are."""

    def __init__(self, settings: Settings) -> None:
        roles: dict[RedisAddress, set[Role]] = {settings.ledger_address: {"ledger"}}
        for address in settings.blob_addresses:
            roles.setdefault(address, set()).add("blobs")
        roles.setdefault(settings.broker_address, set()).add("broker")
        made = {a: Server(a, frozenset(named), connect(a.url)) for a, named in roles.items()}
        self.all = tuple(made.values())
        self.ledger = made[settings.ledger_address]
        self.broker = made[settings.broker_address]
        self.blobs = tuple(made[address] for address in settings.blob_addresses)

    def full(self) -> tuple[Server, ...]:
        """Those at their maxmemory."""
        return tuple(server for server in self.all if server.is_full())

    def forgetful(self) -> str:
        """What a restart of the ledger's server would lose, in words; empty if it keeps its data on disk."""
        return persistence_warning(self.ledger.client, str(self.ledger))

    def close(self) -> None:
        """Close all connections."""
        for server in self.all:
            server.client.close()
