"""Plans: what they name, and what they refuse."""

from __future__ import annotations

import pytest

from registry.errors import PlanError, SpaceMismatch, UnknownModel
from registry.plan import Ensemble, make_plan, plan_from_json
from registry.spaces import require_same
from store.binding import Binding

CODE, BGE, V4 = "jina-code-embeddings-1.5b", "bge-m3", "jina-embeddings-v4"


def test_every_named_vector_of_a_large_plan() -> None:
    plan = make_plan(
        primary=CODE,
        companions=[BGE, V4],
        outputs={BGE: ["dense", "sparse", "multi"], V4: ["dense", "multi"]},
        matryoshka={CODE: [256]},
        ensemble=Ensemble(),
    )
    assert {v.name: (v.kind, v.dimension) for v in plan.vectors()} == {
        CODE: ("dense", 1536),
        f"{CODE}-256": ("dense", 256),
        BGE: ("dense", 1024),
        "bge-m3-sparse": ("sparse", 0),
        "bge-m3-colbert": ("multi", 1024),
        V4: ("dense", 2048),
        "jina-embeddings-v4-multi": ("multi", 128),
        "ensemble": ("dense", 1024),
    }
    assert plan.models_for(["ensemble"]) == (CODE, BGE)
    assert plan.models_for(["bge-m3-sparse"]) == (BGE,)
    assert plan_from_json(plan.model_dump_json()) == plan


def test_concat_is_as_wide_as_its_members_together() -> None:
    plan = make_plan(primary=CODE, companions=[BGE], ensemble=Ensemble(method="concat"))
    assert plan.vector("ensemble").dimension == 2048


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"primary": BGE, "companions": [BGE]}, "both primary and companion"),
        ({"primary": CODE, "companions": [BGE, BGE]}, "named twice"),
        ({"primary": BGE, "outputs": {V4: ["dense"]}}, "not in the plan"),
        ({"primary": BGE, "outputs": {BGE: []}}, "no output"),
        ({"primary": BGE, "outputs": {BGE: ["colour"]}}, "outputs"),
        ({"primary": BGE, "matryoshka": {BGE: [128]}}, "no Matryoshka model"),
        ({"primary": CODE, "matryoshka": {CODE: [100]}}, "no Matryoshka prefix of 100; it has 128"),
        ({"primary": CODE, "matryoshka": {CODE: [1536]}}, "no Matryoshka prefix of 1536"),
        ({"primary": CODE, "ensemble": Ensemble()}, "not in the plan; add `--companion bge-m3`"),
        ({"primary": CODE, "companions": [BGE], "ensemble": Ensemble(weights=(1.0,))}, "1 ensemble weights"),
        ({"primary": CODE, "companions": [BGE], "ensemble": Ensemble(weights=(0.0, 0.0))}, "all zero"),
        ({"primary": CODE, "tasks": {CODE: "poetry"}}, "no task 'poetry'; its tasks: 'nl2code'"),
        ({"primary": CODE, "colour": "red"}, "colour"),
    ],
)
def test_a_contradiction_is_refused_in_words(fields: dict, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        make_plan(**fields)


def test_a_removed_model_in_a_plan_names_its_successor() -> None:
    with pytest.raises(UnknownModel, match="use 'bge-m3'"):
        make_plan(primary="gte-large")


def test_the_fingerprint_sees_what_decides_a_vector_and_nothing_else() -> None:
    base = make_plan(primary=CODE, companions=[BGE])
    assert make_plan(primary=BGE, companions=[CODE]).fingerprint == base.fingerprint
    assert make_plan(primary=CODE, companions=[BGE], tasks={CODE: "nl2code"}).fingerprint == base.fingerprint
    others = [
        make_plan(primary=CODE),
        make_plan(primary=CODE, companions=[BGE], tasks={CODE: "qa"}),
        make_plan(primary=CODE, companions=[BGE], fake=True),
        make_plan(primary=CODE, companions=[BGE], matryoshka={CODE: [128]}),
        make_plan(primary=CODE, companions=[BGE], ensemble=Ensemble()),
        make_plan(primary=CODE, companions=[BGE], ensemble=Ensemble(weights=(1.0, 2.0))),
    ]
    assert len({plan.fingerprint for plan in [base, *others]}) == len(others) + 1


def test_a_mismatch_names_both_sides() -> None:
    one = make_plan(primary=CODE).space(CODE, "dense")
    other = make_plan(primary=CODE, tasks={CODE: "qa"}).space(CODE, "dense")
    require_same("x", one, one, "it")
    with pytest.raises(
        SpaceMismatch, match=f"{one.fingerprint}.*{other.fingerprint}.*task: 'nl2code' ≠ 'qa'"
    ):
        require_same("x", one, other, "the collection")


def test_the_fingerprints_of_released_spaces_do_not_change() -> None:
    """Stored collections hold them: a change here orphans every one of them."""
    plan = make_plan(primary="qdrant-minilm-onnx", companions=["all-miniLM-l6"])
    assert [v.fingerprint for v in plan.vectors()] == PINNED


def test_a_plan_written_before_it_had_a_transport_is_read_and_is_the_same_plan() -> None:
    plan = plan_from_json(WRITTEN)
    assert plan.transport == "float32"
    assert plan.fingerprint == "7958be42b337232c"
    half = plan.model_copy(update={"transport": "float16"})
    assert half.fingerprint == plan.fingerprint
    assert plan_from_json(half.model_dump_json()) == half
    assert (plan.describe() in half.describe(), half.describe() == plan.describe()) == (True, False)
    record = Binding.of(plan).to_json()
    del record["plan"]["transport"]
    binding = Binding.from_json(record)
    assert binding.plan == plan
    # It is no part of what a vector is: nothing is to be added or migrated.
    assert binding.extended(half, "it") is binding
    assert binding.changes(half, "it") == []


#: As a collection's record and an open job of an earlier version hold it.
WRITTEN = (
    '{"primary":"jina-code-embeddings-1.5b","companions":["bge-m3"],"outputs":{"bge-m3":["dense","sparse","multi"]},'
    '"matryoshka":{"jina-code-embeddings-1.5b":[256]},"ensemble":{"members":["jina-code-embeddings-1.5b","bge-m3"],'
    '"method":"weighted_average","weights":[]},"tasks":{},"variants":{},"truncate":"cut","index":{"dense":{"m":16,'
    '"ef_construct":100,"full_scan_kb":10000,"quantization":"","quantile":null,"always_ram":true,"half":false,'
    '"on_disk":false,"graph_on_disk":false},"multi":{"m":0,"ef_construct":100,"full_scan_kb":10000,"quantization":"",'
    '"quantile":null,"always_ram":true,"half":true,"on_disk":true,"graph_on_disk":false},"sparse_on_disk":false,'
    '"payload_on_disk":true,"vectors":{}},"fake":false}'
)
PINNED = ["1fbd4fdcfb83e559", "0036dc899df7cecf"]
