"""How vectors came about is noted with the collection, once for each way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.codecs import Part
from registry.plan import Ensemble, Plan
from store.edge import EdgeStore
from worker.numerics_record import NumericsRecords, recorded

ONNX, PLAIN = "qdrant-minilm-onnx", "all-miniLM-l6"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EdgeStore]:
    opened = EdgeStore(tmp_path / "store")
    yield opened
    opened.close()


def part(**notes: Any) -> Part:
    made = {"backend": "onnxruntime", "device": "cpu", "dtype": "float32", "versions": {"a": "1"}, **notes}
    return Part({}, np.zeros(0, np.int32), np.zeros(0, np.int32), {}, made)


def test_each_way_is_noted_once_by_vector(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(primary=ONNX, companions=(PLAIN,), ensemble=Ensemble(members=(ONNX, PLAIN)))
    store.open("c", plan)
    written: list[str] = []
    note = store.note
    monkeypatch.setattr(store, "note", lambda c, key, value: (written.append(key), note(c, key, value)))
    records = NumericsRecords(store)
    parts = {ONNX: part(), PLAIN: part(backend="sentence-transformers")}
    for _ in range(3):
        records.settle("c", plan, [v.name for v in plan.vectors()], parts)
    found = recorded(store.notes("c"))
    assert found[ONNX] == [
        {
            "model": ONNX,
            "backend": "onnxruntime",
            "device": "cpu",
            "dtype": "float32",
            "tf32": False,
            "quantization": "",
        }
    ]
    assert [fact["model"] for fact in found[PLAIN]] == [PLAIN]
    assert {fact["model"] for fact in found["ensemble"]} == {ONNX, PLAIN}
    # Another aggregator, and another device of the same kind, are nothing new.
    NumericsRecords(store).settle("c", plan, [ONNX], {ONNX: part()})
    records.settle("c", plan, [ONNX], {ONNX: part(versions={"a": "2"})})
    assert len(written) == 4
    records.settle("c", plan, [ONNX], {ONNX: part(device="cuda:0", dtype="float16")})
    records.settle("c", plan, [ONNX], {ONNX: part(device="cuda:1", dtype="float16")})
    records.settle("c", plan, [ONNX], {ONNX: part(device="cuda:1", tf32=True)})
    facts = recorded(store.notes("c"))[ONNX]
    assert sorted((f["device"], f["dtype"], f["tf32"]) for f in facts) == [
        ("cpu", "float32", False),
        ("cuda", "float16", False),
        ("cuda", "float32", True),
    ]
    assert len(written) == 6
    # What a padded part says of its attention is what was noted before there was any other.
    records.settle("c", plan, [ONNX], {ONNX: part(attention="")})
    assert len(written) == 6
    records.settle("c", plan, [ONNX], {ONNX: part(attention="varlen")})
    facts = recorded(store.notes("c"))[ONNX]
    assert [fact["attention"] for fact in facts if "attention" in fact] == ["varlen"]


def test_what_is_no_numerics_stays_out_and_nothing_is_noted_of_a_payload(store: EdgeStore) -> None:
    plan = Plan(primary=ONNX)
    store.open("c", plan)
    store.note("c", "golden/x", "…")
    NumericsRecords(store).settle("c", plan, (), {})
    assert recorded(store.notes("c")) == {}


def test_a_collection_made_anew_is_noted_anew(store: EdgeStore) -> None:
    plan = Plan(primary=ONNX)
    store.open("c", plan)
    store.open("d", plan)
    records = NumericsRecords(store)
    records.settle("c", plan, [ONNX], {ONNX: part()})
    records.settle("d", plan, [ONNX], {ONNX: part()})
    assert recorded(store.notes("c")) == recorded(store.notes("d"))
    records.forget("c")
    assert records._noted.keys() == {"d"}
