"""The benchmarks of a machine without a GPU, one after another, and whether their aims are met.

    python -m benchmarks [--only NAME,…] [--results DIRECTORY]

Each is a process of its own with a limit of time; where one fails, the others go on. What each found is in
`results/NAME.json`. Ends with 1 if one of them failed or ran out of time; an aim that is not met is said, and
is no failure.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import show

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
#: How long a benchmark that was told to stop may take to stop its fleet. Seconds.
STOP_SECONDS = 60


@dataclass(frozen=True)
class Benchmark:
    """A module of this package, and how it is run here."""

    name: str
    arguments: tuple[str, ...]
    #: Three times what it takes on two idle cores, or more.
    limit_seconds: int


BENCHMARKS = (
    Benchmark("encoders", ("--chunks", "500", "--repeats", "2"), 400),
    Benchmark("overhead", ("--chunks", "3000", "--rounds", "2"), 600),
    Benchmark("ceiling", ("--rounds", "2"), 400),
    Benchmark("interactive", ("--samples", "100", "--chunks", "4000"), 800),
    Benchmark("staging", (), 400),
    Benchmark("tokenising", (), 300),
    Benchmark("memory", ("--counts", "10000", "100000"), 900),
    Benchmark("worker_memory", ("--setting", "as served", "--chunks", "20000"), 600),
    Benchmark("scale", ("--sizes", "1,4,16"), 600),
    Benchmark("duplicates", ("--chunks", "500"), 400),
    # The first time it also installs its peers.
    Benchmark("peers", ("--chunks", "1000"), 1800),
)


@dataclass(frozen=True)
class Outcome:
    """How a benchmark ended."""

    name: str
    seconds: float
    #: Empty if it went well.
    problem: str
    aims: list[dict[str, Any]]


def main(arguments: list[str] | None = None) -> int:
    """Run them, print a summary; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("--only", default=",".join(names), help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files go")
    options = parser.parse_args(arguments)
    wanted = set(options.only.split(","))
    if unknown := sorted(wanted - set(names)):
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(names)}")
    options.results.mkdir(parents=True, exist_ok=True)
    outcomes = [run(b, options.results / f"{b.name}.json") for b in BENCHMARKS if b.name in wanted]
    show(
        "all of them",
        ["benchmark", "aim", "measured", "wanted", ""],
        [row for o in outcomes for row in _rows(o)],
    )
    print(f"{sum(outcome.seconds for outcome in outcomes):.0f} s in all; results in {options.results}")
    return int(any(outcome.problem for outcome in outcomes))


def run(benchmark: Benchmark, results: Path) -> Outcome:
    """Run one, its output on the terminal; an older `results` file stays if it leaves none."""
    print(f"\n{benchmark.name} {' '.join(benchmark.arguments)}", flush=True)
    begun = time.monotonic()
    problem = ""
    with tempfile.TemporaryDirectory(prefix="v5-bench-") as scratch:
        fresh = Path(scratch) / "results.json"
        command = [sys.executable, "-m", f"benchmarks.{benchmark.name}", *benchmark.arguments]
        process = subprocess.Popen(
            [*command, "--json", str(fresh)],
            cwd=ROOT,
            # What runs in the background ignores SIGINT, and its children would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            code = process.wait(benchmark.limit_seconds)
            problem = f"failed (exit {code})" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"stopped after {benchmark.limit_seconds} s"
            _stop(process)
        except KeyboardInterrupt:
            # The terminal told the child, too; its fleet must be stopped before anybody leaves.
            process.wait()
            raise
        aims: list[dict[str, Any]] = []
        if fresh.exists():
            aims = json.loads(fresh.read_text()).get("aims", [])
            results.write_bytes(fresh.read_bytes())
    return Outcome(benchmark.name, time.monotonic() - begun, problem, aims)


def _stop(process: subprocess.Popen[bytes]) -> None:
    # As Ctrl-C does: it then stops the fleet that it started.
    process.send_signal(signal.SIGINT)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _rows(outcome: Outcome) -> list[tuple[object, ...]]:
    """A line for each aim, and one for how it ended."""
    rows: list[tuple[object, ...]] = [
        ("", a["name"], f"{a['value']:.4g}", f"{a['bound']} {a['aim']:g}", "met" if a["met"] else "NOT MET")
        for a in outcome.aims
    ]
    return [(outcome.name, f"{outcome.seconds:.0f} s", "", "", outcome.problem or "ran"), *rows]


if __name__ == "__main__":
    sys.exit(main())
