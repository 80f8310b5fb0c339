"""The ledger as one object: a connection and everything that stands on it."""

from __future__ import annotations

from ledger.alive import Alive
from ledger.blobs import Blobs
from ledger.goldens import Goldens
from ledger.jobs import Jobs
from ledger.rates import Rates
from ledger.refused import RefusedMessages
from ledger.requests import Requests
from ledger.scripts import Scripts
from ledger.server import Redis, named_errors
from ledger.servers import Server, Servers
from ledger.steps import Steps
from registry.errors import LedgerUnavailable
from registry.names import PREFIX
from registry.plan import Plan, plan_from_json
from registry.settings import Settings

_FLEET_PLAN = f"{PREFIX}fleet:plan"


class Ledger:
    """Jobs, steps, blobs and liveness over one set of connections; safe to share between threads."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.servers = Servers(settings)
        self.redis: Redis = self.servers.ledger.client
        self.scripts = Scripts(self.redis)
        self.blobs = Blobs(self.servers.blobs, settings.blob_ttl_seconds)
        self.jobs = Jobs(self.redis, self.scripts, self.blobs, settings.max_dead)
        self.steps = Steps(settings, self.scripts, self.blobs)
        self.alive = Alive(self.redis, settings.alive_seconds)
        self.requests = Requests(self.redis, self.alive)
        self.rates = Rates(self.redis)
        self.goldens = Goldens(self.redis)
        self.refused = RefusedMessages(settings.ledger_address)

    def check(self) -> None:
        """Refuse to start on servers that are away or configured to lose data. Raises LedgerUnavailable."""
        try:
            self.servers.ledger.check()
        except LedgerUnavailable as error:
            if self.settings.embedded_redis and not self.settings.redis_socket.exists():
                raise LedgerUnavailable(
                    f"no fleet runs in {self.settings.data_dir}: start one with `v5 up`, or set V5_REDIS_URL "
                    "(or V5_DATA_DIR) to where one runs"
                ) from error
            raise
        for server in self.servers.all:
            if server is not self.servers.ledger:
                server.check()

    def relieves(self, batch: str, server: Server) -> bool:
        """Whether ending this batch frees memory of that server."""
        return server is self.servers.ledger or server is self.blobs.server(batch)

    def set_fleet_plan(self, plan: Plan) -> None:
        """Remember the plan that the running fleet serves."""
        with named_errors():
            self.redis.set(_FLEET_PLAN, plan.model_dump_json())

    def fleet_plan(self) -> Plan | None:
        """The plan that the running fleet serves, if it was started for one."""
        with named_errors():
            found = self.redis.get(_FLEET_PLAN)
        return plan_from_json(found) if found else None

    def reserved(self) -> int:
        """Bytes of the in-flight budget that are taken."""
        with named_errors():
            return int(self.redis.get(f"{PREFIX}credit") or 0)

    def depths(self) -> dict[str, int]:
        """Steps that are not done, per queue."""
        with named_errors():
            queues = sorted(name.decode() for name in self.redis.smembers(f"{PREFIX}queues"))
            pipe = self.redis.pipeline(transaction=False)
            for queue in queues:
                pipe.zcard(f"{PREFIX}steps:{queue}")
            return dict(zip(queues, pipe.execute(), strict=True))

    def close(self) -> None:
        """Close all connections."""
        self.servers.close()
        self.refused.close()
