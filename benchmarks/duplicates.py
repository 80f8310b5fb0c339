"""A corpus of which a share are copies, against one of as many chunks that are all different.

    python -m benchmarks.duplicates [--chunks 1000] [--share 0.3] [--rounds 3] [--window 128] [--json FILE]

Two workers of one space, an aggregator and the embedded store. Copies stand anywhere in the corpus, most of
them windows away from their original. A round submits each corpus to a collection of its own, in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.functions import stdlib_functions
from benchmarks.report import at_most, save, show, show_aims
from ledger.ledger import Ledger
from registry.settings import load_settings

MODEL = "qdrant-minilm-onnx"


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--chunks", type=int, default=1000, help="chunks of each corpus (default 1000)")
    parser.add_argument("--share", type=float, default=0.3, help="share that are copies (default 0.3)")
    parser.add_argument("--rounds", type=int, default=3, help="paired rounds (default 3)")
    parser.add_argument("--window", type=int, default=128, help="chunks read ahead (default 128)")
    parser.add_argument("--json", help="also write the results to this file")
    options = parser.parse_args(arguments)
    different = list(dict.fromkeys(stdlib_functions(2 * options.chunks)))[: options.chunks]
    corpora = {"all different": different, "with copies": with_copies(different, options.share)}
    home = Path(tempfile.mkdtemp(prefix="v5-bench-"))
    fleet = _Fleet(home, options.window)
    rounds: list[dict[str, dict[str, Any]]] = []
    try:
        fleet.start()
        for number in range(options.rounds):
            each = {}
            for name, texts in corpora.items():
                each[name] = fleet.submit(texts, f"{name.replace(' ', '-')}-{number}")
            rounds.append(each)
    finally:
        fleet.stop()
        shutil.rmtree(home, ignore_errors=True)

    def median(name: str, what: str) -> float:
        return float(statistics.median(each[name][what] for each in rounds))

    first = "all different"
    show(
        f"{len(different)} functions through two workers of {MODEL}; "
        f"of the second corpus {options.share:.0%} are copies",
        ["corpus", "texts", "passes for each", "tokens", "seconds (median)", "bytes to Redis", "copies"],
        [
            (
                name,
                len(set(texts)),
                median(name, "passes") / len(set(texts)),
                median(name, "tokens"),
                median(name, "seconds"),
                median(name, "bytes"),
                median(name, "copies"),
            )
            for name, texts in corpora.items()
        ],
    )
    ratios = {
        what: statistics.median(each["with copies"][what] / each[first][what] for each in rounds)
        for what in ("tokens", "seconds", "bytes")
    }
    print(", ".join(f"{what}: {ratio:.3f} of the first" for what, ratio in ratios.items()))
    most = max(each[name]["passes"] / len(set(texts)) for each in rounds for name, texts in corpora.items())
    aims = [at_most("passes for each text", most, 1.0)]
    show_aims(aims)
    given = {"chunks": options.chunks, "share": options.share, "window": options.window}
    save(options.json, {**given, "rounds": rounds, "ratios": ratios}, aims)
    return 0


def with_copies(texts: Sequence[str], share: float, seed: int = 5) -> list[str]:
    """As many texts, of which `share` are copies of others, in a random order."""
    random_ = random.Random(seed)
    kept = list(texts[: len(texts) - int(len(texts) * share)])
    mixed = kept + random_.choices(kept, k=len(texts) - len(kept))
    random_.shuffle(mixed)
    return mixed


class _Fleet:
    """A local fleet with a second worker of the model."""

    def __init__(self, home: Path, window: int) -> None:
        self._home = home
        self._environment = {
            **os.environ,
            "V5_DATA_DIR": str(home / "data"),
            "V5_WINDOW_CHUNKS": str(window),
            "V5_BATCH_CHUNKS": "32",
            "V5_LOG_LEVEL": "WARNING",
        }
        self._second: subprocess.Popen[bytes] | None = None
        settings = load_settings(data_dir=home / "data", redis_url="", broker_url="", blob_urls=())
        self._ledger = Ledger(settings)

    def start(self) -> None:
        """Start it and wait until both workers are ready."""
        self._v5("up", "--primary", MODEL)
        command = [sys.executable, "-m", "v5", "worker", MODEL, "--name", "second"]
        self._second = subprocess.Popen(command, env=self._environment)
        while sum(p.kind == "worker" and p.condition == "ready" for p in self._ledger.alive.list()) < 2:
            if self._second.poll() is not None:
                raise RuntimeError(f"the second worker ended with {self._second.returncode}")
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop it, however far it came."""
        self._ledger.close()
        if self._second is not None:
            self._second.terminate()
            self._second.wait()
        subprocess.run([*_V5, "down"], env=self._environment, stdout=subprocess.DEVNULL)

    def submit(self, texts: Sequence[str], collection: str) -> dict[str, Any]:
        """A submission, and what it took: passes, copies, tokens, seconds, bytes written to Redis."""
        corpus = self._home / "corpus.jsonl"
        corpus.write_text("".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)))
        before, begun = self._bytes(), time.perf_counter()
        end = self._v5("submit", str(corpus), "-c", collection)
        seconds = time.perf_counter() - begun
        assert end["done"] == len(texts), end
        workers = end["workers"]
        return {
            "passes": sum(row["chunks"] - row["cached"] for row in workers),
            "copies": sum(row["cached"] for row in workers),
            "tokens": sum(row["useful_tokens"] for row in workers),
            "seconds": seconds,
            "bytes": self._bytes() - before,
        }

    def _bytes(self) -> int:
        return int(self._ledger.redis.info("stats")["total_net_input_bytes"])

    def _v5(self, *words: str) -> dict[str, Any]:
        done = subprocess.run(
            [*_V5, *words, "--json"], env=self._environment, stdout=subprocess.PIPE, check=True
        )
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer


_V5 = (sys.executable, "-m", "v5")


if __name__ == "__main__":
    sys.exit(main())
