"""Vectors that travel in float16: what it costs them, what is kept from it, and where it is remembered."""

from __future__ import annotations

import inspect
import statistics
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ledger.ledger import Ledger
from registry.chunks import Chunk, chunk_id
from registry.codecs import Dense, Multi, Part, Sparse, Vectors, pack_part, unpack_part
from registry.frames import pack_chunks
from registry.models import OutputKind
from registry.plan import Ensemble, Plan, make_plan
from registry.settings import Settings, load_settings
from store.base import SparseVector
from worker.aggregator import Aggregator
from worker.embedder import EmbedWorker
from worker.encoders.encode import encode
from worker.half_precision import halved, widened
from worker.numerics_record import recorded

BGE, MINI = "bge-m3", "qdrant-minilm-onnx"
#: Real code.
FUNCTIONS = inspect.getsource(statistics).split("\ndef ")[1:]
KINDS: tuple[OutputKind, ...] = ("dense", "sparse", "multi")
#: What float16 may cost: rounding to 11 bits moves a value by 2^-11 of it at most, and turns a vector by no
#: more than that (its cosine is over 1 - 1.2e-7); a little more once its length is 1 again.
COSINE, VALUE = 1 - 1e-7, 1.1 * 2**-11


def there_and_back(part: Part) -> dict[OutputKind, Vectors]:
    """As the aggregator has them."""
    arrived = unpack_part(pack_part(halved(part)))
    return {kind: widened(each, normalised=kind != "sparse") for kind, each in arrived.vectors.items()}


def errors(sent: Any, found: Any) -> tuple[float, float, float]:
    """Worst and mean cosine over the rows, and the largest difference of a value."""
    a, b = np.asarray(sent, np.float64), np.asarray(found, np.float64)
    cosines = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(cosines.min()), float(cosines.mean()), float(np.abs(a - b).max())


def sparse_rows(sparse: Any, width: int) -> np.ndarray:
    """As a matrix; only rows that have a weight."""
    rows = np.zeros((len(sparse), width))
    for i in range(len(sparse)):
        indices, values = sparse.row(i)
        rows[i, indices] = values
    return rows[np.abs(rows).sum(1) > 0]


def check(what: str, sent: Any, found: Any) -> None:
    worst, mean, value = errors(sent, found)
    print(f"{what}: 1 - cosine {1 - worst:.1e} at worst, {1 - mean:.1e} on average; value {value:.1e}")
    assert worst >= COSINE
    assert value <= VALUE * np.abs(sent).max()


def test_the_real_minilm_loses_less_than_its_batches_do(onnx_encoder: Any) -> None:
    part = encode(onnx_encoder, FUNCTIONS, "document", ["dense"], device_lock=threading.Lock())
    found = there_and_back(part)["dense"].values
    check("MiniLM dense", part.vectors["dense"].values, found)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6
    assert len(pack_part(halved(part))) < 0.55 * len(pack_part(part))


