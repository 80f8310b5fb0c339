"""Vectors of another variant, or of another treatment of too long texts, do not get into a collection."""

from __future__ import annotations

import pytest

from registry.errors import SpaceMismatch
from registry.plan import Plan
from store.edge import EdgeStore

ONNX, PLAIN = "qdrant-minilm-onnx", "all-miniLM-l6"


@pytest.fixture
def edge(tmp_path):
    store = EdgeStore(tmp_path / "store")
    yield store
    store.close()


def test_int8_and_float_are_refused_to_mix_with_both_sides_named(edge):
    edge.open("c", Plan(primary=ONNX))
    with pytest.raises(SpaceMismatch, match=r"weights: '53aa[0-9a-f]+' ≠ '53aa[0-9a-f]+\+int8-dynamic'"):
        edge.open("c", Plan(primary=ONNX, variants={ONNX: "int8"}))
    edge.open("q", Plan(primary=ONNX, variants={ONNX: "int8"}))
    with pytest.raises(SpaceMismatch, match="int8-dynamic"):
        edge.open("q", Plan(primary=ONNX))


@pytest.mark.parametrize("treatment", ["fail", "split-and-pool"])
def test_another_treatment_of_long_texts_is_refused(edge, treatment):
    edge.open("c", Plan(primary=ONNX))
    with pytest.raises(SpaceMismatch, match=r"pooling: 'mean' ≠ 'mean\+"):
        edge.open("c", Plan(primary=ONNX, truncate=treatment))
    # Also where no name is the same: one plan could not say both.
    with pytest.raises(SpaceMismatch, match=f"'cut' and was offered '{treatment}'"):
        edge.open("c", Plan(primary=PLAIN, truncate=treatment))


def test_a_variant_stays_in_the_standing_plan_when_a_model_joins(edge):
    plan = Plan(primary=ONNX, variants={ONNX: "int8"}, truncate="split-and-pool")
    edge.open("c", plan)
    joined = edge.open("c", Plan(primary=PLAIN, truncate="split-and-pool")).plan
    assert joined.models == (ONNX, PLAIN)
    assert (joined.variants, joined.truncate) == ({ONNX: "int8"}, "split-and-pool")
    assert edge.open("c", plan).plan == joined
