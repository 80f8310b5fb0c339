"""A whole fleet of one run, with everything a fault can get hold of."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import redis

from ledger.alive import Process
from ledger.ledger import Ledger
from registry.errors import V5Error
from registry.plan import Plan
from registry.settings import Settings, load_settings
from tests.chaos.proxy import Proxy
from tests.chaos.schedule import PLANS, Schedule
from tests.conftest import FAKE, LocalFleet
from worker import private_redis
from worker.supervised import Child, stop_all

ROOT = Path(__file__).parents[2]
#: Longest wait for a fleet to be ready, or for it to be quiet after a job. Seconds.
PATIENCE = 60.0
_KEY = "the-key-of-the-store"
_CONFIG = """\
port {port}
bind 127.0.0.1
unixsocket {folder}/s
dir {folder}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
"""
#: A disk that can be filled: the store's reserve of 256 MiB, and what a run needs.
_DISK = "size=460m"


class Stack:
    """Redis, workers, aggregators and a store; faults are done to it, and it is started again where a
    person, systemd or Kubernetes would do that."""

    def __init__(self, schedule: Schedule, folder: Path) -> None:
        self.schedule = schedule
        self.folder = folder
        self.data_dir = folder / "d"
        self.data_dir.mkdir(parents=True)
        self.plan_options = PLANS[schedule.plan]
        self.proxies: dict[str, Proxy] = {}
        self.producer: subprocess.Popen[str] | None = None
        self._mounted = schedule.small_disk and _mount(self.data_dir)
        self._own: dict[str, Child] = {}
        self._ended, self._still = threading.Event(), threading.Event()
        environment = {f"V5_{name.upper()}": value for name, value in FAKE.items()} | {
            "V5_BATCH_CHUNKS": "8",
            "V5_FAKE_SECONDS": "0.04",
            "V5_INFLIGHT_BYTES": "150000" if schedule.plan == "pair" else "500000000",
        }
        if schedule.setup == "servers":
            environment |= self._prepare_servers()
        self.fleet = LocalFleet(self.data_dir, environment)
        self.settings = self._direct_settings()
        #: Past every proxy, with short waits.
        self.redis: Any = redis.Redis(
            unix_socket_path=self.settings.ledger_address.path, socket_timeout=2.0, socket_connect_timeout=2.0
        )
        self._nursery = threading.Thread(target=self._nurse, name="nursery", daemon=True)

    @property
    def has_small_disk(self) -> bool:
        """Whether there is a disk to fill: only root may mount one."""
        return self._mounted

    def start(self) -> Plan:
        """Bring everything up and wait until it is ready; returns the plan."""
        self._nursery.start()
        if "redis" in self._own:
            _wait(lambda: self.redis.ping(), "Redis")
        if "qdrant" in self._own:
            _wait(lambda: _answers(self.proxies["rest"]), "Qdrant")
        self.up()
        ledger = Ledger(self.settings)
        plan = ledger.fleet_plan()
        assert plan is not None
        ledger.close()
        first = plan.models[0]
        self._adopt("worker 2", "worker", first, *plan.worker_options(first), "--name", "worker-2")
        if self.schedule.setup == "servers":
            # By a way of its own, as from another machine.
            port = {"V5_QDRANT_GRPC_PORT": str(self.proxies["grpc-2"].port)}
            self._adopt("aggregator-2", "aggregator", "--name", "aggregator-2", **port)
        self._names = {
            "worker 0": f"worker-{plan.models[0]}",
            "worker 1": f"worker-{plan.models[1]}",
            "supervisor": "fleet",
        }
        self.wait_ready()
        return plan

    def up(self) -> None:
        """`v5 up`, as often as it takes: what it needs may be away."""
        end = time.monotonic() + PATIENCE
        while True:
            done = self.fleet.v5("up", *self.plan_options, "--timeout", str(PATIENCE))
            if done.returncode == 0:
                return
            if time.monotonic() > end:
                raise AssertionError(f"v5 up: {done.stdout}{done.stderr}")

    def wait_ready(self) -> None:
        """Wait until every process says that it is ready."""
        expected = 3 + len(self._aggregators)
        _wait(lambda: len([p for p in self.alive() if p.condition == "ready"]) >= expected, "the fleet")

    @property
    def _aggregators(self) -> list[str]:
        return ["aggregator", "aggregator-2"] if self.schedule.setup == "servers" else ["aggregator"]

    def alive(self) -> list[Process]:
        """Processes that the ledger knows of; empty while it is away."""
        ledger = Ledger(self.settings)
        try:
            return ledger.alive.list()
        except V5Error:
            return []
        finally:
            ledger.close()

    def pid(self, target: str) -> int:
        """Process id of `worker 0`, `aggregator`, `redis`, `producer`, …; 0 while it does not run."""
        if target == "producer":
            running = self.producer is not None and self.producer.poll() is None
            return self.producer.pid if running and self.producer else 0
        if target in self._own:
            return self._own[target].pid
        with contextlib.suppress(OSError, ValueError):
            return self.fleet.pids().get(self._names.get(target, target), 0)
        return 0

    def signal(self, target: str, number: signal.Signals) -> int:
        """Send a signal; returns the process id, 0 if it did not run."""
        pid = self.pid(target)
        with contextlib.suppress(ProcessLookupError):
            if pid:
                os.kill(pid, number)
        return pid

    def redis_files(self) -> Path:
        """Where Redis keeps its log."""
        return self.folder / "r" if "redis" in self._own else self.data_dir / "redis"

    def heal(self) -> None:
        """End what lasts of faults on the way to the servers."""
        for proxy in self.proxies.values():
            proxy.heal()

    def end(self) -> None:
        """Stop or kill everything but the store's server."""
        if self.schedule.ending == "kill":
            for target in ("supervisor", "aggregator", *self._own):
                if target not in ("qdrant", "redis"):
                    self.signal(target, signal.SIGKILL)
        self._ended.set()
        self._still.wait(10)
        self.fleet.down()
        stop_all([child for name, child in self._own.items() if name not in ("qdrant", "redis")], 40)

    def close(self) -> None:
        """Stop what still runs and free what was taken."""
        self._ended.set()
        self._still.wait(10)
        if self.producer is not None and self.producer.poll() is None:
            self.producer.kill()
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.fleet.down()
        for child in self._own.values():
            if child.process is not None:
                child.process.kill()
                child.process.wait()
        for proxy in self.proxies.values():
            proxy.stop()
        self.redis.close()

    def unmount(self) -> None:
        """Drop the small disk and all that is on it."""
        if self._mounted:
            subprocess.run(["umount", "-l", str(self.data_dir)], check=False)

    def logs(self) -> Path:
        """Where every process of this run logs to."""
        return self.data_dir / "logs"

    def _prepare_servers(self) -> dict[str, str]:
        folder = self.folder / "r"
        folder.mkdir()
        redis_port, rest, grpc = (_free_port() for _ in range(3))
        (folder / "server.conf").write_text(_CONFIG.format(port=redis_port, folder=folder))
        log = self.data_dir / "logs"
        server = [str(private_redis.find_server()), str(folder / "server.conf")]
        store = [
            sys.executable,
            "-m",
            "tests.chaos.qdrant",
            str(self.folder / "q"),
            str(rest),
            str(grpc),
            _KEY,
        ]
        self._own["redis"] = Child("redis", server, log / "redis.log")
        self._own["qdrant"] = Child("qdrant", store, log / "qdrant.log", {"PYTHONPATH": str(ROOT)})
        self.proxies = {
            name: Proxy(("127.0.0.1", port))
            for name, port in (("redis", redis_port), ("rest", rest), ("grpc", grpc), ("grpc-2", grpc))
        }
        self._direct = {
            "redis_url": f"unix://{folder}/s",
            "qdrant_url": f"http://127.0.0.1:{rest}",
            # A process that has spoken gRPC cannot fork safely, and this one starts others all the time.
            "qdrant_grpc": False,
            "qdrant_api_key": _KEY,
            "qdrant_seconds": 60.0,
        }
        return {
            "V5_REDIS_URL": f"redis://127.0.0.1:{self.proxies['redis'].port}/0",
            "V5_QDRANT_URL": f"http://127.0.0.1:{self.proxies['rest'].port}",
            "V5_QDRANT_GRPC_PORT": str(self.proxies["grpc"].port),
            "V5_QDRANT_API_KEY": _KEY,
            "V5_QDRANT_SECONDS": "5",
        }

    def _direct_settings(self) -> Settings:
        fields: dict[str, Any] = {
            k[3:].lower(): v for k, v in self.fleet.environment.items() if k[:3] == "V5_"
        }
        if self.schedule.setup == "servers":
            fields |= self._direct
        return load_settings(**fields)

    def _adopt(self, name: str, *arguments: str, **environment: str) -> None:
        """A process of another machine, started again by this one's supervisor."""
        command = [sys.executable, "-m", "v5", *arguments]
        log = self.logs() / f"{name.replace(' ', '-')}.log"
        self._own[name] = Child(name, command, log, self.fleet.environment | environment)

    def _nurse(self) -> None:
        # All from one thread: a child ends with the thread that started it.
        while not self._ended.wait(0.1):
            for child in list(self._own.values()):
                child.watch()
        self._still.set()
        while any(child.pid for child in self._own.values()):
            time.sleep(0.1)


def _wait(condition: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            if condition():
                return
        if time.monotonic() > end:
            raise AssertionError(f"not within {PATIENCE:.0f} s: {what}")
        time.sleep(0.05)


def _answers(proxy: Proxy) -> bool:
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=2) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return connection.recv(4) == b"HTTP"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _mount(path: Path) -> bool:
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        return False
    done = subprocess.run([mount, "-t", "tmpfs", "-o", _DISK, "tmpfs", str(path)], capture_output=True)
    return done.returncode == 0
