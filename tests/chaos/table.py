"""The figures of many runs, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from tests.chaos.run import Result


def figures(results: Sequence[Result]) -> dict[str, Any]:
    """The sums of some runs."""
    faults: Counter[str] = sum((Counter(result.faults) for result in results), Counter())
    attempts, needed = sum(r.attempts for r in results), sum(r.needed for r in results)
    return {
        "runs": len(results),
        "failed": [result.seed for result in results if not result.ok],
        "faults": dict(sorted(faults.items())),
        "chunks": sum(result.chunks for result in results),
        "lost": sum(len(result.findings.lost) for result in results),
        "wrong": sum(len(result.findings.wrong) for result in results),
        "duplicated": sum(len(result.findings.extra) for result in results),
        "counters": sum(len(result.findings.counters) for result in results),
        "keys": sum(len(result.findings.keys) for result in results),
        "dead_letters": sum(len(result.findings.dead) for result in results),
        "orphans": sum(result.findings.orphans for result in results),
        "embed_attempts": attempts,
        "embed_needed": needed,
        "extra_work": round(attempts / needed - 1, 4) if needed else 0.0,
        "seconds": round(sum(result.seconds for result in results), 1),
        "longest": round(max((result.seconds for result in results), default=0.0), 1),
    }


def table(results: Sequence[Result]) -> str:
    """The figures as lines of text."""
    found = figures(results)
    faults = found.pop("faults")
    rows = [
        ("runs", f"{found['runs']}, {len(found['failed'])} failed"),
        ("faults injected", f"{sum(faults.values())}"),
        *((f"  {name}", str(count)) for name, count in faults.items()),
        ("chunks", str(found["chunks"])),
        ("lost", str(found["lost"])),
        ("wrong", str(found["wrong"])),
        ("duplicated or extra", str(found["duplicated"])),
        ("counters off", str(found["counters"])),
        ("keys left in Redis", f"{found['keys']} (and {found['orphans']} blobs that expire)"),
        ("dead letters off", str(found["dead_letters"])),
        (
            "extra work",
            f"{found['extra_work']:.1%} ({found['embed_attempts']} texts taken to a model, "
            f"{found['embed_needed']} needed)",
        ),
        ("time", f"{found['seconds']:.0f} s in all, the longest run {found['longest']:.0f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def as_json(results: Sequence[Result]) -> dict[str, Any]:
    """The figures and every run, for `--json`."""
    return {**figures(results), "results": [asdict(result) for result in results]}


def line(result: Result) -> str:
    """One line for a good run; all that helps for a bad one."""
    faults = sum(result.faults.values())
    if result.ok:
        return f"seed {result.seed}: ok, {result.chunks} chunks, {faults} faults, {result.seconds:.0f} s"
    said = [result.failure, *list(result.findings)[:20]]
    return "\n".join(
        [
            f"seed {result.seed}: FAILED after {result.seconds:.0f} s",
            result.schedule,
            *filter(None, said),
            f"data and logs: {result.kept}",
            f"replay: make chaos SEED={result.seed}",
        ]
    )
