"""A fleet whose store is a Qdrant server in a process of its own: faults, keys, several aggregators."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import QdrantClient, models

from ledger.ledger import Ledger
from registry.celery_app import make_app

pytestmark = pytest.mark.fleet

ROOT = Path(__file__).parents[2]
KEY = "the-key-of-the-store"
COUNT = 500


class Server:
    """A stand-in for a Qdrant server that can be killed and started again over the same data and ports."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._process: subprocess.Popen[str] | None = None
        self.port = self.grpc_port = 0

    def start(self, version: str = "1.18.0") -> None:
        command = [sys.executable, "-m", "tests.qdrant_standin", "--root", str(self._root), "--api-key", KEY]
        command += ["--version", version, "--port", str(self.port), "--grpc-port", str(self.grpc_port)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        ports = json.loads(self._process.stdout.readline())
        self.port, self.grpc_port = ports["port"], ports["grpc_port"]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "V5_QDRANT_URL": f"http://127.0.0.1:{self.port}",
            "V5_QDRANT_GRPC_PORT": str(self.grpc_port),
            "V5_QDRANT_API_KEY": KEY,
            "V5_QDRANT_SECONDS": "10",
        }

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        assert self._process is not None
        self._process.communicate(timeout=10)

    def client(self) -> QdrantClient:
        return QdrantClient(
            url=f"http://127.0.0.1:{self.port}",
            headers={"api-key": KEY},
            timeout=20,
            check_compatibility=False,
        )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = Server(tmp_path / "qdrant")
    made.start()
    yield made
    made.kill()


def logs(fleet: Any) -> str:
    return "\n".join(path.read_text(errors="replace") for path in (fleet.data_dir / "logs").iterdir())


class Embedded:
    """Counts the parts that workers computed, as their events tell."""

    def __init__(self, fleet: Any) -> None:
        self.count = 0
        self._app = make_app(fleet.settings())
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._ended = False

    def __enter__(self) -> Embedded:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._thread.join(10)
        self._app.close()

    def _listen(self) -> None:
        with self._app.connection() as connection:
            receiver = self._app.events.Receiver(connection, handlers={"task-succeeded": self._see})
            for _ in receiver.itercapture(limit=None, timeout=None, wakeup=False):
                if self._ended:
                    return

    def _see(self, event: dict[str, Any]) -> None:
        self.count += event["result"] == "'embedded'"


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_a_store_that_dies_or_hangs_in_the_middle_of_a_job_costs_nothing_but_time(
    fake_fleet: Any, server: Server, corpus: Callable[..., Path], eventually: Callable[..., Any], number: Any
) -> None:
    fake_fleet.environment |= {**server.environment, "V5_FAKE_SECONDS": "0.004", "V5_QDRANT_SECONDS": "3"}
    fake_fleet.up()
    path = corpus(COUNT)
    ledger = Ledger(fake_fleet.settings())
    with Embedded(fake_fleet) as embedded:
        submit = fake_fleet.start("submit", str(path), "-c", "c", "--json")
        eventually(lambda: ledger.jobs.list() and ledger.jobs.list()[0].done > 50)
        server.signal(number)
        eventually(lambda: "away or busy" in logs(fake_fleet), what="the aggregator to notice")
        assert submit.poll() is None
        if number is signal.SIGKILL:
            server.kill()
            server.start()
        else:
            server.signal(signal.SIGCONT)
        out, err = submit.communicate(timeout=100)
        assert submit.returncode == 0, err
        parts = 2 * ledger.jobs.list()[0].batches
        eventually(lambda: embedded.count >= parts, 10)
    assert embedded.count == parts, "a vector was computed again"
    end = json.loads(out.splitlines()[-1])
    assert (end["chunks"], end["done"], end["dead"]) == (COUNT, COUNT, 0)
    found = fake_fleet.ok("verify", str(path), "-c", "c")
    assert (found["present"], found["missing"], found["stale"]) == (COUNT, 0, 0)
    assert server.client().count("c", exact=True).count == COUNT
    assert not ledger.redis.keys("v5:batch:*")
    ledger.close()