@pytest.mark.weights
def test_every_output_of_bge_m3_keeps_its_vectors(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.checkpoints.bge_m3 import build
    from worker.encoders.factory import load_encoder

    settings = load_settings(weights={BGE: build(tmp_path / BGE)}, fake_weights=True, device="cpu")
    encoder = load_encoder(BGE, "", settings, KINDS)
    part = encode(encoder, FUNCTIONS[:6], "document", KINDS, device_lock=threading.Lock())
    found = there_and_back(part)
    assert "kept_float32" not in halved(part).notes
    for kind in ("dense", "multi"):
        check(f"bge-m3 {kind}", part.vectors[kind].values, found[kind].values)
        assert np.abs(np.linalg.norm(found[kind].values, axis=1) - 1).max() < 1e-6
    width = int(part.vectors["sparse"].indices.max()) + 1
    check("bge-m3 sparse", sparse_rows(part.vectors["sparse"], width), sparse_rows(found["sparse"], width))


def sparse(*weights: float) -> Part:
    n = len(weights)
    counts = np.ones(1, np.int32)
    vectors = Sparse(np.arange(n, dtype=np.int64), np.array(weights, np.float32), np.array([0, n]))
    return Part({"sparse": vectors, "dense": Dense(np.eye(1, 8, dtype=np.float32))}, counts, counts)


@pytest.mark.parametrize("weight", [70_000.0, 1e-9, -1e-8])
def test_weights_that_float16_cannot_hold_stay_as_they_are_and_it_is_noted(weight: float) -> None:
    part = sparse(0.5, weight)
    sent = halved(part)
    assert sent.notes["kept_float32"] == ["sparse"]
    assert sent.vectors["dense"].values.dtype == np.float16
    found = there_and_back(part)["sparse"].values
    assert found.dtype == np.float32
    assert found.tolist() == np.array([0.5, weight], np.float32).tolist()


def test_small_weights_and_a_weight_of_zero_travel() -> None:
    part = sparse(0.5, 3e-5, 6e-8, 0.0, 65_504.0)
    assert "kept_float32" not in halved(part).notes
    found = there_and_back(part)["sparse"].values
    assert np.abs(found - part.vectors["sparse"].values).max() < 3e-8
    assert (found == 0).tolist() == [False, False, False, True, False]


def test_rows_without_a_vector_stay_empty_and_float32_is_left_alone() -> None:
    values = np.array([[0, 0], [0.6, 0.8]], np.float32)
    counts = np.ones(2, np.int32)
    part = Part(
        {"dense": Dense(values), "multi": Multi(values[1:], np.array([0, 0, 1]))}, counts, counts, {0: "bad"}
    )
    found = there_and_back(part)
    np.testing.assert_allclose(found["dense"].values, values, atol=3e-4)
    assert len(found["multi"].row(0)) == 0
    unscaled = Dense(values * 3)
    assert widened(unscaled, normalised=True) is unscaled


# Through the fleet's own steps.


def stored(
    plan: Plan, collection: str, texts: Sequence[str], settings: Settings, ledger: Ledger, one: Aggregator
) -> tuple[list[dict[str, Any]], int]:
    """The texts' named vectors in the store, and the bytes of the parts in Redis."""
    job, _ = ledger.jobs.open(collection, plan, ["src"])
    chunks = [Chunk(chunk_id(str(i)), text) for i, text in enumerate(texts)]
    names = [vector.name for vector in plan.vectors()]
    ledger.steps.stage(job.id, plan, 0, "upsert", names, len(chunks), pack_chunks(chunks), 10, 1 << 30)
    size = 0
    for model in plan.models:
        worker = EmbedWorker(settings, model)
        worker.prepare()
        assert worker.edge.step(f"{job.id}.0", f"embed.{model}", worker._work) == "embedded"
        worker.ledger.close()
    for key in ledger.redis.keys(f"v5:blob:*{job.id}*"):
        size += ledger.redis.strlen(key)
    assert one.edge.step(f"{job.id}.0", "aggregate", one._work) == "written"
    assert one.store is not None
    return [point.vectors for point in one.store.get(collection, [c.id for c in chunks], True)], size


def test_a_plan_with_it_stores_what_one_without_stores_and_the_collection_remembers(
    settings: Settings, ledger: Ledger
) -> None:
    fields: dict[str, Any] = {
        "primary": BGE,
        "companions": (MINI,),
        "outputs": {BGE: KINDS},
        "ensemble": Ensemble(members=(BGE, MINI)),
        "fake": True,
    }
    whole, half = make_plan(**fields), make_plan(**fields, transport="float16")
    texts = [f"text {i} " + "word " * i for i in range(20)]
    one = Aggregator(settings)
    one.prepare()
    one.stopping.set()
    try:
        wanted, plain = stored(whole, "whole", texts, settings, ledger, one)
        found, halves = stored(half, "half", texts, settings, ledger, one)
        assert halves < 0.6 * plain
        for name in whole.vectors():
            for mine, theirs in zip(found, wanted, strict=True):
                a, b = mine[name.name], theirs[name.name]
                if isinstance(a, SparseVector):
                    assert isinstance(b, SparseVector)
                    assert a.indices.tolist() == b.indices.tolist()
                    a, b = a.values, b.values
                np.testing.assert_allclose(a, b, atol=6e-4)
                assert (np.asarray(a) != np.asarray(b)).any() or name.kind == "multi"
        assert one.store is not None
        facts = recorded(one.store.notes("half"))
        assert facts.keys() == {vector.name for vector in half.vectors()}
        assert {fact["transport"] for each in facts.values() for fact in each} == {"float16"}
        assert not any(
            "transport" in fact for each in recorded(one.store.notes("whole")).values() for fact in each
        )
        # The same space: either plan may go on with either collection.
        assert one.store.open("whole", half).points == one.store.open("half", whole).points == 20
    finally:
        one.release()
        one.ledger.close()
