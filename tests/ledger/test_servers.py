"""Servers that cannot serve: each is refused with one sentence that says what to do, and no password."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from ledger.servers import Servers
from registry.errors import LedgerFull, LedgerUnavailable, LedgerUnfit
from registry.settings import load_settings
from tests.redis_servers import (
    KINDS,
    Kind,
    RunningServer,
    ServerFactory,
    fleet_rights,
    make_certificates,
    tls_kind,
)

PASSWORD = "p@ss/w%rd"
LOGIN = "fleet:p%40ss%2Fw%25rd"


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


def check_all(servers: Servers) -> None:
    for server in servers.all:
        server.check()


def refusal(unfit: type[LedgerUnavailable] = LedgerUnfit, **settings: Any) -> str:
    """What a process says that is to use these servers."""
    servers = Servers(load_settings(**settings))
    try:
        with pytest.raises(unfit) as raised:
            check_all(servers)
    finally:
        servers.close()
    assert PASSWORD not in str(raised.value)
    assert LOGIN not in str(raised.value)
    return str(raised.value)


def accepted(**settings: Any) -> None:
    servers = Servers(load_settings(**settings))
    check_all(servers)
    servers.close()


@pytest.fixture
def guarded(kind: Kind, redis_servers: ServerFactory) -> RunningServer:
    """A server whose only user needs a password."""
    return redis_servers.start(
        kind, tcp=True, users=("default off", f"fleet on >{PASSWORD} {fleet_rights()}")
    )


def test_logins(guarded: RunningServer) -> None:
    accepted(redis_url=guarded.url(LOGIN))
    assert "check user and password in V5_REDIS_URL" in refusal(redis_url=guarded.url("fleet:wrong"))
    assert "wants a login" in refusal(redis_url=guarded.url())


def test_a_password_where_none_is_known(kind: Kind, redis_servers: ServerFactory) -> None:
    assert "check user and password" in refusal(redis_url=redis_servers.start(kind, tcp=True).url(LOGIN))


@pytest.mark.parametrize(
    ("taken", "does", "named"),
    [
        ("-info", lambda ledger: ledger.check(), "+info"),
        ("-blpop", lambda ledger: ledger.requests.wait("x", 0.1), "+blpop"),
        ("-@scripting", lambda ledger: ledger.scripts.run("seal", "j"), "+evalsha"),
        ("-hget", lambda ledger: ledger.scripts.run("seal", "j"), "+hget"),
        ("resetkeys ~other:*", lambda ledger: ledger.depths(), "~v5:*"),
        ("resetkeys ~other:*", lambda ledger: ledger.scripts.run("seal", "j"), "~v5:*"),
        ("resetchannels", lambda ledger: ledger.servers.broker.check_consumer(), "&v5:mq:/0.celery.pidbox"),
    ],
)
def test_a_missing_permission_is_named_with_its_grant(
    guarded: RunningServer, taken: str, does: Callable[[Ledger], object], named: str
) -> None:
    guarded.admin.execute_command("ACL", "SETUSER", "fleet", *taken.split())
    ledger = Ledger(load_settings(redis_url=guarded.url(LOGIN)))
    with pytest.raises(LedgerUnfit) as raised:
        does(ledger)
    ledger.close()
    # Redis 7.0 does not say which command of a script it was.
    said = str(raised.value)
    assert named in said or (guarded.kind == "redis" and taken == "-hget" and "ACL LOG" in said)


def test_a_replica_names_its_primary(kind: Kind, redis_servers: ServerFactory) -> None:
    primary = redis_servers.start(kind, tcp=True)
    replica = redis_servers.start(kind, f"replicaof 127.0.0.1 {primary.port}", tcp=True)
    assert f"name its primary (127.0.0.1:{primary.port})" in refusal(redis_url=replica.url())
    assert "the broker" in refusal(redis_url=primary.url(), broker_url=replica.url())
    ledger = Ledger(load_settings(redis_url=replica.url()))
    with pytest.raises(LedgerUnavailable, match="replica"):
        ledger.requests.ask("x", b"y", 1)
    with pytest.raises(LedgerUnavailable, match="replica"):
        ledger.scripts.run("open_job", "j", "s", "c", "f", "{}", "[]", "h", 1)
    ledger.close()


def test_a_cluster_is_refused(kind: Kind, redis_servers: ServerFactory) -> None:
    cluster = redis_servers.start(kind, "cluster-enabled yes", tcp=True)
    assert "cluster mode, which is not supported" in refusal(redis_url=cluster.url())


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_eviction_is_refused_where_it_would_throw_work_away(
    kind: Kind, redis_servers: ServerFactory, policy: str
) -> None:
    """Blobs have a TTL, the broker's keys have none."""
    good = redis_servers.start(kind)
    evicting = redis_servers.start(kind, f"maxmemory-policy {policy}", "maxmemory 100mb")
    said = refusal(redis_url=good.url(), blob_urls=(good.url(), evicting.url()))
    assert "the blobs" in said
    assert "noeviction" in said
    assert "noeviction" in refusal(redis_url=evicting.url(), broker_url=good.url())
    if policy == "volatile-ttl":
        accepted(redis_url=good.url(), broker_url=evicting.url())
    else:
        assert "the broker" in refusal(redis_url=good.url(), broker_url=evicting.url())


