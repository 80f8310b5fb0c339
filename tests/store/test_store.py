"""What every store promises, whichever engine is behind it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from registry.chunks import chunk_id
from registry.errors import SpaceMismatch, StoreRefused, UsageError
from registry.index import Index, VectorIndex
from registry.plan import Ensemble, Plan
from store.base import Point, Sourced, SparseVector, Store
from store.vectors import fault

DENSE = "all-miniLM-l6"
BGE = ("bge-m3", "bge-m3-sparse", "bge-m3-colbert")


def first(store: Store, point: Point | str) -> Any:
    return store.get("c", [point if isinstance(point, str) else point.id], with_vectors=True)[0]


def same(a: Any, b: Any, tolerance: float = 1e-6) -> bool:
    if isinstance(a, SparseVector):
        return np.array_equal(a.indices, b.indices) and np.allclose(a.values, b.values, atol=tolerance)
    return a.shape == b.shape and np.allclose(a, b, atol=tolerance)


# --- opening


def test_opening_twice_is_opening_once(store, narrow, make_point):
    assert store.open("c", narrow).points == 0
    store.upsert("c", [make_point(narrow, 1)], 1000)
    assert store.open("c", narrow) == store.describe("c")
    assert store.describe("c").points == 1
    assert store.describe("c").plan == narrow


def test_an_absent_collection_is_named_with_those_there_are(store, narrow):
    store.open("beta", narrow)
    store.open("alpha", narrow)
    assert store.collections() == ["alpha", "beta"]
    with pytest.raises(UsageError, match="no collection 'gamma'; there are: alpha, beta"):
        store.describe("gamma")
    assert store.collections() == ["alpha", "beta"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../c", "a/b", ".hidden", "-x", "a b", "x" * 65, "é", "c\n", "c\0"]
)
def test_a_name_that_cannot_be_a_collection_is_refused(store, narrow, name):
    with pytest.raises(UsageError, match="cannot name a collection"):
        store.open(name, narrow)


@pytest.mark.parametrize("name", ["c", "C9", "a.b_c-d", "x" * 64])
def test_a_name_that_can_be_a_collection_is_taken(store, narrow, name):
    assert store.open(name, narrow).name == name


def test_another_space_under_a_standing_name_is_refused_naming_both_sides(store):
    standing = Plan(primary="jina-code-embeddings-1.5b")
    offered = Plan(primary="jina-code-embeddings-1.5b", tasks={"jina-code-embeddings-1.5b": "qa"})
    store.open("c", standing)
    with pytest.raises(SpaceMismatch) as caught:
        store.open("c", offered)
    for plan in (standing, offered):
        assert plan.space("jina-code-embeddings-1.5b", "dense").fingerprint in str(caught.value)
    assert "'nl2code' ≠ 'qa'" in str(caught.value)
    assert store.describe("c").plan == standing


def test_another_recipe_under_a_standing_name_is_refused_naming_both_sides(store):
    members = {"primary": "all-miniLM-l6", "companions": ("qdrant-minilm-onnx",)}
    ensemble = {"members": ("all-miniLM-l6", "qdrant-minilm-onnx")}
    store.open("c", Plan(**members, ensemble=Ensemble(**ensemble, weights=(1.0, 1.0))))
    with pytest.raises(SpaceMismatch, match=r"'ensemble'.*\[1\.0, 1\.0\].*offered.*\[1\.0, 2\.0\]"):
        store.open("c", Plan(**members, ensemble=Ensemble(**ensemble, weights=(1.0, 2.0))))


def test_made_up_vectors_do_not_join_real_ones_under_other_names(store, narrow):
    store.open("c", narrow)
    with pytest.raises(SpaceMismatch, match="real vectors and was offered made-up"):
        store.open("c", Plan(primary="bge-m3", fake=True))
    assert store.describe("c").plan == narrow


def test_a_plan_with_fewer_vectors_fits_and_takes_nothing_away(store, narrow, wide):
    store.open("c", wide)
    assert store.open("c", narrow).plan.fingerprint == wide.fingerprint


def test_vectors_are_added_to_a_standing_collection(store, narrow, wide, make_point):
    store.open("c", narrow)
    store.upsert("c", [make_point(narrow, n) for n in (1, 2)], 1000)
    assert store.open("c", wide).plan.fingerprint == wide.fingerprint

    added = make_point(wide, 1, seed=50, only=BGE)
    store.update_vectors("c", [added], 1000)

    standing = store.standing("c", [chunk_id("1"), chunk_id("2")])
    assert standing[chunk_id("1")].vectors == {DENSE, *BGE}
    assert standing[chunk_id("2")].vectors == {DENSE}
    stored = first(store, added)
    assert same(stored.vectors[DENSE], make_point(narrow, 1).vectors[DENSE])
    assert same(stored.vectors["bge-m3"], added.vectors["bge-m3"])


# --- writing


def test_what_is_read_is_what_was_written(store, wide, make_point):
    store.open("c", wide)
    points = [make_point(wide, n) for n in range(3)]
    store.upsert("c", points, 1000)
    ids = [points[2].id, chunk_id("absent"), points[0].id]
    read = store.get("c", ids, with_vectors=True)
    assert [p.id for p in read] == [points[2].id, points[0].id]
    assert read[0].payload == points[2].payload
    assert read[0].vectors.keys() == points[2].vectors.keys()
    for name, vector in points[2].vectors.items():
        # Multi-vectors are stored as float16.
        assert same(read[0].vectors[name], vector, 1e-3 if name == "bge-m3-colbert" else 1e-6), name
    assert store.get("c", ids, with_vectors=False)[0].vectors == {}


@pytest.mark.parametrize("half", [False, True])
def test_a_vector_that_was_read_stands_as_it_stood_when_it_is_written_again(store, wide, make_point, half):
    index = Index(dense=VectorIndex(half=half, quantization="int8"))
    plan = wide.model_copy(update={"index": index})
    store.open("c", plan)
    originals = [make_point(plan, n) for n in range(60)]
    # As an encoder gives them, that is never of length 1 to the last bit.
    originals[0].vectors[DENSE] *= np.float32(3)
    store.upsert("c", originals, 1000)
    names = [DENSE, "bge-m3-sparse", "bge-m3-colbert"]
    read = store.get("c", [point.id for point in originals], names)
    assert [point.id for point in read] == [point.id for point in originals]
    assert all(point.vectors.keys() == set(names) for point in read)
    copies = [
        replace(make_point(plan, 100 + n, only=[]), vectors=point.vectors) for n, point in enumerate(read)
    ]
    store.upsert("c", copies, 1000)
    again = store.get("c", [point.id for point in copies], True)
    for copy, original in zip(again, read, strict=True):
        assert copy.vectors.keys() == set(names)
        for name in names:
            assert same(copy.vectors[name], original.vectors[name], 0.0), name


def test_any_text_survives(store, narrow, make_point):
    odd = 'nul \0 emoji 🦀🇫🇷 rtl \u202e bom \ufeff quote " backslash \\ ' + "long " * 200_000
    store.open("c", narrow)
    point = make_point(narrow, 1, text=odd, note=odd, nested={odd[:20]: [None, True, 1.5, -(2**63), odd[:9]]})
    store.upsert("c", [point], 1000)
    assert first(store, point).payload == point.payload


def test_writing_again_changes_nothing(store, wide, make_point):
    store.open("c", wide)
    point = make_point(wide, 1)
    store.upsert("c", [point], 1000)
    before = first(store, point)
    store.upsert("c", [point], 1000)
    store.update_vectors("c", [point], 1000)
    store.update_payload("c", [point], 1000)
    after = first(store, point)
    assert after.payload == before.payload
    assert all(same(after.vectors[name], before.vectors[name]) for name in before.vectors)
    assert store.describe("c").points == 1


def test_an_upsert_replaces_the_whole_point(store, wide, make_point):
    store.open("c", wide)
    store.upsert("c", [make_point(wide, 1, extra=1)], 1000)
    point = make_point(wide, 1, text="new", only=[DENSE])
    store.upsert("c", [point], 1000)
    assert store.standing("c", [point.id])[point.id].vectors == {DENSE}
    assert first(store, point).payload == point.payload


@pytest.mark.parametrize("write", ["upsert", "update_vectors", "update_payload"])
@pytest.mark.parametrize(("offered", "wins"), [(999, False), (1000, True), (1001, True)])
def test_older_never_overwrites_newer(store, narrow, make_point, write, offered, wins):
    # Given a point of a job that started at 1000, and one that never stood
    store.open("c", narrow)
    standing = make_point(narrow, 1, started=1000, seed=1, mark="standing")
    store.upsert("c", [standing], 1000)
    other = make_point(narrow, 2, started=offered)
    # When a job of another start writes the same chunk
    rival = make_point(narrow, 1, started=offered, seed=9, mark="rival")
    getattr(store, write)("c", [rival, other], offered)
    # Then it is written only if the job is no older
    stored = first(store, standing)
    assert stored.payload == (rival if wins else standing).payload
    vectors = rival if wins and write != "update_payload" else standing
    assert same(stored.vectors[DENSE], vectors.vectors[DENSE])
    # And only an upsert makes a new point
    assert bool(store.get("c", [other.id], False)) == (write == "upsert")


@pytest.mark.parametrize("write", ["update_vectors", "update_payload"])
def test_updates_leave_another_text_alone(store, narrow, make_point, write):
    store.open("c", narrow)
    standing, fitting = make_point(narrow, 1), make_point(narrow, 2)
    store.upsert("c", [standing, fitting], 1000)
    getattr(store, write)(
        "c",
        [make_point(narrow, 1, text="other", seed=9, mark=1), make_point(narrow, 2, seed=9, mark=1)],
        2000,
    )
    assert first(store, standing).payload == standing.payload
    assert same(first(store, standing).vectors[DENSE], standing.vectors[DENSE])
    assert first(store, fitting).payload["mark"] == 1


def test_a_new_payload_keeps_every_vector(store, wide, make_point):
    store.open("c", wide)
    store.upsert("c", [make_point(wide, 1, gone=1)], 1000)
    point = make_point(wide, 1, only=[], stays=1)
    store.update_payload("c", [point], 1000)
    assert first(store, point).payload == point.payload
    assert store.standing("c", [point.id])[point.id].vectors == {DENSE, *BGE}


def _bad(point: Point, name: str, vector: Any) -> Point:
    return Point(point.id, {**point.vectors, name: vector}, point.payload)


@pytest.mark.parametrize(
    ("name", "vector", "said"),
    [
        (DENSE, np.ones(383, np.float32), "383 dimensions.*384"),
        (DENSE, np.full(384, np.nan, np.float32), "not finite"),
        (DENSE, np.append(np.ones(383, np.float32), np.float32(-np.inf)), "not finite"),
        (
            "bge-m3-colbert",
            np.append(np.ones((2, 1024)), np.full((1, 1024), np.nan), 0).astype("f4"),
            "finite",
        ),
        (DENSE, np.ones((2, 384), np.float32), "is dense and was given as multi"),
        ("bge-m3-colbert", np.ones((0, 1024), np.float32), "has no rows"),
        ("bge-m3-colbert", np.ones((2, 1023), np.float32), "1023 dimensions"),
        ("bge-m3-sparse", SparseVector(np.array([3, 3]), np.ones(2, np.float32)), "an index twice"),
        ("bge-m3-sparse", SparseVector(np.array([-1]), np.ones(1, np.float32)), "index outside"),
        ("bge-m3-sparse", SparseVector(np.array([1, 2]), np.ones(1, np.float32)), "2 indices and 1 values"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused_and_nothing_is_written(
    store, wide, make_point, name, vector, said
):
    store.open("c", wide)
    good, bad = make_point(wide, 1), _bad(make_point(wide, 2), name, vector)
    with pytest.raises(StoreRefused, match=rf"(?s){bad.id}.*{said}"):
        store.upsert("c", [good, bad], 1000)
    assert store.describe("c").points == 0


def test_a_vector_that_the_collection_lacks_is_no_fault_of_the_point(store, narrow, wide, make_point):
    store.open("c", narrow)
    with pytest.raises(UsageError, match="no vector 'bge-m3' in collection 'c'; it has all-miniLM-l6"):
        store.upsert("c", [make_point(narrow, 1), make_point(wide, 2)], 1000)
    assert store.describe("c").points == 0


@pytest.mark.parametrize("value", [float("nan"), "\ud800"])
def test_a_payload_that_is_no_json_is_refused_naming_the_point(store, narrow, make_point, value):
    store.open("c", narrow)
    point = make_point(narrow, 1)
    store.upsert("c", [point], 1)
    point.payload["odd"] = value
    for write in (store.upsert, store.update_payload):
        with pytest.raises(StoreRefused, match=point.id):
            write("c", [point], 1000)
    (standing,) = store.get("c", [point.id], False)
    assert "odd" not in standing.payload


def test_whole_numbers_of_any_size_are_kept_exactly(store, narrow, make_point):
    store.open("c", narrow)
    given = {"hash": 2**64 - 1, "deep": [{"n": -(2**63) - 1}], "largest": 2**63 - 1, "smallest": -(2**63)}
    point = make_point(narrow, 1, **given)
    store.upsert("c", [point], 1)
    store.update_payload("c", [point], 1)
    (standing,) = store.get("c", [point.id], False)
    kept = {key: standing.payload[key] for key in given}
    assert kept == {**given, "hash": str(2**64 - 1), "deep": [{"n": str(-(2**63) - 1)}]}


# --- what stands


def test_standing_tells_hashes_and_vectors_of_those_that_stand(store, wide, make_point):
    store.open("c", wide)
    whole, partial = make_point(wide, 1), make_point(wide, 2, only=[DENSE, "bge-m3-sparse"])
    store.upsert("c", [whole, partial], 1000)
    standing = store.standing("c", [whole.id, partial.id, chunk_id("absent")])
    assert standing.keys() == {whole.id, partial.id}
    assert standing[whole.id].vectors == {DENSE, *BGE}
    assert standing[partial.id].vectors == {DENSE, "bge-m3-sparse"}
    assert standing[whole.id].content_hash == whole.payload["content_hash"]
    assert standing[whole.id].payload_hash == whole.payload["v5"]["payload_hash"]
    assert store.standing("c", []) == {}


def test_standing_believes_no_payload(store, wide, make_point):
    store.open("c", wide)
    claiming = make_point(wide, 1, only=[DENSE], vectors=[DENSE, *BGE])
    claiming.payload["v5"]["tokens"] = {"bge-m3": [7, 7]}
    store.upsert("c", [claiming], 1000)
    assert store.standing("c", [claiming.id])[claiming.id].vectors == {DENSE}


def test_an_id_that_is_none_is_a_usage_error(store, narrow):
    store.open("c", narrow)
    for read in (lambda: store.standing("c", ["7"]), lambda: store.get("c", ["7"], False)):
        with pytest.raises(UsageError, match="UUID"):
            read()


# --- queries


def _ranking(store: Store, points: list[Point], name: str, query: Any) -> list[str]:
    """Ids by similarity, worked out here."""

    def score(vector: Any) -> float:
        if isinstance(vector, SparseVector):
            weights = dict(zip(query.indices.tolist(), query.values.tolist(), strict=True))
            pairs = zip(vector.indices.tolist(), vector.values.tolist(), strict=True)
            return sum(weights.get(index, 0.0) * value for index, value in pairs)
        return float((query @ vector.T).max(axis=-1).sum())

    return [p.id for p in sorted(points, key=lambda p: -score(p.vectors[name]))]


@pytest.fixture
def filled(store, wide, make_point):
    store.open("c", wide)
    points = [make_point(wide, n) for n in range(40)]
    store.upsert("c", points, 1000)
    return points


@pytest.mark.parametrize("name", [DENSE, *BGE])
def test_one_vector_ranks_by_its_similarity(store, filled, make_point, wide, name):
    query = make_point(wide, 999).vectors[name]
    if name == "bge-m3-sparse":
        query = SparseVector(np.arange(1000), np.random.default_rng(7).random(1000, dtype=np.float32))
    hits = store.query("c", {name: query}, limit=5)
    assert [hit.id for hit in hits] == _ranking(store, filled, name, query)[:5]
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    payloads = {p.id: p.payload for p in filled}
    assert [hit.payload for hit in hits] == [payloads[hit.id] for hit in hits]


def test_several_vectors_rank_by_reciprocal_ranks(store, filled, make_point, wide):
    queries = {name: make_point(wide, 999).vectors[name] for name in (DENSE, "bge-m3")}
    expected: dict[str, float] = {}
    for name, query in queries.items():
        for rank, identity in enumerate(_ranking(store, filled, name, query)[:20]):
            expected[identity] = expected.get(identity, 0.0) + 1 / (2 + rank)
    by_hand = sorted(expected.items(), key=lambda pair: (-pair[1], pair[0]))[:10]
    hits = store.query("c", queries, limit=10, prefetch=20)
    assert [hit.id for hit in hits] == [identity for identity, _ in by_hand]
    assert np.allclose([hit.score for hit in hits], [score for _, score in by_hand], atol=1e-6)


def test_equal_fused_scores_are_answered_in_one_order(store, filled):
    # One candidate of each: both are first in one list, so their scores are equal.
    forward = filled[0].vectors[DENSE]
    queries = {DENSE: forward, "bge-m3": filled[1].vectors["bge-m3"]}
    answers = {tuple(h.id for h in store.query("c", queries, limit=1, prefetch=1)) for _ in range(30)}
    assert answers == {(min(filled[0].id, filled[1].id),)}


@pytest.mark.parametrize(
    ("queries", "said"),
    [
        ({}, "without a vector"),
        ({"nobody": np.ones(384, np.float32)}, "no vector 'nobody'; the collection has .*bge-m3-colbert"),
        ({DENSE: np.ones(12, np.float32)}, "12 dimensions.*384"),
        ({"bge-m3-sparse": np.ones(12, np.float32)}, "is sparse and was given as dense"),
        ({DENSE: np.full(384, np.inf, np.float32)}, "not finite"),
    ],
)
def test_a_query_that_does_not_fit_is_a_usage_error(store, wide, queries, said):
    store.open("c", wide)
    with pytest.raises(UsageError, match=said):
        store.query("c", queries, limit=3)


def test_a_vector_is_fit_however_large_its_values(narrow):
    bound = {vector.name: vector for vector in narrow.vectors()}
    # Its squares are more than a float32 holds.
    assert fault(DENSE, np.full(384, 1e30, np.float32), bound) == ""


def test_an_empty_collection_answers_with_nothing(store, narrow):
    store.open("c", narrow)
    assert store.query("c", {DENSE: np.ones(384, np.float32)}, limit=3) == []


# --- threads


def test_threads_write_and_search_at_once(store, narrow, make_point):
    store.open("c", narrow)
    failures: list[BaseException] = []

    def write(base: int) -> None:
        for start in range(base, base + 60, 20):
            points = [make_point(narrow, n) for n in range(start, start + 20)]
            store.upsert("c", points, 1000)
            if len(store.standing("c", [p.id for p in points])) != 20:
                raise AssertionError("an acknowledged point does not stand")
            store.update_vectors("c", points[:5], 1000)

    def search() -> None:
        for n in range(30):
            store.query("c", {DENSE: make_point(narrow, n).vectors[DENSE]}, limit=5)

    def guarded(function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(write, n * 100)) for n in range(4)]
    threads += [threading.Thread(target=guarded, args=(search,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert store.describe("c").points == 240


# --- pages and deletion


def of_file(point: Point, source: str) -> Point:
    return replace(point, payload={**point.payload, "v5": {**point.payload["v5"], "source": source}})


def test_pages_hold_every_point_once(store, narrow, make_point):
    store.open("c", narrow)
    points = [of_file(make_point(narrow, n), f"src/{n % 3}.py" if n % 4 else "") for n in range(23)]
    store.upsert("c", points, 1000)
    pages, after = [], ""
    while not pages or (after and len(pages) < 30):
        page, after = store.scroll("c", after, 5)
        pages.append(page)
    assert [len(page) for page in pages] == [5, 5, 5, 5, 3]
    seen = [sourced for page in pages for sourced in page]
    assert sorted((s.id, s.source) for s in seen) == sorted((p.id, p.payload["v5"]["source"]) for p in points)
    with pytest.raises(UsageError, match="at least one"):
        store.scroll("c", "", 0)


def test_an_empty_collection_has_one_empty_page(store, narrow):
    store.open("c", narrow)
    assert store.scroll("c", "", 5) == ([], "")


def test_deleting_spares_newer_points_and_those_of_another_source(store, wide, make_point):
    store.open("c", wide)
    old, newer, moved, other = (make_point(wide, n) for n in range(4))
    store.upsert("c", [of_file(old, "a"), of_file(moved, "b"), of_file(other, "a")], 1000)
    store.upsert("c", [of_file(make_point(wide, 1, started=3000), "a")], 3000)
    asked = [Sourced(point.id, "a") for point in (old, newer, moved)]
    absent = Sourced(make_point(wide, 9).id, "a")
    assert store.delete("c", [*asked, absent], 2000) == 1
    left = {point.id for point in store.get("c", [p.id for p in (old, newer, moved, other)], False)}
    assert left == {newer.id, moved.id, other.id}
    assert store.delete("c", asked, 2000) == 0
    assert store.describe("c").points == 3


def test_what_has_no_source_is_never_deleted(store, narrow, make_point):
    store.open("c", narrow)
    point = make_point(narrow, 1)
    store.upsert("c", [point], 1000)
    with pytest.raises(UsageError, match="has no source"):
        store.delete("c", [Sourced(point.id, "")], 2000)
    assert store.delete("c", [Sourced(point.id, "a")], 2000) == 0
    assert store.describe("c").points == 1
