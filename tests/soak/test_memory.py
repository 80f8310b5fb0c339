"""Memory is bounded by the configured bytes in flight, however long the corpus and however slow the store."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from registry.settings import MIB

pytestmark = pytest.mark.fleet

#: By what the promise may be missed.
TOLERANCE = 1.2
#: Chunks after which the producer is to have taken all the memory that it will ever take.
SETTLED = 20_000
WORDS = [f"{'bcdfghjklmnprstvwz'[i % 18]}{i:x}" for i in range(4096)]


class Soak:
    """One submission of a fleet whose aggregator is slower than everything else, and what it took."""

    def __init__(self, fleet: Any, ledger: Ledger, models: Sequence[str], logs: Path) -> None:
        self._fleet = fleet
        self._ledger = ledger
        commands = (("aggregator",), *(("worker", model) for model in models))
        self._processes = [self._start(logs / f"{command[-1]}.log", *command) for command in commands]
        #: Bytes: the server's before and at its highest, the producer's peak, early and at the end.
        self.before = self.redis_peak = self.settled = self.producer_peak = 0
        #: Highest part of the budget that was reserved, and how much of the time it was nearly full.
        self.reserved, self.full_share = 0, 0.0

    def _start(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.soak.process", *arguments],
                env=self._fleet.environment, stdout=out, stderr=out,
            )  # fmt: skip

    def ready(self) -> bool:
        """Whether every process consumes."""
        return [p.condition for p in self._ledger.alive.list()] == ["ready"] * len(self._processes)

    def submit(self, path: Path, options: Sequence[str], budget: int) -> dict[str, Any]:
        """Submit a corpus; returns the producer's last word."""
        self.before = self._memory("used_memory")
        producer = self._fleet.start("submit", str(path), "-c", "c", *options, "--json")
        said: list[dict[str, Any]] = [{"staged": 0, "complete": False}]
        listener = threading.Thread(target=_listen, args=(producer, said))
        listener.start()
        looks: list[int] = []
        while (peak := _peak(producer.pid)) and said[-1].get("event") != "end":
            reserved = self._ledger.reserved()
            self.reserved = max(self.reserved, reserved)
            if not said[-1]["complete"]:
                looks.append(reserved)
            self.producer_peak = max(self.producer_peak, peak)
            if said[-1]["staged"] <= SETTLED:
                self.settled = self.producer_peak
            time.sleep(0.05)
        with producer:
            assert producer.stderr is not None
            err = producer.stderr.read()
            listener.join(10)
        assert producer.returncode == 0, err
        self.full_share = sum(look > 0.9 * budget for look in looks) / len(looks)
        self.redis_peak = self._memory("used_memory_peak")
        return said[-1]

    def _memory(self, name: str) -> int:
        return int(self._ledger.redis.info("memory")[name])

    def stop(self) -> None:
        """End every process."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(60)


def _listen(producer: subprocess.Popen[str], said: list[dict[str, Any]]) -> None:
    assert producer.stdout is not None
    said += (json.loads(line) for line in producer.stdout)


def _peak(pid: int) -> int:
    """A process' largest resident set so far. Bytes; 0 if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(row.split()[1]) << 10 for row in status.splitlines() if row.startswith("VmHWM")), 0)


@pytest.fixture
def soak(
    make_fleet: Callable[..., Any], ledger: Ledger, tmp_path: Path, eventually: Callable[..., Any]
) -> Iterator[Callable[..., Soak]]:
    """Starts the processes of a fleet with these models and settings, and waits until they are ready."""
    running: list[Soak] = []

    def start(models: Sequence[str], **settings: Any) -> Soak:
        running.append(Soak(make_fleet(fake_encoders="true", **settings), ledger, models, tmp_path))
        eventually(running[-1].ready, 120, "the processes to be ready")
        return running[-1]

    yield start
    for each in running:
        each.stop()


def words(seed: int, most: int) -> str:
    """Words that do not repeat much: text that zstd shrinks no more than it does real text."""
    rng = random.Random(seed)
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def check(soak: Soak, count: int, end: dict[str, Any], budget: int) -> None:
    """Everything arrived, the budget was full, and neither Redis nor the producer took more than they may."""
    taken = soak.redis_peak - soak.before
    print(
        f"\n{count:,} chunks, {end['chunks_per_second']:.0f}/s, budget {budget / MIB:.0f} MiB: reserved "
        f"up to {soak.reserved / MIB:.1f} MiB, over 90 % for {soak.full_share:.0%} of the time; Redis at "
        f"most {taken / MIB:.1f} MiB over its rest ({taken / budget:.2f}); producer at most "
        f"{soak.settled / MIB:.1f} MiB until {SETTLED:,} chunks, {soak.producer_peak / MIB:.1f} MiB in all"
    )
    assert (end["chunks"], end["done"], end["dead"]) == (count, count, 0)
    assert 0.9 * budget < soak.reserved <= budget, "the budget was not full: this shows nothing"
    assert taken <= TOLERANCE * budget
    assert soak.producer_peak <= TOLERANCE * soak.settled


#: Short ones tell of every part but the producer's: all of them are early.
COUNTS = [
    pytest.param(10_000, marks=pytest.mark.slow),
    pytest.param(200_000, marks=pytest.mark.soak),
]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", COUNTS)
def test_memory_does_not_grow_with_the_corpus(
    soak: Callable[..., Soak], corpus: Callable[..., Path], count: int
) -> None:
    budget = (16 if count <= SETTLED else 32) * MIB
    running = soak(["qdrant-minilm-onnx", "all-miniLM-l6"], inflight_bytes=budget)
    path = corpus(count, text=lambda i: words(i, 120))
    end = running.submit(path, ["--primary", "qdrant-minilm-onnx", "--companion", "all-miniLM-l6"], budget)
    check(running, count, end, budget)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "count", [pytest.param(200, marks=pytest.mark.slow), pytest.param(4_000, marks=pytest.mark.soak)]
)
def test_memory_is_bounded_with_a_row_per_token(
    soak: Callable[..., Soak], corpus: Callable[..., Path], count: int
) -> None:
    """A chunk's rows are some 400 KB, and 128 chunks of them more than the whole budget."""
    budget = 24 * MIB
    running = soak(["bge-m3"], inflight_bytes=budget)
    path = corpus(count, text=lambda i: words(i, 120))
    end = running.submit(path, ["--primary", "bge-m3", "--output", "bge-m3=dense,sparse,multi"], budget)
    check(running, count, end, budget)
