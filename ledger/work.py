"""What each worker did for a job: totals in the job's own hash, moved when a batch is closed.

What needed no worker, because it is a copy, stands with the aggregator that gave it its vectors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: Quantities of a part that are added up; `cached` counts copies, which needed no forward pass.
QUANTITIES = ("chunks", "cached", "forward_seconds", "tokenise_seconds", "useful_tokens", "padded_tokens")


@dataclass(frozen=True)
class Work:
    """One worker's share of a job."""

    #: `name@host`: whoever is started in its place goes on counting.
    worker: str
    model: str
    chunks: float = 0
    cached: float = 0
    forward_seconds: float = 0
    tokenise_seconds: float = 0
    useful_tokens: float = 0
    padded_tokens: float = 0

    @property
    def padding_waste(self) -> float:
        """Share of the device's tokens that carried no text."""
        return 1 - self.useful_tokens / self.padded_tokens if self.padded_tokens else 0.0

    def summary(self, seconds: float) -> dict[str, Any]:
        """For `--json`; `seconds` is the job's wall time."""
        return {
            "worker": self.worker,
            "model": self.model,
            "device_busy": round(self.forward_seconds / seconds, 4) if seconds else 0.0,
            "padding_waste": round(self.padding_waste, 4),
            **{name: round(getattr(self, name), 3) for name in QUANTITIES},
        }


def moves(model: str, worker: str, done: Mapping[str, float]) -> dict[str, float]:
    """The job's fields that a part moves, and by how much; `worker` is the process that made it."""
    who = worker.rpartition(":")[0] or worker
    return {f"work:{name}:{model}:{who}": amount for name, amount in done.items() if amount}


def work_of(job: Mapping[str, str]) -> tuple[Work, ...]:
    """The work in a job's hash, by worker and model."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for field, amount in job.items():
        if field.startswith("work:"):
            _, name, model, worker = field.split(":", 3)
            if name in QUANTITIES:
                found.setdefault((worker, model), {})[name] = float(amount)
    return tuple(Work(worker, model, **found[worker, model]) for worker, model in sorted(found))


def since(work: Iterable[Work], before: Iterable[Work]) -> list[Work]:
    """What was done between two looks at a job, by those who did something."""
    stood = {(one.worker, one.model): one for one in before}
    left = []
    for one in work:
        then = stood.get((one.worker, one.model), Work(one.worker, one.model))
        moved = {name: getattr(one, name) - getattr(then, name) for name in QUANTITIES}
        if any(moved.values()):
            left.append(Work(one.worker, one.model, **moved))
    return left


def told(row: Mapping[str, Any]) -> str:
    """One line for people, of a summary."""
    if row["cached"]:
        return (
            f"{row['worker']}: {row['cached']:.0f} copies took the vectors of {row['model']} from the store"
        )
    parts = [
        f"device busy {row['device_busy']:.0%}",
        f"{row['chunks']:.0f} chunks",
        f"{row['padding_waste']:.1%} padding",
    ]
    return f"{row['worker']}: {', '.join(parts)}"
