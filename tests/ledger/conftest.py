"""Everything here holds on Redis 7.0 and on Valkey 9."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from ledger.ledger import Ledger
from ledger.server import wait_for
from registry.processes import die_with_parent
from registry.settings import Settings
from tests.redis_servers import KINDS, Kind, binary
from worker import private_redis


@pytest.fixture(params=KINDS)
def redis_server(request: pytest.FixtureRequest, settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A private server of each kind, with the configuration that a local fleet gives it."""
    kind: Kind = request.param
    *_, config = private_redis.prepare(settings)
    server = subprocess.Popen(
        [str(binary(kind)), config],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    ledger = Ledger(settings)
    wait_for(ledger.redis, str(ledger.servers.ledger), 20)
    assert ("valkey_version" in ledger.redis.info("server")) == (kind == "valkey")
    ledger.close()
    yield server
    server.kill()
    server.wait()
