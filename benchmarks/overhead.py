"""The fleet against a bare loop over the same encoder: what everything around the forward pass costs.

    python -m benchmarks.overhead [--chunks 3000] [--rounds 3] [--json FILE]

Both work through the same chunks on the same cores. A round is one bare loop and one submission to a running
fleet, from `submit` to searchable, each from nothing: the fleet gets a fresh collection. The ratio is that of
the medians of the rounds.
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
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.functions import stdlib_functions
from benchmarks.report import at_least, save, show, show_aims
from registry.processes import keep_freed_memory
from registry.settings import load_settings
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder, warm_up

MODEL = "qdrant-minilm-onnx"
#: Chunks that the bare loop takes at a time: about as many as a batch of the fleet has in such a job.
LOOP_BATCH = 128


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=3000, help="functions to embed (default 3000)")
    parser.add_argument("--rounds", type=int, default=3, help="paired rounds (default 3)")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args(arguments)
    # As the fleet's processes do.
    keep_freed_memory()
    texts = stdlib_functions(options.chunks)
    home = Path(tempfile.mkdtemp(prefix="v5-bench-"))
    environment = {**os.environ, "V5_DATA_DIR": str(home / "data"), "V5_LOG_LEVEL": "WARNING"}
    corpus = home / "functions.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)))

    def v5(*command: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "v5", *command, "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    bare: list[float] = []
    fleet: list[float] = []
    try:
        loop = _bare_loop()
        loop(texts[:32])
        v5("up", "--primary", MODEL)
        for round_number in range(options.rounds):
            begun = time.perf_counter()
            loop(texts)
            bare.append(time.perf_counter() - begun)
            begun = time.perf_counter()
            end = v5("submit", str(corpus), "-c", f"round-{round_number}")
            fleet.append(time.perf_counter() - begun)
            assert end["done"] == len(texts), end
    finally:
        subprocess.run([sys.executable, "-m", "v5", "down"], env=environment, stdout=subprocess.DEVNULL)
        shutil.rmtree(home, ignore_errors=True)
    ratio = statistics.median(b / f for b, f in zip(bare, fleet, strict=True))
    show(
        f"{len(texts)} functions through {MODEL}, {options.rounds} paired rounds",
        ["what", "seconds (median)", "chunks/s", "of the bare loop"],
        [
            ("bare loop", slow := statistics.median(bare), len(texts) / slow, 1.0),
            ("fleet, submit to searchable", took := statistics.median(fleet), len(texts) / took, ratio),
        ],
    )  # fmt: skip
    aims = [at_least("the fleet's part of the bare loop's chunks/s", ratio, 0.95)]
    show_aims(aims)
    results = {"chunks": len(texts), "bare_seconds": bare, "fleet_seconds": fleet, "ratio": ratio}
    save(options.json, results, aims)
    return 0


def _bare_loop() -> Any:
    """The encoder alone: length-sorted, packed by tokens, nothing else in the way."""
    settings = load_settings()
    encoder = load_encoder(MODEL, "", settings, ["dense"])
    warm_up(encoder, ["dense"])
    lock = threading.Lock()

    def run(texts: list[str]) -> None:
        ordered = sorted(texts, key=len)
        for start in range(0, len(ordered), LOOP_BATCH):
            encode(encoder, ordered[start : start + LOOP_BATCH], "document", ["dense"], device_lock=lock)

    return run


if __name__ == "__main__":
    sys.exit(main())
