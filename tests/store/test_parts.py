"""The parts that every store shares: points, binding, layout, fusion, and which store the settings name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from registry.chunks import Chunk, chunk_id
from registry.errors import SpaceMismatch
from registry.index import PROFILES
from registry.plan import Plan
from registry.settings import load_settings
from store.binding import Binding
from store.edge import EdgeStore
from store.factory import open_store
from store.fusion import best, depth
from store.layout import PAYLOAD_INDEXES, layout
from store.points import CONTENT_HASH, STARTED, build_point, source_of, tokens_of
from store.server import ServerStore


def test_a_point_carries_the_chunk_and_what_the_store_needs():
    chunk = Chunk(chunk_id("a"), "text", {"path": "a.py", "metadata": {"k": 1}})
    tokens = {"bge-m3": (700, 512), "jina-embeddings-v4": (650, 650)}
    point = build_point(chunk, {}, "job", 1700000000000, tokens=tokens)
    assert point.id == chunk.id
    assert point.payload == {
        "path": "a.py",
        "metadata": {"k": 1},
        "text": "text",
        "content_hash": chunk.content_hash,
        "v5": {
            "job": "job",
            "started": 1700000000000,
            "payload_hash": chunk.payload_hash,
            "tokens": {"bge-m3": [700, 512], "jina-embeddings-v4": 650},
        },
    }
    assert {model: tokens_of(point.payload, model) for model in tokens} == tokens


@pytest.mark.parametrize(
    "about", [None, "v5", {}, {"tokens": 7}, {"tokens": {}}, {"tokens": {"bge-m3": "7"}}]
)
def test_a_point_that_says_nothing_of_tokens_is_believed_nothing(about):
    assert tokens_of({"v5": about}, "bge-m3") is None


def test_counts_are_read_as_they_were_written_before_too():
    assert tokens_of({"v5": {"tokens": {"bge-m3": [7, 7]}}}, "bge-m3") == (7, 7)


@pytest.mark.parametrize(
    ("given", "metadata"),
    [
        ({"text": 1, "v5": 2}, {"text": 1, "v5": 2}),
        ({"text": 1, "metadata": {"k": 2}}, {"k": 2, "text": 1}),
        ({"text": 1, "metadata": {"text": 2}}, {"text": 2, "text_": 1}),
        ({"content_hash": 1, "metadata": "plain"}, {"metadata": "plain", "content_hash": 1}),
    ],
)
def test_reserved_keys_of_a_corpus_move_under_metadata_and_lose_nothing(given, metadata):
    before = json.dumps(given)
    chunk = Chunk(chunk_id("a"), "text", given)
    payload = build_point(chunk, {}, "job", 1).payload
    assert payload["metadata"] == metadata
    assert (payload["text"], payload["content_hash"]) == ("text", chunk.content_hash)
    assert payload["v5"]["started"] == 1
    assert json.dumps(given) == before


def test_what_conditions_look_at_is_indexed():
    assert {STARTED, CONTENT_HASH, "path"} == PAYLOAD_INDEXES.keys()


def test_only_multi_vectors_have_no_graph_and_lie_halved_on_disk(wide):
    by_kind = {one.kind: one.index for one in layout(Binding.of(wide)).vectors}
    assert (by_kind["dense"].m, by_kind["dense"].half, by_kind["dense"].on_disk) == (16, False, False)
    assert (by_kind["multi"].m, by_kind["multi"].half, by_kind["multi"].on_disk) == (0, True, True)


def test_a_profile_gives_the_collection_of_v4(wide):
    plan = wide.model_copy(update={"index": PROFILES["v4"]})
    dense = layout(Binding.of(plan)).vectors[0].index
    assert (dense.m, dense.ef_construct, dense.quantization, dense.quantile, dense.always_ram) == (
        48,
        512,
        "int8",
        0.99,
        True,
    )


def test_an_added_vector_is_stored_as_the_plan_that_brings_it_says(narrow, wide):
    brought = wide.model_copy(update={"index": PROFILES["v4"]})
    extended = Binding.of(narrow).extended(brought, "collection 'c'")
    m = {one.name: one.index.m for one in layout(extended).vectors if one.kind == "dense"}
    assert m == {"all-miniLM-l6": 16, "bge-m3": 48}
    assert Binding.from_json(json.loads(json.dumps(extended.to_json()))) == extended


def test_a_binding_survives_its_json():
    plan = Plan(
        primary="jina-embeddings-v4",
        companions=("bge-m3",),
        outputs={"jina-embeddings-v4": ("dense", "multi")},
        matryoshka={"jina-embeddings-v4": (128,)},
        tasks={"jina-embeddings-v4": "code"},
    )
    binding = Binding.of(plan)
    assert Binding.from_json(json.loads(json.dumps(binding.to_json()))) == binding


def test_extending_names_the_vectors_of_both_plans_and_repeating_it_nothing_more():
    jina = {"primary": "jina-embeddings-v4", "tasks": {"jina-embeddings-v4": "code"}}
    first = Binding.of(Plan(**jina, matryoshka={"jina-embeddings-v4": (128,)}))
    offered = Plan(
        primary="bge-m3",
        companions=("jina-embeddings-v4",),
        outputs={"bge-m3": ("sparse",), "jina-embeddings-v4": ("multi",)},
        tasks={"jina-embeddings-v4": "code"},
    )
    both = first.extended(offered, "here")
    assert both.plan.primary == "jina-embeddings-v4"
    expected = {v.name: v.fingerprint for v in (*first.plan.vectors(), *offered.vectors())}
    assert {v.name: v.fingerprint for v in both.plan.vectors()} == expected
    assert {name: v.fingerprint for name, v in both.vectors.items()} == expected
    assert both.extended(offered, "here") is both


def test_one_model_under_two_tasks_is_refused_even_under_other_names():
    model = "jina-embeddings-v4"
    binding = Binding.of(Plan(primary=model, tasks={model: "code"}))
    offered = Plan(primary=model, outputs={model: ("multi",)}, tasks={model: "retrieval"})
    with pytest.raises(SpaceMismatch, match=r"'code'.*'retrieval'"):
        binding.extended(offered, "here")


def test_fusion_looks_deep_enough_and_orders_ties_by_id():
    assert (depth(10, 0), depth(100, 0), depth(10, 20), depth(30, 20)) == (100, 400, 20, 30)
    assert best([("b", 0.5), ("a", 0.5), ("c", 0.9)], 2) == [("c", 0.9), ("a", 0.5)]


def test_the_settings_name_the_store(tmp_path):
    opened = open_store(load_settings(data_dir=tmp_path, qdrant_url=""))
    assert isinstance(opened, EdgeStore)
    opened.close()
    assert (tmp_path / "store").is_dir()
    served = open_store(load_settings(data_dir=tmp_path, qdrant_url="http://q:6333"))
    assert isinstance(served, ServerStore)
    served.close()


def test_a_point_says_which_file_it_came_from():
    chunk = Chunk(chunk_id("a"), "text", {"path": "a.py"}, "src/a.py")
    assert source_of(build_point(chunk, {}, "job", 1).payload) == "src/a.py"
    assert source_of(build_point(replace(chunk, source=""), {}, "job", 1).payload) == ""
    assert source_of({"v5": "not ours"}) == ""
    assert replace(chunk, source="src/b.py").payload_hash != chunk.payload_hash
