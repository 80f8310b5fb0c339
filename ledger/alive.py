"""Liveness: a key with a TTL per process. `inspect` is never asked."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ledger.scripts import Scripts
from ledger.server import Redis, named_errors
from registry.names import PREFIX

Condition = Literal["starting", "ready", "waiting", "stopping", "failed"]
#: Processes that ended for good and why, by name and host.
_FAILED = f"{PREFIX}failed"
#: How long they are shown after the last of them. Seconds.
FAILED_SECONDS = 3600


@dataclass(frozen=True)
class Process:
    """A process of the fleet as it describes itself."""

    kind: Literal["worker", "aggregator", "producer", "flower"]
    name: str
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    model: str = ""
    device: str = ""
    #: Fingerprint of the space it serves, per output kind.
    spaces: dict[str, str] = field(default_factory=dict)
    numerics: dict[str, Any] = field(default_factory=dict)
    condition: Condition = "starting"
    #: What it waits for or says, for people.
    note: str = ""
    since: float = field(default_factory=time.time)
    #: Totals since it started, by name; as of its last sign of life.
    counters: dict[str, float] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Unique over the fleet."""
        return f"{self.name}@{self.host}:{self.pid}"


class Alive:
    """Announces processes and lists those that live."""

    def __init__(self, client: Redis, seconds: float) -> None:
        self._redis = client
        self._run = Scripts(client).run
        self._ttl_ms = int(seconds * 1000)

    def announce(self, process: Process) -> None:
        """Say that a process lives, for one TTL."""
        ready = f"{process.name}@{process.host}" if process.condition == "ready" else ""
        self._run("announce", process.id, json.dumps(asdict(process)), self._ttl_ms, ready)

    def fail(self, process: Process) -> None:
        """Say that a process ends and is not to be started again; its note says why."""
        with named_errors():
            pipe = self._redis.pipeline(transaction=False)
            pipe.unlink(f"{PREFIX}alive:{process.id}")
            pipe.zrem(f"{PREFIX}alive", process.id)
            pipe.hset(_FAILED, f"{process.name}@{process.host}", json.dumps(asdict(process)))
            pipe.expire(_FAILED, FAILED_SECONDS)
            pipe.execute()

    def failed(self) -> list[Process]:
        """Processes that ended for good within the last hour and were not replaced, by kind and name."""
        with named_errors():
            values = self._redis.hvals(_FAILED)
        ended = [Process(**json.loads(value)) for value in values]
        return sorted(ended, key=lambda p: (p.kind, p.name, p.pid))

    def withdraw(self, process: Process) -> None:
        """Say that a process ends."""
        with named_errors():
            self._redis.unlink(f"{PREFIX}alive:{process.id}")
            self._redis.zrem(f"{PREFIX}alive", process.id)

    def list(self) -> list[Process]:
        """All processes that live, by kind and name."""
        with named_errors():
            names = [name.decode() for name in self._redis.zrange(f"{PREFIX}alive", 0, -1)]
            values = self._redis.mget([f"{PREFIX}alive:{name}" for name in names]) if names else []
            gone = [name for name, value in zip(names, values, strict=True) if value is None]
            if gone:
                self._redis.zrem(f"{PREFIX}alive", *gone)
        living = [Process(**json.loads(value)) for value in values if value is not None]
        return sorted(living, key=lambda p: (p.kind, p.name, p.pid))
