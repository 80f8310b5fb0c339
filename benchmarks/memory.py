"""Peak memory of every process at 10⁴, 10⁵ and 10⁶ chunks: it must not follow the corpus.

    python -m benchmarks.memory [--counts 10000 100000 1000000] [--full] [--json FILE]

Made-up vectors of 384 numbers and a small in-flight budget, so that the budget is full at the smallest count
already. The largest count runs without workers, unless `--full` is given: its batches are dropped as soon as
they are staged, which measures the producer and Redis in minutes instead of an hour. PSS is sampled: memory
of a process' own, plus its part of what it shares. What is mapped from files (the embedded store's points)
can be taken back by the system at any time, so what is the process' for good is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.corpora import write_jsonl
from benchmarks.report import Aim, at_most, save, show, show_aims
from ledger.ledger import Ledger
from ledger.server import wait_for
from ledger.steps import PartRecord, Taken, space_mark
from registry.names import BROKER_PREFIX, PREFIX, QUEUE_AGGREGATE, embed_queue
from registry.plan import make_plan
from registry.settings import MIB, Settings, load_settings
from worker import private_redis

PLAN = make_plan(primary="qdrant-minilm-onnx", fake=True)
MODEL = PLAN.models[0]
#: Reached by 10,000 chunks many times over. Bytes.
BUDGET = 4 * MIB
#: Characters of a text, on average.
TEXT = 200
#: Between two looks at the processes. Seconds.
SAMPLE = 0.1


@dataclass
class Peak:
    """The most that a process had at any look. Bytes."""

    pss: int = 0
    #: Of the process itself, not mapped from a file.
    own: int = 0
    rss: int = 0

    def look(self, pid: int) -> None:
        """Look at a process; one that has ended adds nothing."""
        try:
            rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:
            return
        sizes = {name: int(rest.split()[0]) << 10 for name, _, rest in (row.partition(":") for row in rows)}
        self.pss = max(self.pss, sizes.get("Pss", 0))
        self.own = max(self.own, sizes.get("Pss_Anon", 0))
        self.rss = max(self.rss, sizes.get("Rss", 0))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--counts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="chunks of each run"
    )
    parser.add_argument("--full", action="store_true", help="with workers at the largest count, too")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args(arguments)
    counts = sorted(options.counts)
    fleet = counts if options.full else counts[:-1]
    dropped = {count: measure(count, workers=False) for count in counts}
    whole = {count: measure(count, workers=True) for count in fleet}
    _tell("Staged, then dropped", dropped)
    if whole:
        _tell("The whole fleet", whole)
    results = {
        name: {str(count): {who: asdict(peak) for who, peak in run.items()} for count, run in runs.items()}
        for name, runs in (("dropped", dropped), ("fleet", whole))
    }
    aims = [*_flat("staged, then dropped", dropped), *_flat("whole fleet", whole)]
    show_aims(aims)
    save(options.json, {"budget": BUDGET, **results}, aims)
    return 0


def _flat(what: str, runs: dict[int, dict[str, Peak]]) -> list[Aim]:
    """For each process, its largest peak over its smallest."""
    peaks: dict[str, list[int]] = {}
    for run in runs.values():
        for who, peak in run.items():
            peaks.setdefault(who, []).append(peak.own)
    return [
        at_most(f"{what}: {who}, largest peak over smallest", max(found) / min(found), 1.1)
        for who, found in peaks.items()
    ]


def measure(count: int, *, workers: bool) -> dict[str, Peak]:
    """The peak of each process while so many chunks are submitted, from nothing."""
    home = Path(tempfile.mkdtemp(prefix="v5-bench-"))
    environment = {
        **os.environ,
        "V5_DATA_DIR": str(home / "data"),
        "V5_FAKE_ENCODERS": "true",
        "V5_INFLIGHT_BYTES": str(BUDGET),
        "V5_LOG_LEVEL": "WARNING",
    }
    settings = load_settings(data_dir=home / "data", fake_encoders=True, inflight_bytes=BUDGET)
    peaks: dict[str, Peak] = {}
    kinds = {"aggregator": ["aggregator"], **({"worker": ["worker", MODEL]} if workers else {})}
    try:
        corpus = write_jsonl(home, count, TEXT)
        with _redis(settings, home) as ledger, _processes(kinds, environment, home) as running:
            while [process.condition for process in ledger.alive.list()] != ["ready"] * len(kinds):
                time.sleep(SAMPLE)
            with _dropping(ledger, on=not workers), (home / "submit.log").open("wb") as log:
                command = ["submit", str(corpus), "-c", "c", "--primary", MODEL, "--json"]
                producer = subprocess.Popen(
                    [sys.executable, "-m", "v5", *command], env=environment, stdout=log, stderr=log
                )
                watched = {"producer": producer, **running}
                while producer.poll() is None:
                    for name, process in watched.items():
                        peaks.setdefault(name, Peak()).look(process.pid)
                    time.sleep(SAMPLE)
            end = json.loads((home / "submit.log").read_text().splitlines()[-1])
            if end["done"] != count:
                raise RuntimeError(f"{end['done']} of {count} chunks arrived")
            used = int(ledger.redis.info("memory")["used_memory_peak"])
            peaks["Redis"] = Peak(used, used, used)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(
        f"{count} chunks {'through the fleet' if workers else 'dropped'}: {end['seconds']:.0f} s", flush=True
    )
    return peaks


@contextmanager
def _redis(settings: Settings, home: Path) -> Iterator[Ledger]:
    server = private_redis.start(settings, home / "redis.log")
    ledger = Ledger(settings)
    try:
        wait_for(ledger.redis, settings.ledger_url, 20)
        yield ledger
    finally:
        ledger.close()
        server.kill()
        server.wait()


@contextmanager
def _processes(
    kinds: dict[str, list[str]], environment: dict[str, str], home: Path
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    running = {}
    try:
        for name, command in kinds.items():
            with (home / f"{name}.log").open("wb") as log:
                running[name] = subprocess.Popen(
                    [sys.executable, "-m", "v5", *command], env=environment, stdout=log, stderr=log
                )
        yield running
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait(60)


@contextmanager
def _dropping(ledger: Ledger, *, on: bool) -> Iterator[None]:
    """While it lasts, and if `on`, staged batches end as if they were embedded and stored."""
    ended = threading.Event()
    thread = threading.Thread(target=_drop, args=(ledger, ended))
    if on:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if on:
            thread.join()


def _drop(ledger: Ledger, ended: threading.Event) -> None:
    queue = embed_queue(MODEL)
    while not ended.wait(0.01):
        ledger.redis.delete(BROKER_PREFIX + queue)
        for name in ledger.redis.zrange(f"{PREFIX}steps:{queue}", 0, 99):
            taken = ledger.steps.take(name.decode(), queue)
            if isinstance(taken, Taken):
                part = PartRecord(taken.token, 0, 0.0, "none")
                ledger.steps.record(taken, space_mark(PLAN, MODEL), part, b"")
                taken = ledger.steps.take(taken.batch, QUEUE_AGGREGATE)
            if isinstance(taken, Taken):
                count = int(ledger.redis.hget(f"{PREFIX}batch:{taken.batch}", "chunks"))
                ledger.steps.close(taken, count, 0, 0, 0, [])


def _tell(title: str, runs: dict[int, dict[str, Peak]]) -> None:
    least, most = min(runs), max(runs)
    rows = [
        (
            who,
            *(f"{run[who].pss / MIB:.1f}" for run in runs.values()),
            f"{runs[most][who].pss / runs[least][who].pss - 1:+.1%}",
            *(f"{run[who].own / MIB:.1f}" for run in runs.values()),
            f"{runs[most][who].own / runs[least][who].own - 1:+.1%}",
            *(f"{run[who].rss / MIB:.1f}" for run in runs.values()),
        )
        for who in runs[most]
    ]
    counts = [f"{count:,}" for count in runs]
    columns = [*(f"PSS at {c}" for c in counts), "grew", *(f"own at {c}" for c in counts), "grew"]
    show(
        f"{title}: peak memory, MiB (Redis: used_memory_peak)",
        ["process", *columns, *(f"RSS at {c}" for c in counts)],
        rows,
    )


if __name__ == "__main__":
    sys.exit(main())
