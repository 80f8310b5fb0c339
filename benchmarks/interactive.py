"""Queries while a bulk job runs: how long they take idle and under load, and what that is in micro-batches.

    python -m benchmarks.interactive [--samples 200] [--chunks 8000] [--json FILE]

A fleet with the real model answers queries through the same calls as `v5 search`, first with nothing else to
do, then while `v5 submit` fills every slot. A query may wait for the micro-batch on the device, so the aim is
a p95 under load of at most the idle one and one micro-batch, of which the p95 counts, too. That is measured
on the same texts with nothing beside it.
Then reads of the store, while encoders that cost nothing keep the aggregator writing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.functions import stdlib_functions
from benchmarks.report import at_most, save, show, show_aims
from producer import search
from producer.fleet import Fleet
from registry.chunks import chunk_id
from registry.settings import load_settings
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder, warm_up

MODEL = "qdrant-minilm-onnx"
COLLECTION = "functions"
#: Chunks that stand before anything is measured.
STANDING = 500
#: Chunks of a batch, the fleet's default.
BATCH = 128
#: So many times the functions keep an aggregator writing while its reads are measured.
REPEATED = 8
#: Pauses between two queries, at random so that they meet a micro-batch at any point of it. Seconds.
PAUSE = 0.25
QUERIES = (
    "parse a date written as text",
    "retry a request with exponential backoff",
    "read a file line by line without loading it",
    "walk a directory tree and skip hidden files",
)

Measured = dict[str, list[float]]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=200, help="queries of each kind (default 200)")
    parser.add_argument("--chunks", type=int, default=8000, help="functions of the bulk job (default 8000)")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args(arguments)
    texts = stdlib_functions(options.chunks)
    passes = _micro_batches(texts[: 4 * BATCH])
    micro_batch = _p95(passes)

    with _Bench(texts) as bench:
        kinds = {"embed a query": bench.embed, "search": bench.search}
        idle, loaded = bench.measured(kinds, options.samples)
    with _Bench(texts * REPEATED, {"V5_FAKE_ENCODERS": "true"}) as bench:
        kinds = {"search": bench.search, "compare 128 chunks": bench.compare}
        still, written = bench.measured(kinds, options.samples)

    rows = []
    ratios = {}
    for kind, times in idle.items():
        more = _p95(loaded[kind]) - _p95(times)
        ratios[kind] = more / micro_batch
        rows.append((kind, *_row(times), *_row(loaded[kind]), ratios[kind]))
    show(
        f"Queries beside {MODEL} at work; a micro-batch, one pass, takes {1e3 * micro_batch:.0f} "
        f"ms (p95 of {len(passes)}; the median {1e3 * statistics.median(passes):.0f})",
        ["what", "idle p50 (ms)", "p95", "loaded p50", "p95", "p95 more, in passes"],
        rows,
    )
    show(
        "Reads of the store beside an aggregator that writes all it can",
        ["what", "idle p50 (ms)", "p95", "loaded p50", "p95"],
        [(kind, *_row(times), *_row(written[kind])) for kind, times in still.items()],
    )
    aims = [
        at_most(f"{kind}: p95 under load over the idle one, in micro-batches", ratio, 1)
        for kind, ratio in ratios.items()
    ]
    show_aims(aims)
    save(
        options.json,
        {
            "micro_batch_seconds": passes,
            "idle_seconds": idle,
            "loaded_seconds": loaded,
            "p95_more_in_micro_batches": ratios,
            "reads_idle_seconds": still,
            "reads_loaded_seconds": written,
        },
        aims,
    )
    return 0


class _Bench:
    """A fleet in a directory of its own, with chunks that stand and more to submit."""

    def __init__(self, texts: list[str], environment: dict[str, str] | None = None) -> None:
        self._home = Path(tempfile.mkdtemp(prefix="v5-bench-"))
        self._texts = texts
        self._environment = {
            **os.environ,
            "V5_DATA_DIR": str(self._home / "data"),
            "V5_LOG_LEVEL": "WARNING",
            **(environment or {}),
        }
        self._turn = 0

    def __enter__(self) -> _Bench:
        try:
            self._v5("up", "--primary", MODEL)
            self._v5("submit", str(self._corpus("standing", self._texts[:STANDING])), "-c", COLLECTION)
            self._fleet = Fleet(load_settings(data_dir=self._home / "data"))
            self._plan = self._fleet.plan(COLLECTION)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._v5("down", check=False)
        shutil.rmtree(self._home, ignore_errors=True)

    def embed(self) -> None:
        """A query's vectors."""
        self._fleet.embed_query(self._plan, [MODEL], self._query())

    def search(self) -> None:
        """What `v5 search` does."""
        assert search.find(self._fleet, COLLECTION, self._query(), (), 10)

    def compare(self) -> None:
        """What a producer asks for every batch."""
        rows = [(chunk_id(str(i)), "", "") for i in range(BATCH)]
        assert len(self._fleet.compare(COLLECTION, [MODEL], rows)) == BATCH

    def measured(self, kinds: dict[str, Callable[[], None]], samples: int) -> tuple[Measured, Measured]:
        """Seconds of each kind with nothing else at work, and while a job is."""
        self._sample(kinds, 5, lambda: True)
        idle = self._sample(kinds, samples, lambda: True)
        with self._load() as runs:
            loaded = self._sample(kinds, samples, runs)
        if any(len(times) < 2 for times in loaded.values()):
            raise SystemExit("the bulk job ended before a query was answered; give it more with --chunks")
        return idle, loaded

    def _sample(
        self, kinds: dict[str, Callable[[], None]], samples: int, goes_on: Callable[[], bool]
    ) -> Measured:
        found: Measured = {kind: [] for kind in kinds}
        pauses = random.Random(samples)
        for _ in range(samples):
            for kind, ask in kinds.items():
                time.sleep(pauses.uniform(0.0, PAUSE))
                begun = time.perf_counter()
                ask()
                took = time.perf_counter() - begun
                if not goes_on():
                    return found
                found[kind].append(took)
        return found

    @contextlib.contextmanager
    def _load(self) -> Iterator[Callable[[], bool]]:
        """A submission that runs; yields whether it still does."""
        corpus = self._corpus("bulk", self._texts)
        submit = subprocess.Popen(
            [sys.executable, "-m", "v5", "submit", str(corpus), "-c", COLLECTION, "--json"],
            env=self._environment,
            stdout=subprocess.DEVNULL,
        )
        try:
            jobs = self._fleet.ledger.jobs
            while submit.poll() is None and not (jobs.list() and jobs.list()[0].done):
                time.sleep(0.1)
            yield lambda: submit.poll() is None
        finally:
            submit.send_signal(signal.SIGINT)
            submit.wait()

    def _query(self) -> str:
        self._turn += 1
        return f"{QUERIES[self._turn % len(QUERIES)]} {self._turn}"

    def _corpus(self, name: str, texts: list[str]) -> Path:
        path = self._home / f"{name}.jsonl"
        path.write_text(
            "".join(json.dumps({"id": f"{name}-{i}", "text": text}) + "\n" for i, text in enumerate(texts))
        )
        return path

    def _v5(self, *command: str, check: bool = True) -> None:
        subprocess.run(
            [sys.executable, "-m", "v5", *command],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            check=check,
        )


class _Timed:
    """A device's lock that notes how long each pass holds it."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        self._lock.acquire()
        self._begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self._begun)
        self._lock.release()


def _micro_batches(texts: list[str]) -> list[float]:
    """Seconds of each micro-batch of these texts, sorted and cut as in the fleet, with nothing beside."""
    settings = load_settings()
    encoder = load_encoder(MODEL, "", settings, ["dense"])
    warm_up(encoder, ["dense"])
    timed = _Timed()
    ordered = sorted(texts, key=len)
    for start in range(0, len(ordered), BATCH):
        encode(encoder, ordered[start : start + BATCH], "document", ["dense"], device_lock=timed)
    encoder.close()
    return timed.seconds


def _p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20, method="inclusive")[-1]


def _row(times: list[float]) -> tuple[float, float]:
    """p50 and p95 in milliseconds."""
    return 1e3 * statistics.median(times), 1e3 * _p95(times)


if __name__ == "__main__":
    sys.exit(main())
