"""What becomes of a job when Redis restarts, forgets, is cut off, or loses a server of blobs."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from registry.errors import V5Error
from tests.chaos.proxy import Proxy
from tests.conftest import FAKE
from tests.redis_servers import ServerFactory
from worker.embedder import EmbedWorker

pytestmark = pytest.mark.fleet

COUNT = 500
MODELS = ("qdrant-minilm-onnx", "all-miniLM-l6")
#: A taken step, as the server's own log of changes has it.
TRY = re.compile(rb"HINCRBY\r\n\$\d+\r\nv5:batch:([^\r]+)\r\n\$\d+\r\ntries:(embed\.[^\r]+)\r\n", re.I)


def tries(redis_files: Path) -> Counter[tuple[str, str]]:
    """How often each `(batch, step)` was taken, over all restarts of the server."""
    changes = b"".join(path.read_bytes() for path in sorted(redis_files.glob("appendonlydir/*.incr.aof")))
    return Counter((batch.decode(), step.decode()) for batch, step in TRY.findall(changes))


class Submit:
    """A submission that runs, and what it says."""

    def __init__(self, fleet: Any, path: Path) -> None:
        self._process: subprocess.Popen[str] = fleet.start("submit", str(path), "-c", "c", "--json")
        self.said: list[dict[str, Any]] = []
        self.err = ""
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        self.said += (json.loads(line) for line in self._process.stdout)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def end(self) -> dict[str, Any]:
        """Its last word, once it has ended well."""
        assert self._process.stderr is not None
        with self._process:
            err = self._process.stderr.read()
            self._thread.join(10)
        assert self._process.returncode == 0, err
        assert "Traceback" not in err
        self.err = err
        return self.said[-1]

    def waited_for(self, words: str) -> bool:
        """Whether it said that it waits for something."""
        return any(words in line.get("waiting", "") for line in self.said)


def check(fleet: Any, path: Path, ledger: Ledger, end: dict[str, Any]) -> None:
    """Everything is there, exact, and nothing is left in Redis."""
    assert (end["chunks"], end["dead"]) == (COUNT, 0)
    found = fleet.ok("verify", str(path), "-c", "c")
    assert (found["present"], found["missing"], found["stale"]) == (COUNT, 0, 0)
    assert ledger.reserved() == 0
    assert not ledger.redis.keys("v5:batch:*")


def done(ledger: Ledger) -> int:
    """Chunks done of the newest job; 0 while it cannot be asked."""
    try:
        return ledger.jobs.list()[0].done
    except (V5Error, IndexError):
        return 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_redis_costs_no_more_than_what_was_at_work(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any], number: signal.Signals
) -> None:
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.004"}
    fake_fleet.up()
    path = corpus(COUNT)
    ledger = Ledger(fake_fleet.settings())
    submit = Submit(fake_fleet, path)
    eventually(lambda: done(ledger) > 50, 60)
    pid = fake_fleet.pids()["redis"]
    os.kill(pid, number)
    eventually(lambda: fake_fleet.pids().get("redis") not in (None, pid), what="a restart")
    end = submit.end()
    assert end["done"] == COUNT
    taken = tries(fake_fleet.data_dir / "redis")
    assert len(taken) == len(MODELS) * ledger.jobs.list()[0].batches
    assert taken.total() - len(taken) <= len(MODELS) * EmbedWorker.threads
    check(fake_fleet, path, ledger, end)
    ledger.close()


@pytest.mark.parametrize("how", ["flushed", "deleted"])
def test_a_redis_that_lost_everything_costs_what_was_not_stored(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any], how: str
) -> None:
    # A budget for a few batches: the producer is at work until the end.
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.004", "V5_INFLIGHT_BYTES": "300000"}
    fake_fleet.up()
    path = corpus(COUNT)
    ledger = Ledger(fake_fleet.settings())
    submit = Submit(fake_fleet, path)
    eventually(lambda: done(ledger) > 150, 60)
    (before,) = ledger.jobs.list()
    assert submit.running
    if how == "flushed":
        ledger.redis.flushall()
    else:
        pid = fake_fleet.pids()["redis"]
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{pid}/exe").exists())
        shutil.rmtree(fake_fleet.data_dir / "redis" / "appendonlydir")
    end = submit.end()
    assert "Redis has lost data" in submit.err
    (job,) = ledger.jobs.list()
    assert job.id != before.id
    # What was stored was neither staged nor embedded again.
    assert job.staged == job.done == end["done"] == COUNT - end["skipped"]
    assert end["skipped"] >= before.done
    taken = {step: count for step, count in tries(fake_fleet.data_dir / "redis").items() if job.id in step[0]}
    assert len(taken) == len(MODELS) * job.batches
    check(fake_fleet, path, ledger, end)
    ledger.close()


@pytest.fixture
def distant(
    make_fleet: Callable[..., Any], redis_servers: ServerFactory
) -> Iterator[tuple[Any, Proxy, Ledger]]:
    """A fleet whose Redis is behind a proxy, and the ledger past it."""
    server = redis_servers.start("valkey", "appendonly yes", tcp=True)
    with Proxy(("127.0.0.1", server.port)) as proxy:
        fleet = make_fleet(**FAKE, fake_seconds="0.02", redis_url=f"redis://127.0.0.1:{proxy.port}/0")
        fleet.up("--primary", MODELS[0], "--companion", MODELS[1])
        ledger = Ledger(fleet.settings().model_copy(update={"redis_url": server.url()}))
        yield fleet, proxy, ledger
        ledger.close()


def test_a_connection_that_is_cut_hangs_or_is_refused_costs_only_time(
    distant: tuple[Any, Proxy, Ledger], corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fleet, proxy, ledger = distant
    path = corpus(COUNT)
    submit = Submit(fleet, path)
    pauses = []
    for fault in ("cut", "cut", "cut", "hang", "refuse"):
        before = eventually(lambda: done(ledger), 60)
        eventually(lambda seen=before: done(ledger) > seen, 60)
        if fault == "cut":
            proxy.cut()
        elif fault == "hang":
            proxy.blackhole(True)
            time.sleep(4)
        else:
            proxy.refuse(True)
            proxy.cut()
            eventually(lambda: submit.waited_for("cannot be reached"), 60)
        proxy.heal()
        healed, seen = time.monotonic(), done(ledger)
        eventually(lambda seen=seen: done(ledger) > seen or not submit.running, 60)
        pauses.append(round(time.monotonic() - healed, 1))
    end = submit.end()
    print("seconds until the next batch was done:", pauses)
    check(fleet, path, ledger, end)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_connections_that_a_router_forgot_are_noticed_in_time(
    distant: tuple[Any, Proxy, Ledger], corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    """Both ends believe that they are connected, and nothing that they send arrives."""
    fleet, proxy, ledger = distant
    path = corpus(COUNT)
    pids = fleet.pids()
    submit = Submit(fleet, path)
    eventually(lambda: done(ledger) > 50, 60)
    proxy.strand()
    cut, seen = time.monotonic(), done(ledger)
    eventually(lambda: done(ledger) > seen + 32, 100, "the fleet to come back")
    print(f"seconds until batches were done: {time.monotonic() - cut:.1f}", end=" ")
    end = submit.end()
    print(f"and until the job was: {time.monotonic() - cut:.1f}")
    assert fleet.pids() == pids, "a process did not come back by itself"
    check(fleet, path, ledger, end)


def test_vectors_and_texts_that_their_server_lost_are_made_and_staged_again(
    make_fleet: Callable[..., Any],
    redis_servers: ServerFactory,
    corpus: Callable[..., Path],
    eventually: Callable[..., Any],
) -> None:
    ledger_server, blob_server = (
        redis_servers.start("valkey", "appendonly yes"),
        redis_servers.start("valkey"),
    )
    fleet = make_fleet(
        **FAKE, fake_seconds="0.01", redis_url=ledger_server.url(), blob_urls=blob_server.url()
    )
    fleet.up("--primary", MODELS[0], "--companion", MODELS[1])
    path = corpus(COUNT)
    ledger = Ledger(fleet.settings())
    submit = Submit(fleet, path)
    log = fleet.data_dir / "logs" / "aggregator.log"
    eventually(lambda: done(ledger) > 30, 60)
    blob_server.admin.flushall()
    (job,) = ledger.jobs.list()
    eventually(lambda: ledger.jobs.get(job.id).lost > 0, 60, "a batch to be dropped")

    def batch_without_vectors() -> str:
        parts = [key for key in blob_server.admin.keys("v5:blob:*") if b":text:" not in key]
        if parts:
            blob_server.admin.unlink(*parts)
        missed = re.search(r"in batch (\S+) is computed again: it is gone", log.read_text())
        return missed[1] if missed else ""

    batch = eventually(batch_without_vectors, 60, "a part to be missed")
    eventually(lambda: not ledger.redis.exists(f"v5:batch:{batch}"), 60, "the batch to be done all the same")
    assert f"batch {batch} is dropped" not in "".join(path.read_text() for path in log.parent.iterdir())
    end = submit.end()
    job = ledger.jobs.get(job.id)
    assert job.staged == COUNT + job.lost
    assert (job.done, end["done"]) == (COUNT, COUNT)
    check(fleet, path, ledger, end)
    assert not blob_server.admin.keys("*")
    ledger.close()


def test_no_process_starts_on_a_redis_that_evicts(
    make_fleet: Callable[..., Any], redis_servers: ServerFactory, corpus: Callable[..., Path]
) -> None:
    evicting = redis_servers.start("valkey", "maxmemory-policy allkeys-lru", "maxmemory 100mb")
    fleet = make_fleet(**FAKE, redis_url=evicting.url())
    path = str(corpus(3))
    for command in (["up", "--primary", MODELS[0]], ["worker", MODELS[0]], ["aggregator"],
                    ["submit", path, "-c", "c", "--primary", MODELS[0]]):  # fmt: skip
        ended = fleet.v5(*command)
        assert ended.returncode == 1, ended.stderr
        assert "has maxmemory-policy allkeys-lru" in ended.stderr
        assert "Set `maxmemory-policy noeviction` and start again" in ended.stderr
        assert "Traceback" not in ended.stderr
