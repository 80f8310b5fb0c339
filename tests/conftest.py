"""Servers and fleets for tests: private, on Unix sockets, in temporary directories, stopped at the end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from ledger.ledger import Ledger
from ledger.server import wait_for
from registry.plan import Plan, make_plan
from registry.settings import Settings, load_settings
from tests.redis_servers import ServerFactory
from worker import private_redis

MIB = 1 << 20

# For those who only ask whether something fails: `--hypothesis-profile=first`.
hypothesis.settings.register_profile("first", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate])


def eventually(condition: Callable[[], Any], seconds: float = 30.0, what: str = "") -> Any:
    """Wait until a condition holds and return its value; fail after `seconds`."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            pytest.fail(f"not within {seconds} s: {what or condition}")
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("V5_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    # What is not told a data directory must not find the user's.
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A short path: Unix sockets have at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="v5-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def settings(data_dir: Path) -> Settings:
    """Settings with short clocks."""
    return load_settings(
        data_dir=data_dir,
        fake_encoders=True,
        ring_seconds=1.0,
        lease_seconds=5.0,
        reconcile_seconds=0.2,
        alive_seconds=3.0,
        request_seconds=30.0,
    )


@pytest.fixture
def redis_server(settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """A private server for the settings."""
    server = private_redis.start(settings, settings.data_dir / "redis.log")
    ledger = Ledger(settings)
    wait_for(ledger.redis, settings.ledger_url, 20)
    ledger.close()
    yield server
    server.kill()
    server.wait()


@pytest.fixture
def redis_servers(data_dir: Path) -> Iterator[ServerFactory]:
    """Starts further servers, of either kind, as people have them."""
    factory = ServerFactory(data_dir / "servers")
    yield factory
    factory.stop()


@pytest.fixture
def ledger(settings: Settings, redis_server: subprocess.Popen[bytes]) -> Iterator[Ledger]:
    """A ledger on a private server."""
    found = Ledger(settings)
    yield found
    found.close()


@pytest.fixture
def plan() -> Plan:
    """Two models, served by fake encoders."""
    return make_plan(primary="qdrant-minilm-onnx", companions=["all-miniLM-l6"], fake=True)


class LocalFleet:
    """A fleet in a temporary directory, driven by the `v5` command as a person would."""

    def __init__(self, data_dir: Path, environment: dict[str, str]) -> None:
        self.data_dir = data_dir
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("V5_")},
            "V5_DATA_DIR": str(data_dir),
            "HF_HUB_OFFLINE": "1",
            **environment,
        }

    def v5(self, *arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "v5", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command."""
        return subprocess.Popen(
            [sys.executable, "-m", "v5", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A test run in the background ignores SIGINT, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def ended(self, started: subprocess.Popen[str], timeout: float = 100.0) -> Any:
        """Wait for a command that was started with --json, expect exit code 0, return its last line."""
        out, err = started.communicate(timeout=timeout)
        assert started.returncode == 0, err
        return json.loads(out.splitlines()[-1])

    def ok(self, *arguments: str, timeout: float = 120.0) -> Any:
        """Run a command with --json, expect exit code 0, return its last line."""
        return self.ends(0, *arguments, timeout=timeout)

    def ends(self, code: int, *arguments: str, timeout: float = 120.0) -> Any:
        """Run a command with --json, expect this exit code, return its last line as JSON."""
        done = self.v5(*arguments, "--json", timeout=timeout)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def up(self, *arguments: str) -> None:
        """Start the fleet with two models."""
        plan = arguments or ("--primary", "qdrant-minilm-onnx", "--companion", "all-miniLM-l6")
        self.ok("up", *plan)

    def pids(self) -> dict[str, int]:
        """Process ids by name, of those that run."""
        state = json.loads((self.data_dir / "fleet.json").read_text())
        return {row["name"]: row["pid"] for row in state["processes"] if row["pid"]} | {"fleet": state["pid"]}

    def settings(self) -> Settings:
        """The settings of this fleet, for looking into its Redis."""
        fields = {k[3:].lower(): v for k, v in self.environment.items() if k.startswith("V5_")}
        return load_settings(**fields)

    def down(self) -> None:
        """Stop it, whatever state it is in."""
        done = self.v5("down")
        assert done.returncode == 0, done.stderr


@pytest.fixture
def make_fleet(data_dir: Path) -> Iterator[Callable[..., LocalFleet]]:
    """Makes a fleet (not started) with settings given as V5_… names in lower case; stopped at the end."""
    made: list[LocalFleet] = []

    def make(**settings: Any) -> LocalFleet:
        environment = {f"V5_{name.upper()}": str(value) for name, value in settings.items()}
        made.append(LocalFleet(data_dir, environment))
        return made[-1]

    yield make
    for fleet in made:
        fleet.down()


#: Short clocks and made-up vectors: for tests of the fleet, not of the models.
FAKE = {
    "fake_encoders": "true",
    "ring_seconds": "1.5",
    "lease_seconds": "4",
    "reconcile_seconds": "0.2",
    "alive_seconds": "3",
    "batch_chunks": "16",
    "window_chunks": "256",
}


@pytest.fixture
def fake_fleet(make_fleet: Callable[..., LocalFleet]) -> LocalFleet:
    """A fleet of fake encoders, not started."""
    return make_fleet(**FAKE)


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[..., Path]:
    """Writes `count` chunks as JSON Lines; `text` may make the text of chunk i."""

    def write(count: int, name: str = "corpus.jsonl", text: Callable[[int], str] | None = None) -> Path:
        path = tmp_path / name
        with path.open("w") as out:
            for i in range(count):
                words = text(i) if text else f"chunk number {i} " + "word " * (i % 40)
                out.write(json.dumps({"id": f"c{i}", "text": words, "metadata": {"n": i}}) + "\n")
        return path

    return write


@pytest.fixture(name="eventually")
def _eventually() -> Callable[..., Any]:
    return eventually