def test_a_fleet_starts_before_its_store_and_says_what_it_waits_for(
    fake_fleet: Any, server: Server, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    environment = server.environment
    server.kill()
    fake_fleet.environment |= {**environment, "V5_QDRANT_RETRIES": "0"}
    up = fake_fleet.start("up", "--primary", "qdrant-minilm-onnx", "--json")
    ledger = Ledger(fake_fleet.settings())

    def waits() -> bool:
        try:
            return any(p.condition == "waiting" and "away or busy" in p.note for p in ledger.alive.list())
        except Exception:
            return False

    eventually(waits, what="the aggregator to say that it waits")
    server.start()
    _, err = up.communicate(timeout=60)
    assert up.returncode == 0, err
    end = fake_fleet.ok("submit", str(corpus(40)), "-c", "c", "--index", "v4")
    assert end["done"] == 40
    about = server.client().get_collection("c").config.params.vectors["qdrant-minilm-onnx"]
    assert (about.hnsw_config.m, about.hnsw_config.ef_construct) == (48, 512)
    hits = fake_fleet.ok("search", "chunk number 7", "-c", "c")
    assert hits
    assert KEY not in logs(fake_fleet)
    assert KEY not in str(fake_fleet.v5("ps", "--json")) + str(fake_fleet.v5("doctor", "--json"))
    ledger.close()


def test_a_wrong_key_and_an_old_server_stop_the_fleet_with_what_to_do(
    fake_fleet: Any, server: Server
) -> None:
    fake_fleet.environment |= {**server.environment, "V5_QDRANT_API_KEY": "wrong-" + KEY}
    done = fake_fleet.v5("up", "--primary", "qdrant-minilm-onnx")
    assert done.returncode == 1
    assert "V5_QDRANT_API_KEY" in done.stderr
    assert KEY not in done.stderr + logs(fake_fleet)

    server.kill()
    server.start(version="1.15.0")
    fake_fleet.environment |= server.environment
    done = fake_fleet.v5("up", "--primary", "qdrant-minilm-onnx")
    assert done.returncode == 1
    assert "1.16 is needed" in done.stderr
    looked = fake_fleet.v5("doctor", "--json")
    assert looked.returncode == 1
    assert "1.16 is needed" in looked.stdout


def test_two_aggregators_share_a_server(
    fake_fleet: Any, server: Server, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment |= server.environment
    fake_fleet.up()
    ledger = Ledger(fake_fleet.settings())
    second = fake_fleet.start("aggregator", "--name", "aggregator-2")
    try:
        eventually(lambda: "aggregator-2" in {p.name for p in ledger.alive.list() if p.condition == "ready"})
        end = fake_fleet.ok("submit", str(corpus(COUNT)), "-c", "c")
        assert (end["done"], end["dead"]) == (COUNT, 0)
        assert server.client().count("c", exact=True).count == COUNT
        second.send_signal(signal.SIGTERM)
        _, err = second.communicate(timeout=40)
        assert second.returncode == 0, err
    finally:
        second.kill()
        second.communicate()
        ledger.close()


def test_a_bulk_load_whose_producer_dies_is_ended_by_the_aggregator_and_one_that_ends_waits(
    fake_fleet: Any, server: Server, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment |= {**server.environment, "V5_FAKE_SECONDS": "0.02"}
    fake_fleet.up()
    path = corpus(200)
    fake_fleet.ok("submit", str(corpus(5, "few.jsonl")), "-c", "c")
    client = server.client()
    # Of no server's default, and exceeded by what is loaded. Kilobytes.
    client.update_collection("c", optimizers_config=models.OptimizersConfigDiff(indexing_threshold=100))

    def threshold() -> int | None:
        return client.get_collection("c").config.optimizer_config.indexing_threshold

    ledger = Ledger(fake_fleet.settings())
    submit = fake_fleet.start("submit", str(path), "-c", "c", "--bulk")
    eventually(lambda: threshold() == 0 and ledger.jobs.list()[0].done > 20)
    submit.kill()
    submit.communicate()
    job = ledger.jobs.list()[0].id
    eventually(lambda: not ledger.jobs.get(job).open_batches)
    assert threshold() == 0
    # Its hold, which would run out by itself, and an aggregator that starts.
    ledger.redis.delete(f"v5:job:{job}:producer")
    os.kill(fake_fleet.pids()["aggregator"], signal.SIGKILL)
    eventually(lambda: threshold() == 100)
    eventually(lambda: f"v5/bulk/{job}" not in client.get_collection("c").config.metadata)

    submit = fake_fleet.start("submit", str(path), "-c", "c", "--bulk", "--json")
    eventually(lambda: threshold() == 0)
    out, err = submit.communicate(timeout=100)
    assert submit.returncode == 0, err
    end = json.loads(out.splitlines()[-1])
    assert (end["event"], end["chunks"], end["dead"]) == ("end", 200, 0)
    about = client.get_collection("c")
    assert about.status == models.CollectionStatus.GREEN
    assert (about.config.optimizer_config.indexing_threshold, about.indexed_vectors_count) == (100, 2 * 200)
    assert fake_fleet.ok("optimise", "-c", "c")["loads"] == []
    ledger.close()
