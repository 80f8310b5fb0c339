"""What a producer may ask of the store about whole collections: pages of points, and deletion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.chunks import Chunk, chunk_id
from registry.codecs import unpack_json
from registry.errors import UsageError
from registry.plan import Plan
from store.base import Store
from store.edge import EdgeStore
from store.points import build_point
from worker.store_requests import MOST_IDS, OPERATIONS

MODEL = "all-miniLM-l6"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = EdgeStore(tmp_path / "store")
    opened.open("c", Plan(primary=MODEL))
    vector = np.eye(384, dtype=np.float32)
    chunks = [Chunk(chunk_id(str(i)), f"text {i}", {}, f"src/{i % 2}.py") for i in range(8)]
    opened.upsert("c", [build_point(c, {MODEL: vector[i]}, "j", 5) for i, c in enumerate(chunks)], 5)
    yield opened
    opened.close()


def ask(store: Store, operation: str, **asked: Any) -> Any:
    return unpack_json(OPERATIONS[operation](store, {"collection": "c", **asked}))


def test_pages_and_deletion_go_hand_in_hand(store: Store) -> None:
    first = ask(store, "scroll", after="", limit=5)
    assert len(first["points"]) == 5
    gone = [point for point in first["points"] if point[1] == "src/0.py"]
    assert ask(store, "delete", points=gone, started=5) == {"deleted": len(gone)}
    rest = ask(store, "scroll", after=first["next"], limit=5)
    assert (len(rest["points"]), rest["next"]) == (3, "")
    assert not {point[0] for point in first["points"]} & {point[0] for point in rest["points"]}
    assert ask(store, "delete", points=rest["points"], started=4) == {"deleted": 0}
    assert store.describe("c").points == 8 - len(gone)


def test_requests_without_measure_are_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="at most"):
        ask(store, "scroll", after="", limit=MOST_IDS + 1)
    with pytest.raises(UsageError, match="at most"):
        ask(store, "delete", points=[[chunk_id("x"), "a"]] * (MOST_IDS + 1), started=5)
    with pytest.raises(UsageError, match="UUID"):
        ask(store, "scroll", after="nonsense", limit=5)
