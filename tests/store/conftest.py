"""A store under test, plans, and points with seeded vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.chunks import Chunk, chunk_id
from registry.plan import Plan
from store.base import Point, SparseVector, Store, Vector
from store.edge import EdgeStore
from store.points import build_point

MakePoint = Callable[..., Point]


@pytest.fixture(params=["edge"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Every implementation in turn; a server is one more parameter."""
    opened = {"edge": EdgeStore}[request.param](tmp_path / "store")
    yield opened
    opened.close()


@pytest.fixture
def narrow() -> Plan:
    """One dense vector."""
    return Plan(primary="all-miniLM-l6")


@pytest.fixture
def wide() -> Plan:
    """The same, and a dense, a sparse and a multi-vector of bge-m3."""
    return Plan(
        primary="all-miniLM-l6", companions=("bge-m3",), outputs={"bge-m3": ("dense", "sparse", "multi")}
    )


def unit(values: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def vectors_of(plan: Plan, seed: int) -> dict[str, Vector]:
    rng = np.random.default_rng(seed)
    made: dict[str, Vector] = {}
    for vector in plan.vectors():
        if vector.kind == "sparse":
            indices = np.sort(rng.choice(1000, 5, replace=False)).astype(np.int64)
            made[vector.name] = SparseVector(indices, rng.random(5, dtype=np.float32))
        elif vector.kind == "multi":
            made[vector.name] = unit(rng.standard_normal((3, vector.dimension)))
        else:
            made[vector.name] = unit(rng.standard_normal(vector.dimension))
    return made


@pytest.fixture
def make_point() -> MakePoint:
    """A point of a plan: same `n`, same id; same `text`, same content hash; other `seed`, other vectors."""

    def make(
        plan: Plan,
        n: int,
        *,
        started: int = 1000,
        text: str = "",
        seed: int | None = None,
        only: Sequence[str] | None = None,
        **payload: Any,
    ) -> Point:
        vectors = vectors_of(plan, n if seed is None else seed)
        if only is not None:
            vectors = {name: vectors[name] for name in only}
        chunk = Chunk(chunk_id(str(n)), text or f"text {n}", {"path": f"src/{n}.py", **payload})
        return build_point(chunk, vectors, "job-1", started)

    return make
