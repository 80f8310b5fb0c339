"""Redis and Valkey servers as people have them: with users, TLS or a replica, on TCP or on a socket."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

import pytest
import redis

from registry.errors import FleetError
from registry.processes import die_with_parent
from worker import private_redis

Kind = Literal["redis", "valkey"]
KINDS: tuple[Kind, ...] = ("redis", "valkey")


def fleet_rights(db: int = 0) -> str:
    """The least that a fleet's user needs where the broker's database is `db`; docs/redis.md explains it."""
    channels = " ".join(f"&v5:mq:{name}" for name in ("*", f"/{db}.celery.pidbox", f"/{db}.celeryev/*"))
    return (
        f"~v5:* {channels} -@all +@read +@write +@connection +@transaction +@pubsub +@scripting -@dangerous "
        "+info +time"
    )


def missing(what: str) -> NoReturn:
    """Skip where a program is not installed; fail in CI, where everything must have run."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


def binary(kind: Kind) -> Path:
    """The server program: Valkey from its package, Redis from the PATH."""
    if kind == "valkey":
        try:
            return private_redis.find_server()
        except FleetError as error:
            missing(str(error))
    found = shutil.which("redis-server")
    if found is None:
        missing("redis-server (Debian: apt-get install redis-server)")
    return Path(found)


def tls_kind() -> Kind:
    """A kind whose program was built with TLS; the package's Valkey is not."""
    for kind in KINDS:
        # Without certificates it ends at once either way, but says which way.
        command = [str(binary(kind)), "--port", "0", "--tls-port", "1"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        if "Failed finding TLS support" not in done.stdout and "Bad directive" not in done.stderr:
            return kind
    missing("a server program with TLS")


@dataclass(frozen=True)
class Certificates:
    """An authority, a server's certificate for localhost, and a client's."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The authority."""
        return self.folder / "ca.pem"

    def pair(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of `server` or `client`."""
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"


def make_certificates(folder: Path) -> Certificates:
    """Fresh certificates, good for a day."""
    if shutil.which("openssl") is None:
        missing("openssl")
    folder.mkdir(parents=True)
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "1"]

    def run(*arguments: str) -> None:
        subprocess.run(["openssl", "req", *arguments], cwd=folder, check=True, capture_output=True)

    run("-x509", *new, "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        run(
            "-x509", *new, "-subj", f"/CN={name}", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-addext", "basicConstraints=CA:false",
            "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip
    return Certificates(folder)


@dataclass
class RunningServer:
    """A server of one test. `port` is 0 on a socket."""

    kind: Kind
    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    tls: Certificates | None = None
    #: For the test itself; has every right.
    admin: redis.Redis = field(init=False)

    def __post_init__(self) -> None:
        self.admin = redis.Redis(unix_socket_path=str(self.socket), username="admin", password="admin")

    @property
    def socket(self) -> Path:
        """Every server has one."""
        return self.folder / "s"

    def url(self, login: str = "", db: int = 0) -> str:
        """`login` is `user:password`, percent-encoded."""
        login = f"{login}@" if login else ""
        if self.port:
            return f"{'rediss' if self.tls else 'redis'}://{login}localhost:{self.port}/{db}"
        return f"unix://{login}{self.socket}?db={db}"

    def stop(self) -> None:
        """End it at once."""
        self.admin.close()
        self.process.kill()
        self.process.wait()


class ServerFactory:
    """Starts servers in one folder, whose path must be short; `stop` ends them all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: list[RunningServer] = []

    def start(
        self,
        kind: Kind,
        *lines: str,
        tcp: bool = False,
        tls: Certificates | None = None,
        users: tuple[str, ...] = ("default on nopass ~* &* +@all",),
    ) -> RunningServer:
        """A server with these lines in its configuration and these ACL users (besides `admin`)."""
        folder = self._folder / f"r{len(self._running)}"
        folder.mkdir(parents=True)
        port = _free_port() if tcp or tls else 0
        (folder / "users.acl").write_text(
            "\n".join(f"user {user}" for user in ("admin on >admin ~* &* +@all", *users)) + "\n"
        )
        config = [
            f"unixsocket {folder / 's'}", f"dir {folder}", f"aclfile {folder / 'users.acl'}",
            "bind 127.0.0.1", 'save ""', f"port {0 if tls else port}",
        ]  # fmt: skip
        if tls:
            certificate, key = tls.pair("server")
            config += [
                f"tls-port {port}", f"tls-cert-file {certificate}", f"tls-key-file {key}",
                f"tls-ca-cert-file {tls.ca}", "tls-auth-clients no",
            ]  # fmt: skip
        (folder / "server.conf").write_text("\n".join([*config, *lines]) + "\n")
        with (folder / "log").open("wb") as out:
            process = subprocess.Popen(
                [str(binary(kind)), str(folder / "server.conf")],
                stdout=out, stderr=out, start_new_session=True, preexec_fn=die_with_parent,
            )  # fmt: skip
        server = RunningServer(kind, folder, port, process, tls)
        self._running.append(server)
        _wait_until_up(server)
        return server

    def stop(self) -> None:
        """End them all."""
        for server in self._running:
            server.stop()


def _free_port() -> int:
    """Low enough for a cluster's second port, 10,000 above it."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port + 10_000 < 1 << 16:
            return port


def _wait_until_up(server: RunningServer) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            server.admin.ping()
            return
        except redis.RedisError:
            log = (server.folder / "log").read_text()
            assert server.process.poll() is None, log
            assert time.monotonic() < end, log
            time.sleep(0.02)
