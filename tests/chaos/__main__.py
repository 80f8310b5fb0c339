"""Chaos from the command line, from the repository's root: `python -m tests.chaos --runs 20`."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.chaos.run import Result, run
from tests.chaos.schedule import make_schedule
from tests.chaos.table import as_json, line, table


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how many seeds (default 20)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (default: by the clock)")
    parser.add_argument("--seed", type=int, help="replay this one only, and tell what happens")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default 1)")
    parser.add_argument("--slowness", type=float, default=1.0, help="stretch the limit of 120 s for a phase")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure as JSON")
    parser.add_argument("--keep", action="store_true", help="keep data and logs of good runs, too")
    parser.add_argument("--dry-run", action="store_true", help="only print the schedules")
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("V5_")]:
        del os.environ[name]
    os.environ["HF_HUB_OFFLINE"] = "1"
    # What the harness' own supervisor says of those that were killed.
    logging.disable(logging.WARNING)
    verbose = given.verbose or given.seed is not None
    first = given.first or int(time.time()) % 1_000_000
    seeds = [given.seed] if given.seed is not None else list(range(first, first + given.runs))
    if given.dry_run:
        print("\n".join(str(make_schedule(seed)) for seed in seeds))
        return 0

    print_now(f"seeds {seeds[0]} to {seeds[-1]}")
    results: list[Result] = []

    def one(seed: int) -> None:
        lines: list[str] = []
        # Runs at once tell their story as a whole.
        say = print_now if given.jobs == 1 else lines.append
        result = run(seed, keep=given.keep, slowness=given.slowness, say=say if verbose else lambda _: None)
        print_now("\n".join([*lines, line(result)]))
        results.append(result)

    pool = ThreadPoolExecutor(given.jobs)
    try:
        for done in [pool.submit(one, seed) for seed in seeds]:
            done.result()
    except KeyboardInterrupt:
        print_now("runs that have begun end, others do not begin")
    finally:
        pool.shutdown(cancel_futures=True)
    print_now("\n" + table(results))
    if given.json:
        given.json.write_text(json.dumps(as_json(results), indent=1, default=str) + "\n")
    return 0 if len(results) == len(seeds) and all(result.ok for result in results) else 1


def print_now(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