class OldVersion:
    """Passes everything on to a server, and says that it is version 6."""

    def __init__(self, server: RunningServer) -> None:
        about = server.admin.info("server")
        version = str(about.get("valkey_version") or about["redis_version"]).encode()
        self._says = {b"_version:" + version: b"_version:6" + version[1:]}
        self._server = server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._server.port))
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with source, sink:
            while True:
                try:
                    data = source.recv(1 << 16)
                    for true, said in self._says.items():
                        data = data.replace(true, said)
                    sink.sendall(data)
                except OSError:
                    return
                if not data:
                    return

    def close(self) -> None:
        self._listening.close()


@pytest.fixture
def old_version(kind: Kind, redis_servers: ServerFactory) -> Iterator[OldVersion]:
    proxy = OldVersion(redis_servers.start(kind, tcp=True))
    yield proxy
    proxy.close()


def test_an_old_server_is_refused(old_version: OldVersion) -> None:
    said = refusal(redis_url=f"redis://127.0.0.1:{old_version.port}")
    assert "version 6" in said
    assert "7.0" in said


def test_tls(redis_servers: ServerFactory, tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path / "tls")
    certificate, key = certificates.pair("client")
    open_to_all = redis_servers.start(tls_kind(), tls=certificates)
    asking = redis_servers.start(tls_kind(), "tls-auth-clients yes", tls=certificates)
    ca = {"redis_tls_ca": certificates.ca}
    accepted(redis_url=open_to_all.url(), **ca)
    accepted(redis_url=f"{open_to_all.url()}?ssl_ca_certs={certificates.ca}")
    accepted(redis_url=open_to_all.url(), redis_tls_verify=False)
    accepted(redis_url=asking.url(), redis_tls_cert=certificate, redis_tls_key=key, **ca)
    assert "V5_REDIS_TLS_CA" in refusal(redis_url=open_to_all.url())
    # Its alert may be overtaken by the end of the connection.
    assert "V5_REDIS_TLS_CERT" in refusal(LedgerUnavailable, redis_url=asking.url(), **ca)
    # The certificate is for localhost and 127.0.0.1.
    elsewhere = open_to_all.url().replace("localhost", socket.gethostname())
    if socket.gethostname() != "localhost" and _leads_here(socket.gethostname(), open_to_all.port):
        assert "host name" in refusal(redis_url=elsewhere, **ca)


def _leads_here(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def test_tls_and_a_plain_port_do_not_understand_each_other(
    redis_servers: ServerFactory, tmp_path: Path
) -> None:
    secure = redis_servers.start(tls_kind(), tls=make_certificates(tmp_path / "tls"))
    plain = redis_servers.start("valkey", tcp=True)
    for url, says in (
        (secure.url().replace("rediss:", "redis:"), "rediss://"),
        (plain.url().replace("redis:", "rediss:"), "speaks TLS"),
    ):
        servers = Servers(load_settings(redis_url=url))
        with pytest.raises(LedgerUnavailable, match=says):
            servers.ledger.check()
        servers.close()


@pytest.mark.parametrize(
    ("lines", "warns"),
    [((), True), (("appendonly yes",), False), (("save 3600 1",), False)],
    ids=["nothing", "log", "snapshots"],
)
def test_a_ledger_that_keeps_nothing_on_disk_is_said(
    kind: Kind, redis_servers: ServerFactory, lines: tuple[str, ...], warns: bool
) -> None:
    server = redis_servers.start(kind, *lines)
    servers = Servers(load_settings(redis_url=server.url()))
    assert bool(servers.forgetful()) is warns
    servers.close()


def test_it_is_said_where_config_is_forbidden_too(guarded: RunningServer) -> None:
    servers = Servers(load_settings(redis_url=guarded.url(LOGIN)))
    assert "appendonly yes" in servers.forgetful()
    guarded.admin.bgsave()
    servers.close()


def test_the_budget_and_fullness_are_the_blob_servers(kind: Kind, redis_servers: ServerFactory) -> None:
    main = redis_servers.start(kind, "maxmemory 500mb")
    blobs = [redis_servers.start(kind, "maxmemory 60mb"), redis_servers.start(kind, "maxmemory 40mb")]
    ledger = Ledger(
        load_settings(redis_url=main.url(), blob_urls=[b.url() for b in blobs], broker_url=main.url(db=3))
    )
    assert ledger.blobs.budget(0) == 40 << 20
    assert ledger.servers.full() == ()
    blobs[1].admin.config_set("maxmemory", 100)
    (full,) = ledger.servers.full()
    assert full is ledger.blobs.servers[1]
    assert "the Redis of the blobs at" in str(full)
    names = [f"job.{n}" for n in range(20)]
    freeing = [name for name in names if ledger.relieves(name, full)]
    assert freeing == [name for name in names if ledger.blobs.server(name) is full]
    assert 0 < len(freeing) < 20
    assert all(ledger.relieves(name, ledger.servers.ledger) for name in names)
    with pytest.raises(LedgerFull, match="the blobs"):
        ledger.blobs.put(freeing[0], "v5:blob:x", b"x" * 100)
    ledger.close()


def test_the_documented_rights_are_the_tested_ones() -> None:
    text = (Path(__file__).parents[2] / "docs" / "redis.md").read_text()
    assert f"ACL SETUSER fleet on >PASSWORD {fleet_rights()}\n" in text
