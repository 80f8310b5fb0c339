"""Texts that end their worker, and outages that look as if they did: each costs what is promised, no more."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from tests.conftest import FAKE
from worker.encoders.fake import (
    POISON_HANG,
    POISON_KILL,
    POISON_NAN,
    POISON_OOM,
    POISON_RAISE,
    POISON_SHAPE,
)
from worker.isolation import MOST_STRIKES
from worker.supervised import EXIT_GAVE_UP, Child

pytestmark = pytest.mark.fleet

MODEL = "qdrant-minilm-onnx"
STEP = f"embed.{MODEL}"
#: Chunks of a batch.
SIZE = int(FAKE["batch_chunks"])
REASON = f"{MODEL}: it ended its worker 2 times, alone (it was killed, crashed or hung, or the device failed)"


class Fleet:
    """A fleet on the test's Redis whose workers are started again at once, so that a test need not wait for a
    supervisor that is right to be slow with them."""

    def __init__(self, v5: Any, ledger: Ledger) -> None:
        self.v5 = v5
        self.ledger = ledger
        self.workers: list[Child] = []
        #: How a worker ended, each time.
        self.ends: list[int | None] = []

    def submit(self, path: Path) -> Any:
        """Start the submission of a corpus."""
        return self.v5.start("submit", str(path), "-c", "c", "--primary", MODEL, "--json")

    def open_batches(self) -> dict[str, dict[str, str]]:
        """What the ledger has of each open batch."""
        redis = self.ledger.redis
        found = {key.decode(): redis.hgetall(key) for key in redis.keys("v5:batch:*")}
        return {
            key: {name.decode(): value.decode() for name, value in fields.items()}
            for key, fields in found.items()
        }

    def nothing_is_left(self) -> bool:
        redis = self.ledger.redis
        left = [*redis.keys("v5:batch:*"), *redis.keys("v5:blob:*"), *redis.keys("v5:steps:*")]
        return not left and self.ledger.reserved() == 0


@pytest.fixture
def start(
    make_fleet: Callable[..., Any],
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
) -> Iterator[Callable[..., Fleet]]:
    """Starts a fleet of one model with so many workers and settings."""
    monkeypatch.setattr("worker.supervised.MOST_BACKOFF", 0.2)
    with contextlib.ExitStack() as stack:

        def begin(workers: int, **settings: Any) -> Fleet:
            v5 = make_fleet(**{**FAKE, "lease_seconds": "2", **settings})
            fleet = Fleet(v5, ledger)
            command = [sys.executable, "-m", "v5"]
            logs = v5.data_dir / "logs"
            children = [
                Child("aggregator", [*command, "aggregator"], logs / "aggregator.log", v5.environment)
            ]
            for number in range(workers):
                name = f"worker-{number}"
                child = Child(
                    name, [*command, "worker", MODEL, "--name", name], logs / f"{name}.log", v5.environment
                )
                fleet.workers.append(child)
            children += fleet.workers
            over = threading.Event()

            def supervise() -> None:
                while not over.wait(0.02):
                    for child in children:
                        before = child.restarts
                        child.watch()
                        if child in fleet.workers and child.restarts > before:
                            fleet.ends.append(child.last_exit)

            for child in children:
                child.start()
                stack.callback(child.stop, 20)
            thread = threading.Thread(target=supervise)
            thread.start()
            stack.callback(thread.join)
            stack.callback(over.set)
            ready = {"aggregator", *(child.name for child in fleet.workers)}
            eventually(lambda: ready <= {p.name for p in ledger.alive.list() if p.condition == "ready"}, 90)
            return fleet

        yield begin


def sized(corpus: Callable[..., Path], count: int, bad: dict[int, str], name: str = "corpus.jsonl") -> Path:
    """A corpus whose batches are known: chunk i is in batch i // SIZE, as a window is cut by length."""
    return corpus(count, name, lambda i: f"chunk {i} {bad.get(i, '')}".ljust(100 + 4 * (i // SIZE), "."))


def letters(fleet: Fleet, job: str) -> dict[str, str]:
    """Reasons by the start of the text."""
    rows = [json.loads(line) for line in fleet.v5.v5("dead", job, "--json").stdout.splitlines()]
    return {" ".join(row["text"].split()[:2]): row["reason"] for row in rows}


def test_texts_that_kill_their_worker_end_alone_as_dead_letters_and_cost_what_is_promised(
    start: Callable[..., Fleet], corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fleet = start(2)
    kills = (20, 100, 105)
    assert len({i // SIZE for i in kills}) == 2, "two of them share a batch"
    others = {40: POISON_RAISE, 70: POISON_NAN, 101: POISON_SHAPE, 150: POISON_OOM}
    path = sized(corpus, 200, {**dict.fromkeys(kills, POISON_KILL), **others})
    out, err = fleet.submit(path).communicate(timeout=170)
    end = json.loads(out.splitlines()[-1])
    assert (end["chunks"], end["done"], end["dead"]) == (200, 193, 7), err
    reasons = letters(fleet, end["job"])
    assert {text: reason for text, reason in reasons.items() if reason == REASON} == {
        f"chunk {i}": REASON for i in kills
    }
    assert reasons.keys() == {f"chunk {i}" for i in (*kills, *others)}
    # One in the batch and two alone; a second one in the same batch, two alone.
    assert set(fleet.ends) == {-signal.SIGKILL}
    assert len(fleet.ends) <= 2 * (1 + MOST_STRIKES) + MOST_STRIKES
    found = fleet.v5.ends(1, "verify", str(path), "-c", "c")
    assert (found["present"], found["missing"], found["stale"]) == (193, 7, 0)
    eventually(fleet.nothing_is_left, 10)


def test_an_outage_of_all_workers_again_and_again_blames_no_chunk(
    start: Callable[..., Fleet], corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    """All are killed at once, while chunks are named. Never while a chunk with a strike is: nobody could tell
    that from a chunk that kills, and it does not come by chance (see `worker.isolation`)."""
    fleet = start(2, fake_seconds="0.04")
    path = sized(corpus, 160, {})
    submit = fleet.submit(path)
    rng = random.Random(7)
    eventually(lambda: any("lease:" + STEP in fields for fields in fleet.open_batches().values()))
    struck: set[tuple[str, str]] = set()
    killed: set[str] = set()

    def holders(*, fresh: bool) -> set[str]:
        """Attempts under way whose chunk goes alone; none while one of these chunks has a strike."""
        found = set()
        for batch, fields in fleet.open_batches().items():
            struck.update((batch, value) for name, value in fields.items() if name.startswith("strike:"))
            holder, chunk = fields.get(f"lease:{STEP}", ""), fields.get(f"named:{STEP}", "")
            if chunk and holder not in killed:
                found.add(holder)
                if fresh and (batch, chunk) in struck:
                    return set()
        return found

    def kill_all() -> None:
        killed.update(
            fields[f"lease:{STEP}"] for fields in fleet.open_batches().values() if f"lease:{STEP}" in fields
        )
        for worker in fleet.workers:
            if worker.pid:
                os.kill(worker.pid, signal.SIGKILL)

    kill_all()
    for _ in range(3):
        eventually(lambda: holders(fresh=False), 60, "a chunk that goes alone")
        time.sleep(rng.uniform(0, 0.4))  # the moment is the point
        eventually(lambda: holders(fresh=True), 60, "a chunk without a strike that goes alone")
        kill_all()
    while submit.poll() is None:
        holders(fresh=False)
        time.sleep(0.02)
    out, err = submit.communicate(timeout=170)
    end = json.loads(out.splitlines()[-1])
    assert (submit.returncode, end["done"], end["dead"]) == (0, 160, 0), err
    assert struck, "no kill hit a chunk that was named; nothing was shown"
    assert fleet.v5.ok("verify", str(path), "-c", "c")["present"] == 160
    eventually(fleet.nothing_is_left, 10)


def test_past_its_limit_of_dead_letters_a_job_pauses_says_so_and_goes_on_when_asked(
    start: Callable[..., Fleet], corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fleet = start(1, max_dead="3")
    # The budget has room for a batch or two: at the third dead letter most is not staged yet.
    fleet.v5.environment["V5_INFLIGHT_BYTES"] = "60000"
    bad = dict.fromkeys(range(0, 400, SIZE), POISON_RAISE)
    path = sized(corpus, 400, bad)
    done = fleet.v5.v5("submit", str(path), "-c", "c", "--primary", MODEL)
    assert done.returncode == 1, done.stdout
    job = fleet.v5.ok("jobs")[0]
    assert (job["state"], 3 <= job["dead"] < len(bad)) == ("paused", True)
    assert "(V5_MAX_DEAD); mend the corpus or raise it, then submit again" in done.stdout
    fleet.v5.environment["V5_MAX_DEAD"] = "1000"
    end = fleet.v5.ends(3, "submit", str(path), "-c", "c", "--primary", MODEL)
    assert (end["job"], end["dead"], end["state"]) == (job["job"], len(bad), "done")
    assert fleet.v5.ends(1, "verify", str(path), "-c", "c")["present"] == 400 - len(bad)
    eventually(fleet.nothing_is_left, 10)


@pytest.mark.slow
def test_a_text_that_hangs_costs_as_many_times_the_bound_on_a_hang(
    start: Callable[..., Fleet], corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fleet = start(2, hang_seconds="10")
    path = sized(corpus, 60, {17: POISON_HANG})
    out, err = fleet.submit(path).communicate(timeout=170)
    end = json.loads(out.splitlines()[-1])
    assert (end["done"], end["dead"]) == (59, 1), err
    assert letters(fleet, end["job"]) == {"chunk 17": REASON}
    assert fleet.ends == [EXIT_GAVE_UP] * (1 + MOST_STRIKES)
    eventually(fleet.nothing_is_left, 10)


@pytest.mark.slow
def test_a_query_that_kills_its_worker_is_refused_and_blames_no_chunk(
    start: Callable[..., Fleet], corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fleet = start(2, fake_seconds="0.05")
    fleet.v5.start("submit", str(corpus(10)), "-c", "c", "--primary", MODEL, "--json").communicate()
    submit = fleet.submit(sized(corpus, 400, {}, "more.jsonl"))
    eventually(lambda: any("lease:" + STEP in fields for fields in fleet.open_batches().values()))
    done = fleet.v5.v5("search", POISON_KILL, "-c", "c")
    assert (done.returncode, "ended the 2 processes" in done.stderr) == (2, True), done.stderr
    assert len(fleet.ends) == 2
    out, err = submit.communicate(timeout=170)
    end = json.loads(out.splitlines()[-1])
    assert (end["done"], end["dead"]) == (400, 0), err
    eventually(fleet.nothing_is_left, 10)
