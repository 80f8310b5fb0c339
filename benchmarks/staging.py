"""The producer alone: what each of its steps adds to a bare parse of the same files.

    python -m benchmarks.staging [--chunks 20000] [--rounds 3] [--json FILE]

The steps build on each other: the bare parse; reading to finished chunks; cutting these into packed batches
(ids, hashes, windows, compression); staging the batches in a private Redis with room for all and nobody who
takes them; and the same after asking an aggregator what an empty collection lacks. Chunks per second of the
processor time that this process took, best of the rounds, which take turns. Of the last step, the clock's
seconds are told too: what the processor time leaves of them was spent waiting for Redis and the aggregator.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.corpora import write_jsonl, write_parquet, write_v4
from benchmarks.report import at_least, save, show, show_aims
from ledger.ledger import Ledger
from ledger.server import wait_for
from producer.batching import cut_batches, windows
from producer.corpus import Corpus, open_corpus
from producer.fleet import Fleet
from producer.submission import Progress, Submission
from registry.frames import pack_chunks
from registry.names import BROKER_PREFIX, embed_queue
from registry.plan import make_plan
from registry.settings import Settings, load_settings
from worker import private_redis

PLAN = make_plan(primary="qdrant-minilm-onnx", fake=True)
STEPS = ("bare parse", "read", "cut and packed", "staged", "compared and staged")


class _Staged(BaseException):
    """The corpus has been staged; nobody would ever finish the job."""


class _NothingStands(Fleet):
    """Stands for an aggregator with an empty collection that takes no time."""

    def open_collection(self, _name: str, plan: Any) -> Any:
        return SimpleNamespace(plan=plan)

    def compare(self, _name: str, _names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[Any]]:
        return [["absent"]] * len(rows)


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=20_000, help="chunks of each corpus (default 20,000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, of which the best counts (default 3)")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args(arguments)
    home = Path(tempfile.mkdtemp(prefix="v5-bench-"))
    os.environ["V5_DATA_DIR"] = str(home / "data")
    os.environ["V5_FAKE_ENCODERS"] = "true"
    settings = load_settings(inflight_bytes=1 << 40)
    corpora: dict[str, tuple[Path, Callable[[Path], None]]] = {
        "JSON Lines": (write_jsonl(home, options.chunks), _parse_jsonl),
        "V4 files": (write_v4(home, options.chunks), _parse_v4),
        "Parquet": (write_parquet(home, options.chunks), _parse_parquet),
    }
    best: dict[str, dict[str, float]] = {kind: {} for kind in corpora}
    waited: dict[str, float] = {}
    try:
        with _servers(settings, home) as ledger:
            for _ in range(options.rounds):
                for kind, (path, parse) in corpora.items():
                    corpus = open_corpus([path], root=None, settings=settings)
                    steps: tuple[Callable[[], object], ...] = (
                        lambda path=path, parse=parse: parse(path),  # type: ignore[misc]
                        lambda corpus=corpus: sum(1 for _ in corpus.items()),  # type: ignore[misc]
                        lambda corpus=corpus: _cut(corpus, settings),  # type: ignore[misc]
                        lambda corpus=corpus: _stage(_NothingStands, corpus, settings),  # type: ignore[misc]
                        lambda corpus=corpus: _stage(Fleet, corpus, settings),  # type: ignore[misc]
                    )
                    for name, step in zip(STEPS, steps, strict=True):
                        began, clock = time.process_time(), time.perf_counter()
                        step()
                        took = time.process_time() - began
                        passed = time.perf_counter() - clock
                        best[kind][name] = max(best[kind].get(name, 0.0), options.chunks / took)
                        if name == STEPS[-1]:
                            waited[kind] = min(waited.get(kind, 1.0), 1 - took / passed)
                        _forget(ledger)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    show(
        f"{options.chunks} chunks, per second of the producer's processor time, best of {options.rounds}",
        ["corpus", *STEPS, "of the time waiting"],
        [(kind, *rates.values(), f"{waited[kind]:.0%}") for kind, rates in best.items()],
    )
    aims = [
        at_least(f"{kind}: chunks staged per second of a core", rates[STEPS[-2]], 10_000)
        for kind, rates in best.items()
    ]
    show_aims(aims)
    results = {"chunks": options.chunks, "chunks_per_cpu_second": best, "waiting_share": waited}
    save(options.json, results, aims)
    return 0


@contextmanager
def _servers(settings: Settings, home: Path) -> Iterator[Ledger]:
    """A private Redis and an aggregator over the embedded store."""
    redis = private_redis.start(settings, home / "redis.log")
    ledger = Ledger(settings)
    aggregator: subprocess.Popen[bytes] | None = None
    try:
        wait_for(ledger.redis, settings.ledger_url, 20)
        with (home / "aggregator.log").open("wb") as log:
            aggregator = subprocess.Popen([sys.executable, "-m", "v5", "aggregator"], stdout=log, stderr=log)
        while not any(process.condition == "ready" for process in ledger.alive.list()):
            if aggregator.poll() is not None:
                raise RuntimeError((home / "aggregator.log").read_text())
            time.sleep(0.1)
        yield ledger
    finally:
        if aggregator is not None:
            aggregator.terminate()
            aggregator.wait(60)
        ledger.close()
        redis.kill()
        redis.wait()


def _forget(ledger: Ledger) -> None:
    """End what was staged."""
    for job in ledger.jobs.list():
        if job.state == "open":
            ledger.jobs.cancel(job.id)
    for queue in PLAN.models:
        ledger.redis.delete(f"{BROKER_PREFIX}{embed_queue(queue)}")


def _parse_jsonl(path: Path) -> None:
    with path.open("rb") as lines:
        for line in lines:
            json.loads(line)


def _parse_v4(path: Path) -> None:
    for file in sorted(path.iterdir()):
        json.loads(file.read_bytes())


def _parse_parquet(path: Path) -> None:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as table:
        for batch in table.iter_batches(256, use_threads=False):
            batch.to_pylist()


def _cut(corpus: Corpus, settings: Settings) -> None:
    for window in windows(corpus.items(), settings):
        for chunk in window.chunks:
            # As the comparison needs them.
            _ = chunk.content_hash, chunk.payload_hash
        for batch in cut_batches(window.chunks, settings):
            pack_chunks(batch)


def _stage(kind: type[Fleet], corpus: Corpus, settings: Settings) -> None:
    def stop(progress: Progress) -> None:
        if progress.complete:
            raise _Staged

    fleet = kind(settings)
    try:
        Submission(fleet, corpus, "corpus", PLAN, stop).run()
    except _Staged:
        pass
    finally:
        fleet.close()


if __name__ == "__main__":
    sys.exit(main())
