"""From one worker to many: how throughput grows with them, and what of that one Redis bears.

    python -m benchmarks.scale [--sizes 1,2,4,8,16,32,64] [--seconds 0.1] [--batch 8] [--json FILE]

Every worker is a process with a made-up device, which sleeps so many seconds per text and computes nothing: a
fleet of many devices on few cores. Producer, aggregator, store and Redis are the real ones, and share this
machine with all the workers. Where the machine's CPU was in use by more than 90 %, the machine was the limit:
such a size is marked, and says nothing of the fleet. 64 workers take about 9 GiB of memory.
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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.functions import stdlib_functions
from benchmarks.report import at_least, save, show, show_aims
from ledger.ledger import Ledger
from registry.names import PREFIX
from registry.processes import V5
from registry.settings import load_settings

MODEL = "qdrant-minilm-onnx"
#: Batches per worker before the measurement, during it, and after it, so that no worker runs dry meanwhile.
BEFORE, DURING, AFTER = 8, 16, 8
#: Seconds over which an idle fleet's load is taken.
IDLE = 3.0
#: Workers that start at once.
WAVE = 8
#: Share of the machine's CPU time from which the machine counts as the limit.
BUSY = 0.9
#: Rates of a worker for which the end of one Redis is worked out. Chunks per second.
RATES = (10, 100, 1000)


@dataclass(frozen=True)
class Sample:
    """What the servers and the machine counted up to a moment."""

    seconds: float
    commands: int
    redis_cpu: float
    bytes_in: int
    bytes_out: int
    machine_busy: int
    machine_all: int


@dataclass(frozen=True)
class Load:
    """What happened between two samples, per second."""

    #: How long it was.
    seconds: float
    commands: float
    redis_cpu: float
    bytes_in: float
    bytes_out: float
    #: Of all the machine's cores.
    machine_share: float


@dataclass(frozen=True)
class Size:
    """One number of workers."""

    workers: int
    chunks_per_second: float
    efficiency: float
    idle: Load
    busy: Load

    @property
    def valid(self) -> bool:
        """Whether the machine left the fleet room."""
        return self.busy.machine_share <= BUSY


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", default="1,2,4,8,16,32,64", help="numbers of workers, ascending")
    parser.add_argument("--seconds", type=float, default=0.1, help="of the made-up device per text (0.1)")
    parser.add_argument("--batch", type=int, default=8, help="chunks per batch (default 8)")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args(arguments)
    sizes = sorted({int(size) for size in options.sizes.split(",")})
    found: list[Size] = []
    with _Fleet(options.seconds, options.batch).running() as fleet:
        for workers in sizes:
            fleet.grow(workers)
            idle, busy, rate = fleet.measure(workers)
            base = found[0].chunks_per_second / found[0].workers if found else rate / workers
            found.append(Size(workers, rate, rate / workers / base, idle, busy))
            print(f"{workers} workers: {rate:.1f} chunks/s", file=sys.stderr, flush=True)
    _show(found, options.seconds, options.batch)
    aims = [
        at_least(f"efficiency at {size.workers} workers", size.efficiency, 0.95)
        for size in found
        if size.valid
    ]
    show_aims(aims)
    given = {"seconds": options.seconds, "batch": options.batch}
    save(options.json, {**given, "sizes": [{**asdict(size), "valid": size.valid} for size in found]}, aims)
    return 0


def _show(found: list[Size], seconds: float, batch: int) -> None:
    show(
        f"workers of {1 / seconds:.0f} chunks/s, batches of {batch}; the aim is an efficiency of 0.95; in "
        "parentheses: the machine was the limit",
        ["workers", "chunks/s", "efficiency", "machine", "commands/s", "Redis", "B in", "B out"],
        [
            (
                size.workers, size.chunks_per_second,
                f"{size.efficiency:.3f}" if size.valid else f"({size.efficiency:.3f})",
                f"{size.busy.machine_share:.0%}", size.busy.commands, f"{size.busy.redis_cpu:.1%}",
                round(size.busy.bytes_in / size.chunks_per_second),
                round(size.busy.bytes_out / size.chunks_per_second),
            )
            for size in found
        ],
    )  # fmt: skip
    if len(found) > 1:
        _show_end(found)


def _show_end(found: list[Size]) -> None:
    """Work out from the slopes how many workers one Redis bears."""
    workers = [size.workers for size in found]
    rate = found[0].chunks_per_second / found[0].workers

    def slope(values: list[float]) -> float:
        return max(0.0, float(np.polyfit(workers, values, 1)[0]))

    resting = slope([size.idle.redis_cpu for size in found])
    each = max(0.0, slope([size.busy.redis_cpu for size in found]) - resting) / rate
    size = slope([size.busy.bytes_in + size.busy.bytes_out for size in found]) / rate
    if not resting + each:
        return
    show(
        f"where one core of Redis ends, at {resting * 1e3:.2f} ms/s a worker and {each * 1e6:.0f} µs a chunk",
        ["chunks/s of a worker", "workers", "chunks/s", "MB/s"],
        [
            (rate, count := int(1 / (resting + each * rate)), count * rate, count * rate * size / 1e6)
            for rate in RATES
        ],
    )


class _Fleet:
    """A local fleet whose workers become more."""

    def __init__(self, seconds: float, batch: int) -> None:
        self._batch = batch
        self._home = Path(tempfile.mkdtemp(prefix="v5-bench-"))
        set_here = {
            "V5_DATA_DIR": str(self._home / "data"),
            "V5_FAKE_ENCODERS": "true",
            "V5_FAKE_SECONDS": str(seconds),
            "V5_BATCH_CHUNKS": str(batch),
            "V5_LOG_LEVEL": "WARNING",
        }
        os.environ.update(set_here)
        self._ledger = Ledger(load_settings())
        self._texts = stdlib_functions(1000)
        self._workers: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def running(self) -> Iterator[_Fleet]:
        """With Redis, an aggregator and one worker."""
        try:
            subprocess.run([*V5, "up", "--primary", MODEL], stdout=subprocess.DEVNULL, check=True)
            yield self
        finally:
            for worker in self._workers:
                worker.terminate()
            for worker in self._workers:
                worker.wait()
            subprocess.run([*V5, "down"], stdout=subprocess.DEVNULL)
            self._ledger.close()
            shutil.rmtree(self._home, ignore_errors=True)

    def grow(self, count: int) -> None:
        """Start workers until there are so many, a few at a time, and wait until they serve."""
        while (there := len(self._workers) + 1) < count:
            for number in range(there, min(there + WAVE, count)):
                command = [*V5, "worker", MODEL, "--name", f"worker-{number}"]
                self._workers.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
            while self._ready() < len(self._workers) + 1:
                self._check()
                time.sleep(0.2)

    def measure(self, workers: int) -> tuple[Load, Load, float]:
        """The load of the idle fleet, that of the fleet at work, and its chunks per second."""
        begun = self._sample()
        time.sleep(IDLE)
        idle = _between(begun, self._sample())
        corpus, name = self._home / f"{workers}.jsonl", f"scale-{workers}"
        each = workers * self._batch
        count = each * (BEFORE + DURING + AFTER)
        with corpus.open("w") as out:
            for n in range(count):
                text = f"# {n}\n{self._texts[n % len(self._texts)]}"
                out.write(json.dumps({"id": str(n), "text": text}) + "\n")
        with subprocess.Popen(
            [*V5, "submit", str(corpus), "-c", name, "--json"], stdout=subprocess.PIPE
        ) as job:
            begun, _ = self._when(name, each * BEFORE)
            ended, seen = self._when(name, each * (BEFORE + DURING))
            out_text, _ = job.communicate()
        end = json.loads(out_text.splitlines()[-1])
        if end["done"] != count:
            raise RuntimeError(f"{end['done']} of {count} chunks are done")
        # Chunks are counted batch by batch: a line through all looks is finer than the last less the first.
        rate = float(np.polyfit([when for when, _ in seen], [done for _, done in seen], 1)[0])
        return idle, _between(begun, ended, len(seen)), rate

    def _when(self, collection: str, chunks: int) -> tuple[Sample, list[tuple[float, int]]]:
        """Wait until at least so many chunks are done: the counters then, and how many were done when it was
        looked."""
        job, seen = "", list[tuple[float, int]]()
        while True:
            self._check()
            if not job:
                job = next((j.id for j in self._ledger.jobs.list() if j.collection == collection), "")
            else:
                done = int(self._ledger.redis.hget(f"{PREFIX}job:{job}", "done") or 0)
                seen.append((time.monotonic(), done))
                if done >= chunks:
                    return self._sample(), seen
            time.sleep(0.05)

    def _sample(self) -> Sample:
        about = self._ledger.redis.info("everything")
        # user, nice, system, idle, iowait, irq, softirq, steal: proc(5).
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return Sample(
            time.monotonic(),
            about["total_commands_processed"],
            about["used_cpu_user"] + about["used_cpu_sys"],
            about["total_net_input_bytes"],
            about["total_net_output_bytes"],
            sum(ticks) - ticks[3] - ticks[4],
            sum(ticks),
        )

    def _ready(self) -> int:
        return sum(p.kind == "worker" and p.condition == "ready" for p in self._ledger.alive.list())

    def _check(self) -> None:
        for worker in self._workers:
            if worker.poll() is not None:
                raise RuntimeError(f"a worker ended with exit code {worker.returncode}; see above")


def _between(begun: Sample, ended: Sample, looks: int = 0) -> Load:
    """Without the commands by which this benchmark looked on."""
    seconds = ended.seconds - begun.seconds
    return Load(
        seconds,
        (ended.commands - begun.commands - looks) / seconds,
        (ended.redis_cpu - begun.redis_cpu) / seconds,
        (ended.bytes_in - begun.bytes_in) / seconds,
        (ended.bytes_out - begun.bytes_out) / seconds,
        (ended.machine_busy - begun.machine_busy) / max(1, ended.machine_all - begun.machine_all),
    )


if __name__ == "__main__":
    sys.exit(main())
