"""Fleets on servers as people have them: several, users of few rights, TLS, passwords, one that fills."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from registry.errors import InfrastructureError
from tests.redis_servers import KINDS, Kind, ServerFactory, fleet_rights, make_certificates, tls_kind

pytestmark = pytest.mark.fleet

FAKE = {
    "fake_encoders": "true", "ring_seconds": "1.5", "lease_seconds": "4", "reconcile_seconds": "0.2",
    "alive_seconds": "3", "batch_chunks": "16", "window_chunks": "256",
}  # fmt: skip
SECRETS = ("Kq7@x/Lw%9", "Zt4:y?Mv&2", "Bn8#u,Pd+5")


def quoted(secret: str) -> str:
    """Percent-encoded, for a URL."""
    return "".join(c if c.isalnum() else f"%{ord(c):02X}" for c in secret)


def leaks(text: str) -> list[str]:
    """Secrets in a text, in any spelling; their halves too, since a URL may be cut at a sign."""
    spellings = {s for secret in SECRETS for s in (secret, quoted(secret), secret[:4], secret[5:])}
    return [f"{s} in {line[:300]}" for line in text.splitlines() for s in spellings if s in line]


def logs(fleet: Any) -> str:
    return "".join(path.read_text() for path in sorted((fleet.data_dir / "logs").glob("*.log")))


def command_lines(fleet: Any) -> str:
    """Arguments of the fleet's processes."""
    return "".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in fleet.pids().values())


class Said:
    """Runs commands and keeps all that they print."""

    def __init__(self, fleet: Any) -> None:
        self._fleet = fleet
        self.text = ""

    def run(self, code: int, *arguments: str) -> subprocess.CompletedProcess[str]:
        done: subprocess.CompletedProcess[str] = self._fleet.v5(*arguments)
        self.text += done.stdout + done.stderr
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        return done


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS[1:])])
def test_three_places_with_users_of_few_rights_and_nothing_leaks(
    kind: Kind,
    redis_servers: ServerFactory,
    make_fleet: Callable[..., Any],
    corpus: Callable[..., Path],
    eventually: Callable[..., Any],
    tmp_path: Path,
) -> None:
    first, second, third = SECRETS
    nobody = "default off"
    ledger_server = redis_servers.start(
        kind, "appendonly yes", tcp=True, users=(nobody, f"fleet on >{first} {fleet_rights()}")
    )
    blob_servers = [
        redis_servers.start(k, users=(f"default on >{second} {fleet_rights()}",)) for k in ("valkey", kind)
    ]
    certificates = make_certificates(tmp_path / "tls")
    broker = redis_servers.start(
        tls_kind(), tls=certificates, users=(nobody, f"mq on >{third} {fleet_rights(db=3)}")
    )
    fleet = make_fleet(
        **FAKE,
        redis_url=ledger_server.url(f"fleet:{quoted(first)}"),
        blob_urls=", ".join(server.url(f":{quoted(second)}") for server in blob_servers),
        broker_url=broker.url(f"mq:{quoted(third)}", db=3),
        redis_tls_ca=certificates.ca,
    )
    fleet.up()
    said = Said(fleet)
    path = str(corpus(200))
    said.run(0, "submit", path, "-c", "c", "--json")
    hits = json.loads(said.run(0, "search", "chunk number 7", "-c", "c", "--json").stdout)
    assert hits
    verified = json.loads(said.run(0, "verify", path, "-c", "c", "--json").stdout)
    assert (verified["present"], verified["missing"]) == (200, 0)
    job = json.loads(said.run(0, "jobs", "--json").stdout)[0]["job"]
    for command in (["watch", job], ["cancel", job], ["ps", "--json"], ["doctor"]):
        said.run(0, *command)
    findings = {row["what"]: row for row in json.loads(said.run(0, "doctor", "--json").stdout)}
    assert [row["verdict"] for what, row in findings.items() if what.startswith("Redis")] == ["ok"] * 4
    # Each thing is where it was asked to be.
    assert not ledger_server.admin.keys("v5:mq:*")
    assert ledger_server.admin.exists(f"v5:job:{job}")
    assert {server.admin.info("commandstats").get("cmdstat_unlink", {}).get("calls", 0) > 0
            for server in blob_servers} == {True}  # fmt: skip
    assert set(broker.admin.info("keyspace")) == {"db3"}
    denied = [row for server in (ledger_server, *blob_servers, broker) for row in server.admin.acl_log()]
    assert {row["object"] for row in denied} <= {"config|get"}
    # Passwords change under a running fleet: Celery and the ledger say that they cannot connect.
    ledger_server.admin.execute_command("ACL", "SETUSER", "fleet", ">other", f"<{first}")
    broker.admin.execute_command("ACL", "SETUSER", "mq", ">other", f"<{third}")
    for server in (ledger_server, broker):
        server.admin.client_kill_filter(_type="normal", skipme=True)
        server.admin.client_kill_filter(_type="pubsub")
    for command in (["submit", path, "-c", "c"], ["search", "x", "-c", "c"]):
        assert "check user and password" in said.run(1, *command).stderr
    assert "check user and password" in said.run(1, "doctor").stdout
    eventually(lambda: "consumer" in logs(fleet), what="Celery's word about its lost connection")
    assert leaks(said.text) == []
    assert leaks(logs(fleet)) == []
    assert leaks(command_lines(fleet)) == []


