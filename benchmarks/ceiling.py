"""The most that the fleet can carry: the whole pipeline around encoders that cost next to nothing.

    python -m benchmarks.ceiling [--chunks 36000] [--rounds 3] [--json FILE]

The plan is of two large models with made-up vectors (1536 + 1024 values). A round is one submission to a
running fleet, from reading to searchable, and the same points put into Qdrant Edge alone, in a bare loop in
this process: that is what nothing can avoid. What each process took in CPU time, and what went over the wire
to Redis and back, is read before and after each submission; the command's own start is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.functions import stdlib_functions
from benchmarks.report import at_least, at_most, save, show, show_aims
from ledger.ledger import Ledger
from ledger.server import Redis
from registry.chunks import Chunk, chunk_id
from registry.plan import Plan
from registry.processes import keep_freed_memory
from registry.settings import load_settings
from store.binding import Binding
from store.edge_operations import slices, upsert_operations
from store.edge_shard import Shard
from store.layout import layout
from store.points import build_point

PRIMARY, COMPANION = "jina-code-embeddings-1.5b", "bge-m3"
#: Different functions; there are more chunks than that, told apart by a first line.
FUNCTIONS = 5000
#: Chunks of a submission before the first round, so that every process has imported what it needs.
WARM_UP = 512
#: Commands that only ever come over the wire, none from inside a script: each is a round trip of somebody's.
ROUND_TRIPS = ("evalsha", "mget", "unlink", "brpop", "lpush", "exec", "publish")


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=36_000, help="chunks of a round (default 36000)")
    parser.add_argument("--rounds", type=int, default=3, help="paired rounds (default 3)")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args(arguments)
    # As the fleet's processes do.
    keep_freed_memory()
    texts = _texts(options.chunks)
    home = Path(tempfile.mkdtemp(prefix="v5-bench-"))
    fleet: list[dict[str, Any]] = []
    bare: list[tuple[float, float]] = []
    running = _Fleet(home)
    try:
        running.start()
        running.submit(_corpus(home / "warm.jsonl", texts[:WARM_UP]), "warm")
        corpus = _corpus(home / "corpus.jsonl", texts)
        for number in range(options.rounds):
            bare.append(_bare_edge(home / f"edge-{number}", texts))
            fleet.append(running.measured(corpus, f"round-{number}"))
            assert fleet[-1]["done"] == len(texts), fleet[-1]
    finally:
        running.stop()
        shutil.rmtree(home, ignore_errors=True)
    results = _summary(texts, fleet, bare)
    _show(results)
    aims = [
        at_least("chunks/s", results["chunks_per_second"], 3000),
        at_most("bytes written to Redis, of the raw bytes", results["written_to_raw"], 1.15),
    ]
    show_aims(aims)
    save(options.json, results, aims)
    return 0


class _Fleet:
    """A local fleet with made-up vectors, and what it uses."""

    def __init__(self, home: Path) -> None:
        data = home / "data"
        self._environment = {
            **os.environ,
            "V5_DATA_DIR": str(data),
            "V5_FAKE_ENCODERS": "true",
            "V5_LOG_LEVEL": "WARNING",
        }
        self._ledger = Ledger(load_settings(data_dir=data, redis_url="", broker_url="", blob_urls=()))
        self._pids: dict[str, int] = {}

    def start(self) -> None:
        """Start it and wait until every process is ready."""
        up = self._v5("up", "--primary", PRIMARY, "--companion", COMPANION)
        self._pids = {process["name"]: process["pid"] for process in up["processes"]}

    def stop(self) -> None:
        """Stop it, however far it came."""
        self._ledger.close()
        subprocess.run(_command("down"), env=self._environment, stdout=subprocess.DEVNULL)

    def submit(self, corpus: Path, collection: str) -> dict[str, Any]:
        """The last line of a submission that went through."""
        return self._v5("submit", str(corpus), "-c", collection)

    def measured(self, corpus: Path, collection: str) -> dict[str, Any]:
        """A submission, and what it took: wall and CPU seconds, Redis' bytes and commands."""
        redis: Redis = self._ledger.redis
        cpu, wire, calls = self._cpu(), redis.info("stats"), _calls(redis)
        producer, begun = os.times(), time.perf_counter()
        end = self.submit(corpus, collection)
        seconds, after = time.perf_counter() - begun, os.times()
        wire_after = redis.info("stats")
        used = {name: spent - cpu[name] for name, spent in self._cpu().items()}
        used["producer"] = (
            after.children_user + after.children_system - producer.children_user - producer.children_system
        )
        return {
            "done": end["done"],
            "batches": self._ledger.jobs.get(end["job"]).next,
            "seconds": seconds,
            "cpu_seconds": used,
            "bytes_written": wire_after["total_net_input_bytes"] - wire["total_net_input_bytes"],
            "bytes_read": wire_after["total_net_output_bytes"] - wire["total_net_output_bytes"],
            "commands": dict(_calls(redis) - calls),
        }

    def _cpu(self) -> dict[str, float]:
        """CPU seconds so far, by process."""
        return {name: _cpu_seconds(pid) for name, pid in self._pids.items()}

    def _v5(self, *words: str) -> dict[str, Any]:
        done = subprocess.run(
            _command(*words, "--json"), env=self._environment, stdout=subprocess.PIPE, check=True
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "v5", *words]


