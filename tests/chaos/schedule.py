"""A schedule of faults, made from a seed alone: the same seed gives the same faults in the same order."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal

#: `local`: one machine's fleet with the embedded store and a private Redis. `servers`: Redis and Qdrant as
#: servers, each behind a proxy, with a second aggregator.
Setup = Literal["local", "servers"]
#: What is done with the corpus, one after another, each until it is through.
#: `submit` it; `change` a part of it, submit again with `--prune`.
Phase = Literal["submit", "change"]

#: The plans that runs alternate between: as options of `v5 up` and `v5 submit`.
PLANS: dict[str, tuple[str, ...]] = {
    "pair": (
        "--primary", "qdrant-minilm-onnx", "--companion", "all-miniLM-l6", "--ensemble", "weighted_average",
    ),
    "outputs": (
        "--primary", "jina-code-embeddings-1.5b", "--matryoshka", "jina-code-embeddings-1.5b=256",
        "--companion", "bge-m3", "--output", "bge-m3=dense,sparse,multi",
    ),
}  # fmt: skip
#: Embed workers by number; the last is a second one of the first model.
WORKERS = ("worker 0", "worker 1", "worker 2")
#: Faults after which text or a job may be lost, so that chunks are staged more than once.
LOSING = frozenset({"wipe redis", "delete text", "corrupt text", "corrupt on the way", "cancel"})
FAULTS_PER_PHASE = (3, 5)
_ONCE = ("kill supervisor", "wipe redis", "cancel", "disk full", "late")


@dataclass(frozen=True)
class Injection:
    """One fault to come."""

    fault: str
    arguments: dict[str, Any]
    #: When: the share of the phase's chunks that are done.
    at: float

    def __str__(self) -> str:
        said = ", ".join(f"{key}={value}" for key, value in self.arguments.items())
        return f"at {self.at:.2f}: {self.fault}({said})"


@dataclass(frozen=True)
class Schedule:
    """All that is decided about a run before it starts."""

    seed: int
    setup: Setup
    plan: str
    phases: tuple[Phase, ...]
    injections: tuple[tuple[Injection, ...], ...]
    #: How the fleet ends before the store is read: stopped in order, or killed.
    ending: Literal["down", "kill"]
    #: The data directory is on a small disk of its own, which may be filled.
    small_disk: bool

    @property
    def loses(self) -> bool:
        """Whether chunks may have to be staged more than once."""
        return any(one.fault in LOSING for phase in self.injections for one in phase)

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {self.setup}, plan {self.plan}, ends by {self.ending}"]
        for phase, injections in zip(self.phases, self.injections, strict=True):
            lines.append(f"  {phase}")
            lines += [f"    {one}" for one in injections]
        return "\n".join(lines)


@dataclass
class _Draw:
    """Draws the arguments of faults."""

    rng: random.Random
    setup: Setup
    small_disk: bool
    #: Each of them once in a run: they cost most of its time.
    left: set[str] = field(default_factory=lambda: {*_ONCE})

    def injections(self, *, last: bool) -> tuple[Injection, ...]:
        """Faults of a phase, by their moments; `last`: no other phase follows."""
        count = self.rng.randint(*FAULTS_PER_PHASE)
        drawn = [self._injection(round(self.rng.uniform(0.0, 0.9), 2), last) for _ in range(count)]
        return tuple(sorted(drawn, key=lambda one: one.at))

    def _injection(self, at: float, last: bool) -> Injection:
        weights = {name: weight for name, weight in self._weights(last).items() if weight}
        name = self.rng.choices(list(weights), list(weights.values()))[0]
        self.left.discard(name)
        # What is late must meet what the next phase writes.
        return Injection(name, self._arguments(name), 0.9 if name == "late" else at)

    def _weights(self, last: bool) -> dict[str, int]:
        servers = self.setup == "servers"
        return {
            "kill": 8,
            "stop": 6,
            "kill producer": 3,
            "kill supervisor": 2 if "kill supervisor" in self.left else 0,
            "restart redis": 3,
            "wipe redis": 2 if "wipe redis" in self.left else 0,
            "cancel": 2 if "cancel" in self.left else 0,
            "delete messages": 3,
            "repeat messages": 3,
            "flush broker": 2,
            "delete text": 2,
            "delete vectors": 3,
            "corrupt text": 2,
            "corrupt vectors": 3,
            "disk full": 12 if self.small_disk and "disk full" in self.left else 0,
            "delay": 3 if servers else 0,
            "cut": 6 if servers else 0,
            "refuse": 3 if servers else 0,
            "black hole": 3 if servers else 0,
            "late": 8 if servers and not last and "late" in self.left else 0,
            "corrupt on the way": 3 if servers else 0,
            "corrupt greeting": 2 if servers else 0,
            "restart qdrant": 3 if servers else 0,
            "qdrant full": 2 if servers else 0,
            "qdrant read-only": 2 if servers else 0,
        }

    def _arguments(self, name: str) -> dict[str, Any]:
        rng, servers = self.rng, self.setup == "servers"
        aggregators = ("aggregator", "aggregator-2") if servers else ("aggregator",)
        match name:
            case "kill":
                return {"target": rng.choice((*WORKERS, *aggregators))}
            case "stop":
                targets = (*WORKERS, *aggregators, "redis", "producer", *(["qdrant"] if servers else []))
                return {"target": rng.choice(targets), "seconds": round(rng.uniform(0.5, 6.0), 1)}
            case "delay":
                seconds = round(rng.uniform(0.02, 0.3), 2)
                return {"link": self._link(), "seconds": seconds, "lasts": round(rng.uniform(1, 4), 1)}
            case "cut":
                after = rng.choice((0, 0, rng.randint(1, 200), rng.randint(200, 60_000)))
                return {"link": self._link(), "after": after, "direction": rng.choice(("up", "down"))}
            case "refuse" | "black hole":
                return {"link": self._link(), "lasts": round(rng.uniform(0.5, 4), 1)}
            case "corrupt on the way":
                # In the header of a blob, or in the first bytes of what even the shortest holds.
                return {"n": rng.randint(1, 36), "bit": rng.randrange(8),
                        "direction": rng.choice(("up", "down"))}  # fmt: skip
            case "delete text" | "corrupt text":
                return {"pick": rng.random(), "at": rng.random()}
            case "delete vectors" | "corrupt vectors":
                return {"pick": rng.random(), "at": rng.random(), "most": rng.randint(1, 4)}
            case "repeat messages":
                return {"times": rng.randint(1, 3)}
            case "late":
                return {"lasts": round(rng.uniform(8, 18), 1)}
            case "disk full":
                return {"leave": rng.choice((0, 64, 200)), "lasts": round(rng.uniform(1, 4), 1)}
            case "qdrant full" | "qdrant read-only":
                return {"lasts": round(rng.uniform(0.5, 3), 1)}
        return {}

    def _link(self) -> str:
        return self.rng.choices(("redis", "grpc", "grpc-2", "rest"), (5, 2, 2, 1))[0]


def make_schedule(seed: int) -> Schedule:
    """The schedule of a seed. Odd seeds run against servers, even ones all on one machine."""
    rng = random.Random(seed)
    setup: Setup = "servers" if seed % 2 else "local"
    small_disk = setup == "local" and rng.random() < 0.25
    draw = _Draw(rng, setup, small_disk)
    phases: tuple[Phase, ...] = ("submit", "change") if rng.random() < 0.5 else ("submit",)
    return Schedule(
        seed,
        setup,
        rng.choice(list(PLANS)),
        phases,
        tuple(draw.injections(last=phase == phases[-1]) for phase in phases),
        rng.choice(("down", "kill")),
        small_disk,
    )