def test_a_wrong_password_ends_every_command_with_one_line(
    redis_servers: ServerFactory, make_fleet: Callable[..., Any], corpus: Callable[..., Path]
) -> None:
    server = redis_servers.start(
        "valkey", tcp=True, users=("default off", f"fleet on >right {fleet_rights()}")
    )
    path = str(corpus(3))
    fleet = make_fleet(**FAKE)
    said = Said(fleet)
    wrong = quoted(SECRETS[0])
    queried = f"{server.url()}?username=fleet&password={wrong}"
    commands = (["submit", path, "-c", "c"], ["search", "x", "-c", "c"], ["jobs"], ["ps"])
    urls = (server.url(f"fleet:{wrong}"), server.url(f":{wrong}"), queried, queried)
    for url, command in zip(urls, commands, strict=True):
        fleet.environment["V5_REDIS_URL"] = url
        done = said.run(1, *command)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "check user and password in V5_REDIS_URL" in done.stderr
    assert "check user and password" in said.run(1, "up", "--primary", "qdrant-minilm-onnx").stderr
    for command in (["worker", "qdrant-minilm-onnx"], ["aggregator"], ["doctor"], ["doctor", "--json"]):
        said.run(1, *command)
    # The same password with its signs unencoded cannot be read at all.
    fleet.environment["V5_REDIS_URL"] = server.url(f"fleet:{SECRETS[0]}")
    for command in (["jobs"], ["up"], ["worker", "qdrant-minilm-onnx"]):
        assert "%2F" in said.run(2, *command).stderr
    del fleet.environment["V5_REDIS_URL"]
    assert leaks(said.text) == []
    assert leaks(logs(fleet)) == []


def test_a_full_blob_server_empties_itself(
    redis_servers: ServerFactory, make_fleet: Callable[..., Any], corpus: Callable[..., Path]
) -> None:
    """The ledger has room; texts fill one of two blob servers so that no vectors fit."""
    ledger_server = redis_servers.start("valkey")
    blob_servers = [redis_servers.start(kind, "maxmemory 8mb") for kind in KINDS]
    fleet = make_fleet(
        **{**FAKE, "batch_chunks": "32"}, fake_seconds="0.005", inflight_bytes=1 << 30,
        redis_url=ledger_server.url(), blob_urls=",".join(server.url() for server in blob_servers),
    )  # fmt: skip
    fleet.up()
    rng = random.Random(1)
    path = corpus(3000, text=lambda _i: "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(2500)))
    submit = fleet.start("submit", str(path), "-c", "c", "--json")
    ledger = Ledger(fleet.settings())
    was_full = False
    while submit.poll() is None:
        with contextlib.suppress(InfrastructureError):
            was_full = was_full or bool(ledger.servers.full())
    out, err = submit.communicate(timeout=10)
    assert submit.returncode == 0, err
    assert was_full, "the test did not fill a server"
    end = json.loads(out.splitlines()[-1])
    assert (end["chunks"], end["dead"]) == (3000, 0)
    found = fleet.ok("verify", str(path), "-c", "c")
    assert (found["present"], found["missing"], found["stale"]) == (3000, 0, 0)
    assert ledger.reserved() == 0
    ledger.close()
