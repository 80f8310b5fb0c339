"""What a producer may ask of the store about whole collections: pages of points, and deletion."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry import spaces
from registry.chunks import Chunk, chunk_id
from registry.errors import SpaceMismatch, UsageError
from registry.frames import unpack_json
from registry.plan import Ensemble, Plan
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


def test_a_query_of_another_space_than_what_stands_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer program makes other vectors of the same names: the collection remembers what it was filled
    with, whatever the plan says now."""
    plan = Plan(primary=MODEL, fake=True)
    store.open("f", plan)
    monkeypatch.setattr(spaces, "FAKE_REVISION", "fake-2")
    now = plan.vector(MODEL).fingerprint
    asked = {"collection": "f", "vectors": {MODEL: now}, "parts": {}, "limit": 1}
    with pytest.raises(SpaceMismatch, match=f"asked with a query of {now}.*--migrate"):
        ask(store, "search", **asked)


def test_a_migration_forgets_what_was_noted_of_the_former_space_alone(store: Store) -> None:
    fused = Ensemble(members=(MODEL, "qdrant-minilm-onnx"))
    plan = Plan(primary=MODEL, companions=("qdrant-minilm-onnx",), ensemble=fused)
    store.open("m", plan)
    member = plan.space(MODEL, "dense").fingerprint
    noted = {f"golden/{member}": "AA==", "numerics/ensemble/1": {}, f"numerics/{MODEL}/1": {}}
    for key, value in noted.items():
        store.note("m", key, value)
    heavier = plan.model_copy(update={"ensemble": fused.model_copy(update={"weights": (1.0, 3.0)})})
    asked = {"collection": "m", "plan": heavier.model_dump(mode="json")}
    (change,) = ask(store, "changes", **asked)["changes"]
    assert change["name"] == "ensemble"
    assert ask(store, "migrate", **asked, started=5) == {"done": True}
    # The members' space stays, and so do their goldens.
    assert store.notes("m").keys() == noted.keys() - {"numerics/ensemble/1"}
    assert ask(store, "changes", **asked) == {"points": 0, "changes": []}
    assert ask(store, "lacking", collection="m", names=["ensemble"]) == {"ensemble": 0}
    assert Plan(**ask(store, "plan", collection="m")["plan"]).fingerprint == heavier.fingerprint
