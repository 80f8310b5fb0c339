"""The merge: derived vectors by their formulas, rejected chunks set aside, foreign parts refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from registry.chunks import Chunk
from registry.codecs import Dense, Multi, Part, Sparse
from registry.errors import CodecError, PlanError
from registry.plan import Ensemble, make_plan
from worker.merge import fuse, merge, named_vectors, normalise, prefix

CODE, BGE = "jina-code-embeddings-1.5b", "bge-m3"
RNG = np.random.default_rng(11)
CHUNKS = [Chunk(str(i), f"text {i}") for i in range(3)]


def dense(width: int) -> np.ndarray:
    return normalise(RNG.standard_normal((3, width)).astype(np.float32))


def part(rejected: dict[int, str] | None = None, **vectors: object) -> Part:
    return Part(vectors, np.array([9, 300, 5]), np.array([9, 256, 5]), rejected or {})  # type: ignore[arg-type]


def test_a_prefix_is_normalised_again() -> None:
    full = dense(1536)
    cut = prefix(full, 256)
    assert cut.shape == (3, 256)
    assert np.allclose(np.linalg.norm(cut, axis=1), 1, atol=1e-6)
    assert np.allclose(cut[1] * np.linalg.norm(full[1, :256]), full[1, :256], atol=1e-6)


@pytest.mark.parametrize("method", ["weighted_average", "max_pooling", "concat"])
def test_fusing_by_the_book(method: str) -> None:
    a, b = dense(8), dense(6)
    fused = fuse([a, b * 5], method, [3.0, 1.0])
    row_a, row_b = a[0][:6], b[0]
    expected = {
        "weighted_average": 0.75 * row_a + 0.25 * row_b,
        "max_pooling": np.maximum(row_a, row_b),
        "concat": np.concatenate([row_a, row_b]),
    }[method]
    assert np.allclose(fused[0], expected / np.linalg.norm(expected), atol=1e-6)
    assert np.allclose(np.linalg.norm(fused, axis=1), 1, atol=1e-6)


def test_every_vector_of_a_large_plan_comes_out() -> None:
    plan = make_plan(
        primary=CODE, companions=[BGE], outputs={BGE: ["dense", "sparse", "multi"]},
        matryoshka={CODE: [128]}, ensemble=Ensemble(), fake=True,
    )  # fmt: skip
    code, bge = dense(1536), dense(1024)
    sparse = Sparse(np.array([4, 7, 1]), np.array([0.5, 1.5, 2.0], np.float32), np.array([0, 2, 2, 3]))
    multi = Multi(RNG.standard_normal((6, 1024)).astype(np.float32), np.array([0, 1, 4, 6]))
    parts = {CODE: part(dense=Dense(code)), BGE: part(dense=Dense(bge), sparse=sparse, multi=multi)}
    names = [vector.name for vector in plan.vectors()]
    merged = merge(plan, names, CHUNKS, parts)
    row = merged.vectors["2"]
    assert set(row) == set(names)
    assert np.array_equal(row[CODE], code[2])
    assert row["bge-m3-sparse"].indices.tolist() == [1]
    assert row["bge-m3-colbert"].shape == (2, 1024)
    assert np.allclose(row["ensemble"], fuse([code, bge], "weighted_average", [1, 1])[2])
    assert merged.tokens["1"] == {CODE: (300, 256), BGE: (300, 256)}
    # A query is fused exactly as a chunk is.
    query = named_vectors(plan, ["ensemble", CODE], parts, 2)
    assert np.array_equal(query["ensemble"], row["ensemble"])
    with pytest.raises(PlanError, match="no vector 'other'"):
        named_vectors(plan, ["other"], parts, 0)


def test_a_chunk_one_model_refused_is_set_aside_and_its_neighbours_go_through() -> None:
    plan = make_plan(primary=CODE, companions=[BGE], fake=True)
    parts = {CODE: part({1: "bad"}, dense=Dense(dense(1536))), BGE: part(dense=Dense(dense(1024)))}
    merged = merge(plan, [CODE, BGE], CHUNKS, parts)
    assert [chunk.id for chunk in merged.chunks] == ["0", "2"]
    assert merged.rejected == [(CHUNKS[1], f"{CODE}: bad")]
    assert "1" not in merged.vectors


def test_parts_that_do_not_belong_are_refused_never_left_out() -> None:
    plan = make_plan(primary=CODE, companions=[BGE], ensemble=Ensemble(), fake=True)
    code = part(dense=Dense(dense(1536)))
    with pytest.raises(CodecError, match="bge-m3 has no dense"):
        merge(plan, [CODE, "ensemble"], CHUNKS, {CODE: code})
    with pytest.raises(CodecError, match="for 3 texts, the batch has 2"):
        merge(plan, [CODE], CHUNKS[:2], {CODE: code})


def test_multi_vectors_that_lost_rows_are_counted_once() -> None:
    plan = make_plan(primary=BGE, outputs={BGE: ["multi"]}, fake=True)
    multi = Multi(np.ones((3, 1024), np.float32), np.array([0, 1, 2, 3]))
    # The second text was cut at the model's limit already, and counts as that.
    notes = {"rows_cut": {"0": 5, "1": 7}}
    parts = {BGE: replace(part(multi=multi), notes=notes)}
    assert merge(plan, ["bge-m3-colbert"], CHUNKS, parts).shortened == 1
    assert merge(plan, ["bge-m3-colbert"], CHUNKS, {BGE: part(multi=multi)}).shortened == 0


def test_an_ensemble_is_never_of_fewer_members_for_a_query_no_less_than_for_a_chunk() -> None:
    plan = make_plan(primary=CODE, companions=(BGE,), ensemble=Ensemble(members=(CODE, BGE)))
    parts = {CODE: part(dense=Dense(dense(1536))), BGE: part(dense=Dense(dense(1024)))}
    whole = merge(plan, ["ensemble"], CHUNKS, parts)
    for row, chunk in enumerate(CHUNKS):
        query = named_vectors(plan, ["ensemble"], parts, row)["ensemble"]
        np.testing.assert_array_equal(query, whole.vectors[chunk.id]["ensemble"])
    for model in (CODE, BGE):
        alone = {model: parts[model]}
        with pytest.raises(CodecError, match="has no dense vectors"):
            merge(plan, ["ensemble"], CHUNKS, alone)
        with pytest.raises(CodecError, match="has no dense vectors"):
            named_vectors(plan, ["ensemble"], alone, 0)
