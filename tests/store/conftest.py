"""A store under test, plans, and points with seeded vectors."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.chunks import Chunk, chunk_id
from registry.plan import Plan
from registry.settings import Settings, load_settings
from store.base import Point, SparseVector, Store, Vector
from store.edge import EdgeStore
from store.points import build_point
from store.server import ServerStore
from tests.qdrant_standin import Standin

MakePoint = Callable[..., Point]


#: A real server to run the suite against. It must be empty: collections of these names are removed.
SERVER = os.environ.get("V5_TEST_QDRANT_URL", "")
SERVERS = ["standin-grpc", "standin-rest", *(["server-grpc", "server-rest"] if SERVER else [])]
OF_TESTS = ("c", "d", "new", "right", "wrong", "theirs")


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Standin]:
    """A stand-in for a Qdrant server: its engine and its protocols are real."""
    with Standin(tmp_path / "standin") as server:
        yield server


def server_settings(standin: Standin, **fields: Any) -> Settings:
    """Settings that point at the stand-in, with short patience."""
    fixed = {"qdrant_url": standin.url, "qdrant_grpc_port": standin.grpc_port, "qdrant_seconds": 20.0}
    return load_settings(**{**fixed, **fields})


@pytest.fixture(params=["edge", *SERVERS])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Every implementation in turn."""
    if request.param == "edge":
        opened: Store = EdgeStore(tmp_path / "store")
        yield opened
        opened.close()
    else:
        yield from server_store(request, request.param)


def server_store(request: pytest.FixtureRequest, which: str) -> Iterator[ServerStore]:
    """The server store on the stand-in, or on V5_TEST_QDRANT_URL's server, by gRPC or REST."""
    kind, _, protocol = which.partition("-")
    if kind == "standin":
        settings = server_settings(request.getfixturevalue("standin"), qdrant_grpc=protocol == "grpc")
    else:
        settings = real_server_settings(qdrant_grpc=protocol == "grpc")
    opened = ServerStore(settings)
    if kind == "server":
        _empty(opened)
    yield opened
    if kind == "server":
        _empty(opened)
    opened.close()


def real_server_settings(**fields: Any) -> Settings:
    """Settings that point at V5_TEST_QDRANT_URL, with V5_TEST_QDRANT_API_KEY."""
    key = os.environ.get("V5_TEST_QDRANT_API_KEY", "")
    return load_settings(qdrant_url=SERVER, qdrant_api_key=key, **fields)


def _empty(server: ServerStore) -> None:
    client = server._connection.client
    for name in {*server.collections(), *OF_TESTS}:
        if client.collection_exists(name):
            client.delete_collection(name)


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
