"""Services of docker-compose.yml as processes of this machine.

Command, environment, health check, order and time to stop are the file's. What a container would give is put
in its place: host names become 127.0.0.1, ports free ports, mounted paths temporary directories, `redis` the
local server's binary, and `qdrant` the stand-in, or a server that the test names. A package that the image
would not have cannot be imported.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from registry.processes import die_with_parent
from tests.compose.compose_file import ROOT, resolved, seconds
from tests.compose.image import hide_what_it_lacks, installed_extras
from tests.redis_servers import missing
from worker import private_redis

HOSTS = ("redis", "qdrant")
PORTS = ("6379", "6333", "6334", "5555")


class Stack:
    """A fleet of the file's services under one directory."""

    def __init__(
        self,
        root: Path,
        variables: Mapping[str, str],
        corpus: Path,
        volumes: Mapping[str, Path],
        qdrant_url: str = "",
    ) -> None:
        """`volumes` names directories for some of the named volumes; the others are under `root`."""
        self.root = root
        self.corpus = corpus
        self.volumes = volumes
        self.qdrant_url = qdrant_url
        self.services: dict[str, Any] = resolved(variables)["services"]
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        (root / "logs").mkdir(parents=True)
        self._tools = root / "bin"
        self._tools.mkdir()
        for name, binary in (("valkey-server", private_redis.find_server()), ("valkey-cli", redis_cli())):
            (self._tools / name).symlink_to(binary)
        self._absent: dict[str, Path] = {}
        for target in ("fleet", "worker"):
            self._absent[target] = root / f"not-in-{target}"
            extras = installed_extras((ROOT / "Dockerfile").read_text(), target)
            hide_what_it_lacks(extras, self._absent[target])

    def port(self, inside: str) -> str:
        """The port of this machine for one of the containers'."""
        return self._ports[inside]

    def log(self, name: str) -> str:
        """What a service has written."""
        return (self.root / "logs" / f"{name}.log").read_text()

    def localise(self, name: str, text: str) -> str:
        """A text of the file, with this machine's hosts, ports and paths."""
        for host in HOSTS:
            text = re.sub(rf"(?<=[/@]){host}(?=:\d)", "127.0.0.1", text)
        text = re.sub(rf"\b({'|'.join(PORTS)})\b", lambda found: self._ports[found[0]], text)
        for inside, here in self._mounts(name).items():
            text = re.sub(rf"(?<![\w./-]){inside}(?=[/\s]|$)", str(here), text)
        return text

    def environment(self, name: str) -> dict[str, str]:
        """The environment of a service, and nothing of this process'."""
        given = {key: str(value) for key, value in self.services[name]["environment"].items()}
        if "build" in self.services[name]:
            given["PYTHONPATH"] = str(self._absent[self.services[name]["build"]["target"]])
        given = {key: self.localise(name, value) for key, value in given.items()}
        if self.qdrant_url and "V5_QDRANT_URL" in given:
            given |= {"V5_QDRANT_URL": self.qdrant_url, "V5_QDRANT_GRPC_PORT": "6334"}
        return {
            "PATH": f"{self._tools}:{Path(sys.executable).parent}:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "HOME": str(self._mounts(name)["/tmp"]),
            **given,
        }

    def command(self, name: str, arguments: list[str] | None = None) -> list[str]:
        """The command of a service; of the images built here, with their entry point."""
        if name == "qdrant":
            return self._qdrant_standin()
        words = self.services[name]["command"] if arguments is None else arguments
        built = "build" in self.services[name]
        return [*(["v5"] if built else []), *(self.localise(name, word) for word in words)]

    def start(self, name: str) -> None:
        """Start one service."""
        with (self.root / "logs" / f"{name}.log").open("ab") as out:
            self.processes[name] = subprocess.Popen(
                self._found(self.command(name)),
                env=self.environment(name),
                cwd=ROOT if name == "qdrant" else self._mounts(name)["/tmp"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=die_with_parent,
            )

    def up(self, profile: str, eventually: Callable[..., Any], patience: float = 90.0) -> None:
        """Start a profile's services, each when those it needs are healthy; return when all are."""
        for name in self._in_order(profile):
            for needed in self.services[name].get("depends_on", {}):
                if needed in self.processes:
                    self.wait_healthy(needed, eventually, patience)
            if name != "qdrant" or not self.qdrant_url:
                self.start(name)
        for name in list(self.processes):
            self.wait_healthy(name, eventually, patience)

    def health(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run a service's health check once; one that takes longer than it may has failed."""
        check = self.services[name]["healthcheck"]
        kind, *words = check["test"]
        command = ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words
        words = self._found([self.localise(name, word) for word in command])
        try:
            return subprocess.run(
                words,
                env=self.environment(name),
                cwd=self._mounts(name)["/tmp"],
                capture_output=True,
                text=True,
                timeout=seconds(check["timeout"]),
            )
        except subprocess.TimeoutExpired as late:
            return subprocess.CompletedProcess(words, 1, "", str(late))

    def wait_healthy(self, name: str, eventually: Callable[..., Any], patience: float = 90.0) -> None:
        """Wait until a service's health check passes; fail at once if its process ends."""

        def healthy() -> bool:
            code = self.processes[name].poll()
            assert code is None, f"{name} ended with {code}:\n{self.log(name)[-2000:]}"
            return self.health(name).returncode == 0

        eventually(healthy, patience, f"{name} healthy")

    def run(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """Start a command of a service, as `docker compose run` does."""
        return subprocess.Popen(
            self._found(self.command(name, list(arguments))),
            env=self.environment(name),
            cwd=self._mounts(name)["/tmp"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=die_with_parent,
        )

    def kill(self, name: str) -> None:
        """kill -9."""
        self.processes[name].kill()
        self.processes.pop(name).wait()

    def stop(self, name: str) -> int:
        """Stop a service as Compose does; returns its exit code, -9 if it took longer than it may."""
        process = self.processes.pop(name)
        process.send_signal(signal.Signals[self.services[name]["stop_signal"]])
        try:
            return process.wait(seconds(self.services[name]["stop_grace_period"]))
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def close(self) -> None:
        """End what still runs."""
        for name in list(self.processes):
            self.kill(name)

    def _in_order(self, profile: str) -> list[str]:
        """Services of a profile and of none, each after those it needs."""
        waiting = {
            name: set(service.get("depends_on", {}))
            for name, service in self.services.items()
            if profile in service.get("profiles", [profile])
        }
        ordered: list[str] = []
        while waiting:
            ready = [name for name, needed in waiting.items() if needed <= set(ordered)]
            assert ready, f"services wait for each other or for what the profile lacks: {waiting}"
            ordered += ready
            waiting = {name: needed for name, needed in waiting.items() if name not in ready}
        return ordered

    def _mounts(self, name: str) -> dict[str, Path]:
        """Directories of this machine for a service's mounts; the tmpfs comes empty, volumes are shared."""
        mounts = dict.fromkeys(self.services[name]["tmpfs"], self.root / "tmpfs" / name)
        for volume in self.services[name].get("volumes", []):
            if isinstance(volume, str):
                source, target = volume.split(":")
                mounts[target] = self.volumes.get(source, self.root / "volumes" / source)
            else:
                mounts[volume["target"]] = self.corpus
        for path in mounts.values():
            path.mkdir(parents=True, exist_ok=True)
        return mounts

    def _qdrant_standin(self) -> list[str]:
        service = self.services["qdrant"]
        version = re.search(r":v([\d.]+)", service["image"])
        assert version
        return [
            sys.executable, "-m", "tests.qdrant_standin",
            "--port", self.port("6333"), "--grpc-port", self.port("6334"),
            "--root", self.localise("qdrant", service["environment"]["QDRANT__STORAGE__STORAGE_PATH"]),
            "--api-key", service["environment"]["QDRANT__SERVICE__API_KEY"], "--version", version[1],
        ]  # fmt: skip

    def _found(self, command: list[str]) -> list[str]:
        """The command with its program found on the service's own path, not on this process'."""
        path = f"{self._tools}:{Path(sys.executable).parent}:{os.defpath}"
        program = shutil.which(command[0], path=path)
        assert program, f"{command[0]} is not here"
        return [program, *command[1:]]


def redis_cli() -> Path:
    """The client that the health check of `redis` calls."""
    found = shutil.which("valkey-cli") or shutil.which("redis-cli")
    return Path(found) if found else missing("valkey-cli or redis-cli (Debian: apt-get install redis-tools)")


def _free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports
