"""The fleet and its encoder against what else embeds on a CPU: same weights, same truncation, same chunks.

    python -m benchmarks.peers [--chunks 1000] [--repeats 1] [--peers NAME,…] [--threads N] [--json FILE]

sentence-transformers, fastembed and infinity-emb each run in an environment of their own (`.venv-peers/`,
installed on first use), in a process that has its model loaded, at the batch size that it takes when nobody
says and at its best of 4 to 256. All contenders take turns on slices of the corpus, so that whatever else the
machine does hits all alike. A slice is in no order, and is handed over in one call, as one calls `encode`:
whoever sorts by length does so in its own time.

Like is compared with like: `encoder`, which has the texts and gives the vectors in memory as its peers do, is
what the aims are held against. `fleet` does more: from `v5 submit`, the command's own start included, over
Redis, to points that can be searched. fastembed is given the graph that our encoder runs.

Ends with 1 if any chunk's vector is not that of sentence-transformers. A peer that does not install or run is
named with its reason.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.chunks import stdlib_chunks
from benchmarks.contenders import (
    PINS,
    ROOT,
    Absent,
    Contender,
    cpu_seconds,
    onnx_directory,
    peak_pss,
    processes_of,
    python_of,
)
from benchmarks.report import at_least, save, show, show_aims
from registry.models import model
from registry.settings import load_settings
from worker.encoders.device import thread_count
from worker.weights import locate

ONNX = "qdrant-minilm-onnx"
ENCODER, FLEET = "ours: encoder", "ours: fleet"
REFERENCE = "sentence-transformers"
BATCH_SIZES = (4, 8, 16, 32, 64, 128, 256)
#: Every batch size is tried on this many chunks, twice; the best goes on to the full measurement.
TRIAL_CHUNKS = 64
#: Chunks of a slice: one call.
SLICE = 500
#: Worst cosine of a chunk's vector to the reference's that still counts as agreement.
MIN_COSINE = 0.9999
MIB = 1 << 20

Floats = npt.NDArray[np.float32]


class Fleet:
    """A running fleet of one model, which takes a slice as one submission."""

    def __init__(self, home: Path, threads: int) -> None:
        self._home = home
        self._data = home / "data"
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "V5_DATA_DIR": str(self._data),
            "V5_DEVICE": "cpu",
            "V5_THREADS": str(threads),
            "V5_LOG_LEVEL": "WARNING",
        }
        self._submitted = 0
        self._v5("up", "--primary", ONNX)

    def embed(self, texts: Path, batch: int) -> tuple[dict[str, float], Path]:  # noqa: ARG002
        """As Contender.embed; the CPU seconds are those of all its processes and of the command."""
        rows = json.loads(texts.read_text())
        corpus = self._home / "corpus.jsonl"
        corpus.write_text("".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(rows)))
        self._submitted += 1
        collection = f"slice-{self._submitted}"
        with peak_pss(lambda: processes_of(self._data)) as peak:
            pids = [*processes_of(self._data), os.getpid()]
            cpu, wall = cpu_seconds(pids), time.perf_counter()
            end = self._v5("submit", str(corpus), "-c", collection)[-1]
            took = {"seconds": time.perf_counter() - wall, "cpu_seconds": cpu_seconds(pids) - cpu}
        if end["done"] != len(rows):
            raise Absent(f"of {len(rows)} chunks {end['done']} are searchable")
        vectors = self._home / f"{collection}.npy"
        np.save(
            vectors, np.concatenate([self._read(collection, i, len(rows)) for i in range(0, len(rows), 200)])
        )
        return {**took, "pss_bytes": peak[0]}, vectors

    def close(self) -> None:
        """Stop it."""
        subprocess.run([sys.executable, "-m", "v5", "down"], env=self._environment, stdout=subprocess.DEVNULL)

    def _read(self, collection: str, begin: int, end: int) -> Floats:
        names = [str(i) for i in range(begin, min(begin + 200, end))]
        points = self._v5("get", *names, "-c", collection, "--vectors")[-1]
        return np.array([point["vectors"][ONNX] for point in points], np.float32)

    def _v5(self, *command: str) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-m", "v5", *command, "--json"],
            env=self._environment,
            stdout=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            raise Absent(f"`v5 {command[0]}` ended with exit code {done.returncode}")
        return [json.loads(line) for line in done.stdout.splitlines()]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--chunks", type=int, default=2 * SLICE, help=f"in slices of {SLICE} (default {2 * SLICE})"
    )
    parser.add_argument("--repeats", type=int, default=1, help="interleaved repetitions (default 1)")
    parser.add_argument("--peers", default=",".join(PINS), help=f"of {', '.join(PINS)} (default: all)")
    parser.add_argument("--threads", type=int, default=0, help="of each contender (default: the cores)")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args(arguments)
    peers = [REFERENCE, *(p for p in options.peers.split(",") if p not in ("", REFERENCE))]
    unknown = set(peers) - set(PINS)
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}; there are {', '.join(PINS)}")
    scratch = Path(tempfile.mkdtemp(prefix="v5-peers-"))
    running: dict[tuple[str, int], Contender | Fleet] = {}
    absent: dict[str, str] = {}
    try:
        results, best = _measure(options, peers, scratch, running, absent)
    finally:
        for contender in running.values():
            contender.close()
        shutil.rmtree(scratch, ignore_errors=True)
    return _report(options, results, best, absent)


def _measure(
    options: argparse.Namespace,
    peers: Sequence[str],
    scratch: Path,
    running: dict[tuple[str, int], Contender | Fleet],
    absent: dict[str, str],
) -> tuple[dict[str, list[dict[str, float]]], dict[str, int]]:
    """What each contender took for each slice, and each peer's best batch size.

    Each pair of a peer and a batch size has a process of its own: memory that one size took stays with it.
    """
    settings = load_settings(threads=options.threads)
    threads = thread_count(settings)
    texts = stdlib_chunks(options.chunks)
    slices = [
        _written(scratch / f"slice-{i}.json", texts[i : i + SLICE]) for i in range(0, len(texts), SLICE)
    ]
    trial = _written(scratch / "trial.json", texts[:TRIAL_CHUNKS])
    spec = model(ONNX)
    weights = locate(model("all-miniLM-l6"), settings)
    graph = onnx_directory(spec, weights, settings.cache_dir, scratch / "onnx")
    best: dict[str, int] = {}
    for peer in peers:
        directory = graph if peer == "fastembed" else weights.path
        try:
            python = python_of(peer)
            first = Contender(peer, python, directory, threads, scratch)
            try:
                best[peer] = _best_batch(first, trial)
            finally:
                first.close()
            for batch in (0, best[peer]):
                running[peer, batch] = Contender(peer, python, directory, threads, scratch)
        except Absent as reason:
            absent[peer] = str(reason)
    running[ENCODER, 0] = Contender("ours", sys.executable, weights.path, threads, scratch)
    running[FLEET, 0] = Fleet(scratch, threads)
    results: dict[str, list[dict[str, float]]] = {_name(*key): [] for key in running}
    for _ in range(options.repeats):
        for part in slices:
            reference: Floats | None = None
            for (who, batch), contender in list(running.items()):
                try:
                    took, file = contender.embed(part, batch)
                except Absent as reason:
                    absent[_name(who, batch)] = str(reason)
                    running.pop((who, batch)).close()
                    del results[_name(who, batch)]
                    continue
                vectors = np.load(file)
                reference = vectors if reference is None else reference
                took["cosine"] = float((vectors * reference).sum(axis=1).min())
                results[_name(who, batch)].append(took)
    return results, best


def _name(who: str, batch: int) -> str:
    if who in (ENCODER, FLEET):
        return who
    return f"{who}, batch {batch} (best)" if batch else f"{who} (default)"


def _written(file: Path, texts: list[str]) -> Path:
    file.write_text(json.dumps(texts))
    return file


def _best_batch(contender: Contender, trial: Path) -> int:
    took = dict.fromkeys(BATCH_SIZES, float("inf"))
    # Twice, the better one counts: a disturbance in one trial must not choose the size.
    for size in BATCH_SIZES * 2:
        took[size] = min(took[size], contender.embed(trial, size)[0]["seconds"])
    return min(took, key=lambda size: took[size])


def _report(
    options: argparse.Namespace,
    results: dict[str, list[dict[str, float]]],
    best: dict[str, int],
    absent: dict[str, str],
) -> int:
    ours = results[ENCODER]
    # A slice by each contender stands beside the same slice by ours; the median of these is what counts.
    ratios = {
        name: statistics.median(
            theirs["seconds"] / mine["seconds"] for theirs, mine in zip(took, ours, strict=True)
        )
        for name, took in results.items()
    }
    chunks = options.chunks * options.repeats
    threads = thread_count(load_settings(threads=options.threads))
    show(
        f"{options.chunks} chunks in calls of {SLICE}, {options.repeats} times, {threads} threads each",
        [
            "contender",
            "chunks/s",
            "encoder is faster by",
            "chunks per CPU second",
            "MiB (PSS)",
            "worst cosine",
        ],
        [
            (
                name,
                chunks / sum(t["seconds"] for t in took),
                ratios[name],
                chunks / sum(t["cpu_seconds"] for t in took),
                max(t["pss_bytes"] for t in took) / MIB,
                f"{min(t['cosine'] for t in took):.6f}",
            )
            for name, took in results.items()
        ],
    )
    for name, reason in absent.items():
        print(f"{name} took no part: {reason}")
    cosine = min(t["cosine"] for took in results.values() for t in took)
    rivals = {name: ratio for name, ratio in ratios.items() if name not in (ENCODER, FLEET)}
    aims = [at_least("worst cosine of any chunk to sentence-transformers", cosine, MIN_COSINE)]
    if default := rivals.get(_name(REFERENCE, 0)):
        aims.insert(
            0, at_least("encoder, times as fast as sentence-transformers at its default", default, 1.7)
        )
        aims.insert(
            1, at_least("encoder, times as fast as the best peer at its best", min(rivals.values()), 1.15)
        )
    show_aims(aims)
    save(
        options.json,
        {
            "chunks": options.chunks,
            "slice": SLICE,
            "threads": threads,
            "results": results,
            "ratios": ratios,
            "best_batch": best,
            "absent": absent,
            "pins": PINS,
        },
        aims,
    )
    return 0 if cosine >= MIN_COSINE else 1


if __name__ == "__main__":
    sys.exit(main())