def _cpu_seconds(pid: int) -> float:
    """User and system seconds of a process and of those of its children that it waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def _calls(redis: Redis) -> Counter[str]:
    """How often each command was run so far, those inside scripts included."""
    stats: dict[str, dict[str, int]] = redis.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): about["calls"] for name, about in stats.items()})


def _texts(count: int) -> list[str]:
    functions = stdlib_functions(min(FUNCTIONS, count))
    return [f"# {i}\n{functions[i % len(functions)]}" for i in range(count)]


def _corpus(path: Path, texts: Sequence[str]) -> Path:
    path.write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(texts)))
    return path


def _bare_edge(directory: Path, texts: Sequence[str]) -> tuple[float, float]:
    """Wall and CPU seconds in which Edge alone takes the points of these texts, in the fleet's layout and
    slices, and has them as safe as the fleet makes them; what the points are made of is there before."""
    plan = _plan()
    shard = Shard.create(directory, layout(Binding.of(plan)))
    random, seconds, cpu = np.random.default_rng(0), 0.0, 0.0
    size = load_settings().batch_chunks
    tokens = dict.fromkeys(plan.models, (100, 100))
    for at in range(0, len(texts), size):
        chunks = [
            Chunk(chunk_id(str(at + i)), text, {"id": str(at + i)}, "corpus.jsonl")
            for i, text in enumerate(texts[at : at + size])
        ]
        rows = {
            vector.name: random.standard_normal((len(chunks), vector.dimension), np.float32)
            for vector in plan.vectors()
        }
        points = [
            build_point(chunk, {name: values[i] for name, values in rows.items()}, "bare", 1, tokens)
            for i, chunk in enumerate(chunks)
        ]
        begun, used = time.perf_counter(), time.process_time()
        for some, nbytes in slices(points):
            ticket = shard.write(upsert_operations(some, 1), nbytes)
        shard.sync(ticket)
        seconds += time.perf_counter() - begun
        cpu += time.process_time() - used
    shard.close()
    shutil.rmtree(directory)
    return seconds, cpu


def _plan() -> Plan:
    return Plan(primary=PRIMARY, companions=(COMPANION,), fake=True)


def _summary(
    texts: Sequence[str], rounds: Sequence[dict[str, Any]], bare: Sequence[tuple[float, float]]
) -> dict[str, Any]:
    """Medians over the rounds, per chunk, and ratios to the limit of the same round."""
    count = len(texts)
    raw = sum(len(text.encode()) for text in texts) + 4 * count * sum(v.dimension for v in _plan().vectors())
    batches = statistics.median(took["batches"] for took in rounds)
    return {
        "chunks": count,
        "chunks_per_second": statistics.median(count / took["seconds"] for took in rounds),
        "edge_chunks_per_second": statistics.median(count / seconds for seconds, _ in bare),
        "of_edge": statistics.median(
            seconds / took["seconds"] for took, (seconds, _) in zip(rounds, bare, strict=True)
        ),
        "edge_cpu_ms_per_chunk": 1000 * statistics.median(cpu for _, cpu in bare) / count,
        "cpu_ms_per_chunk": {
            name: 1000 * statistics.median(took["cpu_seconds"][name] for took in rounds) / count
            for name in rounds[0]["cpu_seconds"]
        },
        "raw_bytes_per_chunk": raw / count,
        "written_to_raw": statistics.median(took["bytes_written"] for took in rounds) / raw,
        "read_to_raw": statistics.median(took["bytes_read"] for took in rounds) / raw,
        "commands_per_batch": {
            name: statistics.median(took["commands"].get(name, 0) for took in rounds) / batches
            for name in ROUND_TRIPS
        },
        "rounds": list(rounds),
    }


def _show(results: dict[str, Any]) -> None:
    cpu = results["cpu_ms_per_chunk"]
    show(
        f"{results['chunks']} chunks through {PRIMARY} and {COMPANION}, made up",
        ["what", "chunks/s", "of Edge alone"],
        [
            ("Qdrant Edge alone", results["edge_chunks_per_second"], 1.0),
            ("fleet, submit to searchable", results["chunks_per_second"], results["of_edge"]),
        ],
    )
    rows = [*cpu.items(), ("all", sum(cpu.values())), ("Qdrant Edge alone", results["edge_cpu_ms_per_chunk"])]
    show("CPU time", ["process", "ms per chunk"], rows)
    show(
        f"Redis, against {results['raw_bytes_per_chunk']:.0f} bytes of text and vectors per chunk",
        ["way", "times the raw bytes"],
        [("written to it", results["written_to_raw"]), ("read from it", results["read_to_raw"])],
    )
    show("Redis, commands", ["command", "per batch"], list(results["commands_per_batch"].items()))


if __name__ == "__main__":
    sys.exit(main())
