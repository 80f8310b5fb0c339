"""Variants and the treatment of too long texts: named in the space, told to the worker, known or refused."""

from __future__ import annotations

import click
import pytest

from registry.console import read_plan
from registry.errors import PlanError
from registry.models import embedder
from registry.plan import Ensemble, Plan, make_plan, plan_from_json
from registry.serving import TRUNCATIONS, served
from registry.settings import load_settings
from registry.spaces import space_of

ONNX, PLAIN, BGE, CODE = "qdrant-minilm-onnx", "all-miniLM-l6", "bge-m3", "jina-code-embeddings-1.5b"


def test_a_plan_that_asks_for_nothing_works_in_the_models_own_space() -> None:
    for name in (ONNX, BGE):
        space = Plan(primary=name).space(name, "dense")
        assert space == space_of(embedder(name), "dense")
        assert (space.weights, space.pooling) == (embedder(name).weights_sha256, embedder(name).pooling)


def test_every_treatment_and_variant_is_a_space_of_its_own() -> None:
    spec = embedder(ONNX)
    spaces = {space_of(served(spec, v, t), "dense") for v in ("", "int8") for t in TRUNCATIONS}
    assert len({space.fingerprint for space in spaces}) == 6
    assert space_of(served(spec, "int8"), "dense").weights == spec.weights_sha256 + "+int8-dynamic"
    assert space_of(served(spec, truncation="fail"), "dense").pooling == "mean+fail"
    # Made-up vectors of a variant do not meet those of another either.
    assert space_of(served(spec, "int8"), "dense", fake=True) != space_of(spec, "dense", fake=True)


def test_what_the_plan_says_reaches_space_wire_and_worker() -> None:
    plan = make_plan(primary=ONNX, companions=(PLAIN,), variants={ONNX: "int8"}, truncate="split-and-pool")
    assert plan_from_json(plan.model_dump_json()) == plan
    assert plan.space(ONNX, "dense").weights.endswith("+int8-dynamic")
    assert plan.space(PLAIN, "dense").weights == embedder(PLAIN).weights_sha256
    assert plan.space(PLAIN, "dense").pooling == "mean+split"
    assert plan.worker_options(ONNX) == ["--variant", "int8", "--truncate", "split-and-pool"]
    assert plan.worker_options(PLAIN) == ["--truncate", "split-and-pool"]
    assert Plan(primary=CODE, tasks={CODE: "qa"}).worker_options(CODE) == ["--task", "qa"]
    assert plan.describe() == f"{ONNX} (384, int8, split-and-pool) + {PLAIN} (384, split-and-pool)"
    assert Plan(primary=ONNX).describe() == f"{ONNX} (384)"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"variants": {PLAIN: "int8"}, "companions": (PLAIN,)}, f"{PLAIN} has no variant 'int8'"),
        ({"variants": {ONNX: "int4"}}, "no variant 'int4'; its variants: int8"),
        ({"variants": {BGE: "int8"}}, "not in the plan"),
        ({"truncate": "split"}, "truncate"),
    ],
)
def test_what_is_no_variant_or_treatment_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        make_plan(primary=ONNX, **fields)


def test_the_command_lines_options_make_the_plan() -> None:
    plan = read_plan(load_settings(), ONNX, (), (), (), None, (), (f"{ONNX}=int8",), "fail")
    assert plan == Plan(primary=ONNX, variants={ONNX: "int8"}, truncate="fail")
    half = read_plan(load_settings(), ONNX, (), (), (), None, (), transport="float16")
    assert half == Plan(primary=ONNX, transport="float16")
    for options in ({"truncate": "fail"}, {"transport": "float16"}):
        with pytest.raises(click.UsageError, match="--primary"):
            read_plan(load_settings(), None, (), (), (), None, (), **options)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ((CODE, BGE), ()),  # 1536 to 1024, which is one of its Matryoshka widths
        ((ONNX, PLAIN), ()),
        ((PLAIN, BGE), ("1024 values of bge-m3 to 384, and it is no Matryoshka model",)),
        (
            (CODE, BGE, PLAIN),
            ("1536 values of jina-code-embeddings-1.5b to 384, and it was trained", "1024 values of bge-m3"),
        ),
    ],
)
def test_an_ensemble_that_cuts_what_was_not_made_for_it_is_said(
    members: tuple[str, ...], said: tuple[str, ...]
) -> None:
    plan = Plan(primary=members[0], companions=members[1:], ensemble=Ensemble(members=members))
    warnings = plan.warnings()
    assert len(warnings) == len(said)
    assert all(words in warning for words, warning in zip(said, warnings, strict=True))
    assert plan.model_copy(update={"ensemble": None}).warnings() == ()
