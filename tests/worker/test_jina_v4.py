"""On a small checkpoint the encoder gives the numbers of upstream's own code, and wrong code does not."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from registry.codecs import Dense, Multi, Part
from registry.models import model
from registry.settings import Settings, load_settings
from tests.checkpoints import jina_v4 as recipe
from tests.references.agreement import DIFFERENT, MAX_COSINE_OF_OTHERS, Agreement, agreement, worst
from tests.references.jina_v4_cases import (
    BFLOAT16,
    CASES,
    FILE_TEXT,
    LIMIT,
    REFERENCES,
    Case,
    Floats,
    crc,
    kept_rows,
    signed_sum,
    unpack,
)
from worker.encoders import encode as encoding
from worker.encoders import jina_v4_model
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder, warm_up
from worker.encoders.jina_v4 import JinaV4Encoder
from worker.encoders.jina_v4_adapter import Adapter, read_adapter
from worker.encoders.torch_runtime import TorchRuntime
from worker.merge import prefix
from worker.weights import locate

#: Against upstream's bfloat16.
MIN_COSINE_BFLOAT16 = 0.999
SPEC = model("jina-embeddings-v4")
MADE = json.loads(REFERENCES.read_text())
DOCUMENTS = [case for case in CASES if (case.task, case.side) == ("retrieval", "document")]
#: A short, a middle and a long text.
CONTROLS = ["address", "code", "129 tokens"]


def case_of(name: str, task: str = "retrieval", side: str = "document") -> Case:
    return next(case for case in CASES if case.key == f"{task}/{side}/{name}")


def measured(found: Any, wanted: Floats) -> Agreement:
    """Of two vectors `[d]` or of two sets of rows `[n, d]`."""
    return agreement(np.atleast_2d(np.asarray(found)), np.atleast_2d(wanted))


def dense_agreement(case: Case, dense: Any) -> Agreement:
    return measured(dense, unpack(MADE["cases"][case.key]["dense"]))


def multi_agreement(case: Case, rows: Any) -> Agreement:
    """Of the rows that the references hold whole, and of all rows by their signed sum."""
    made = MADE["cases"][case.key]
    if len(rows) != made["tokens"]:
        return DIFFERENT
    whole = measured(rows[kept_rows(len(rows))], unpack(made["rows"]))
    return worst([whole, measured(signed_sum(rows), unpack(made["signed_sum"]))])


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recipe.build(tmp_path_factory.mktemp("jina-v4"))


@pytest.fixture(scope="module")
def cpu(snapshot: Path) -> Settings:
    return load_settings(device="cpu", threads=1, fake_weights=True, weights={SPEC.name: snapshot})


@pytest.fixture(scope="module")
def encoder_of(cpu: Settings) -> Callable[[str], JinaV4Encoder]:
    """One encoder for each task, with the model's limit scaled down."""
    weights = replace(locate(SPEC, cpu), max_tokens=LIMIT)
    made = {task: JinaV4Encoder(SPEC, task, weights, cpu) for task in recipe.TASKS}
    return made.__getitem__


@pytest.fixture(scope="module")
def retrieval(encoder_of: Callable[[str], JinaV4Encoder]) -> JinaV4Encoder:
    return encoder_of("retrieval")


def encoded(encoder: JinaV4Encoder, texts: Sequence[str], side: Any = "document") -> Part:
    part = encode(encoder, texts, side, ["dense", "multi"], device_lock=threading.Lock())
    assert part.rejected == {}
    return part


def outputs(part: Part) -> tuple[Floats, Multi]:
    dense, multi = part.vectors["dense"], part.vectors["multi"]
    assert isinstance(dense, Dense)
    assert isinstance(multi, Multi)
    return dense.values, multi


@pytest.fixture(scope="module")
def made_of(encoder_of: Callable[[str], JinaV4Encoder]) -> Callable[[Case], tuple[Floats, Floats]]:
    """The dense vector and the rows of a case, each text encoded alone and once."""

    @cache
    def made(case: Case) -> tuple[Floats, Floats]:
        dense, multi = outputs(encoded(encoder_of(case.task), [case.text], case.side))
        return dense[0], multi.row(0)

    return made


def states_of(
    encoder: JinaV4Encoder, text: str, side: Any = "document", **wrong: Any
) -> tuple[Floats, list[int]]:
    """States after the final norm of one text alone, and its ids; `wrong` goes to the model."""
    (batch,) = encoder.prepare([text], side).micro_batches
    with torch.inference_mode():
        ids = torch.from_numpy(batch.tokens.ids)
        states = encoder._model.text(input_ids=ids, use_cache=False, **wrong).last_hidden_state
    return states[0].numpy().astype(np.float64), batch.tokens.ids[0].tolist()


def unit(values: Floats) -> Floats:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def rows_of(encoder: JinaV4Encoder, states: Floats) -> Floats:
    """What the encoder's projector makes of states."""
    with torch.inference_mode():
        return unit(encoder._model.projector(torch.from_numpy(states).float()).numpy())


def test_the_recipe_makes_the_checkpoint_that_the_numbers_are_of(snapshot: Path) -> None:
    assert recipe.digest(snapshot) == MADE["checkpoint"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.key)
def test_agrees_with_upstream(
    case: Case,
    encoder_of: Callable[[str], JinaV4Encoder],
    made_of: Callable[[Case], tuple[Floats, Floats]],
) -> None:
    prepared = encoder_of(case.task).prepare([case.text], case.side)
    (batch,) = prepared.micro_batches
    made = MADE["cases"][case.key]
    assert (int(prepared.tokens_kept[0]), crc(batch.tokens.ids[0].tolist())) == (made["tokens"], made["crc"])

    dense, rows = made_of(case)
    single, many = dense_agreement(case, dense), multi_agreement(case, rows)
    print(f"{case.key}: dense {single}; rows {many}")
    assert single.holds
    assert many.holds


@pytest.mark.parametrize("key", BFLOAT16)
def test_agrees_with_upstreams_bfloat16(key: str, made_of: Callable[[Case], tuple[Floats, Floats]]) -> None:
    case = next(case for case in CASES if case.key == key)
    made = MADE["cases"][key]["bfloat16"]
    dense, rows = made_of(case)
    single = measured(dense, unpack(made["dense"])).cosine
    many = measured(rows[kept_rows(len(rows))], unpack(made["rows"])).cosine
    print(f"{key}: cosine {single:.6f}, of rows {many:.6f} (at least {MIN_COSINE_BFLOAT16})")
    assert min(single, many) >= MIN_COSINE_BFLOAT16
    other = dense_agreement(case_of("address"), unpack(made["dense"])).cosine
    assert other < MAX_COSINE_OF_OTHERS


def test_a_model_in_bfloat16_is_merged_in_float32_and_agrees(snapshot: Path, cpu: Settings) -> None:
    weights = replace(locate(SPEC, cpu), max_tokens=LIMIT)
    exact = JinaV4Encoder(SPEC, "code", weights, cpu)
    rounded = JinaV4Encoder(SPEC, "code", weights, cpu)
    runtime = TorchRuntime(SPEC, cpu)
    runtime.dtype = torch.bfloat16
    rounded._model = jina_v4_model.load(SPEC, "code", snapshot, runtime)
    name = "layers.1.mlp.down_proj.weight"
    assert torch.equal(
        rounded._model.text.get_parameter(name), exact._model.text.get_parameter(name).to(torch.bfloat16)
    )
    case = case_of("code", "code")
    dense, multi = outputs(encoded(rounded, [case.text]))
    single, many = dense_agreement(case, dense[0]).cosine, multi_agreement(case, multi.row(0)).cosine
    print(f"cosine {single:.6f}, of rows {many:.6f} (at least {MIN_COSINE_BFLOAT16})")
    assert min(single, many) >= MIN_COSINE_BFLOAT16


def test_a_text_among_others_has_the_vectors_it_has_alone(retrieval: JinaV4Encoder) -> None:
    prepared = retrieval.prepare([case.text for case in DOCUMENTS], "document")
    assert any(len(b.rows) > 1 and b.padded_tokens > b.useful_tokens for b in prepared.micro_batches)
    dense, multi = outputs(encoded(retrieval, [case.text for case in DOCUMENTS]))
    found = [dense_agreement(case, dense[i]) for i, case in enumerate(DOCUMENTS)]
    found += [multi_agreement(case, multi.row(i)) for i, case in enumerate(DOCUMENTS)]
    print(worst(found))
    assert worst(found).holds


def test_padding_that_is_pooled_would_be_seen(retrieval: JinaV4Encoder) -> None:
    texts = [case_of("address").text, case_of("code").text]
    (batch,) = retrieval.prepare(texts, "document").micro_batches
    states = retrieval.forward(batch).numpy()
    short = batch.rows.index(0)
    assert batch.tokens.mask[short].sum() < batch.tokens.mask.shape[1]
    assert not dense_agreement(case_of("address"), unit(states[short].mean(axis=0))).holds
    assert not multi_agreement(case_of("address"), rows_of(retrieval, states[short])).holds


def test_a_state_of_padding_that_is_no_number_does_not_show(retrieval: JinaV4Encoder) -> None:
    (batch,) = retrieval.prepare(["river", "a longer text about a river"], "document").micro_batches
    states = retrieval.forward(batch)
    wanted = retrieval.finish(batch, states, ["dense", "multi"])
    padding = torch.from_numpy(batch.tokens.mask) == 0
    assert padding.any()
    found = retrieval.finish(batch, states.masked_fill(padding.unsqueeze(-1), torch.inf), ["dense", "multi"])
    for kind, vectors in found.items():
        np.testing.assert_array_equal(vectors.values, wanted[kind].values)


@pytest.mark.parametrize("name", CONTROLS)
def test_wrong_pooling_would_be_seen(name: str, retrieval: JinaV4Encoder) -> None:
    case = case_of(name)
    states, _ = states_of(retrieval, case.text)
    assert dense_agreement(case, unit(states.mean(axis=0))).holds
    assert multi_agreement(case, rows_of(retrieval, states)).holds
    assert not dense_agreement(case, states.mean(axis=0)).holds
    for pooled in (
        states[-1],
        states[0],
        states.max(axis=0),
        states[:-1].mean(axis=0),
        states[2:].mean(axis=0),
    ):
        assert not dense_agreement(case, unit(pooled)).holds
    assert not multi_agreement(case, rows_of(retrieval, states[2:])).holds
    assert not multi_agreement(case, rows_of(retrieval, states[::-1].copy())).holds
    assert not multi_agreement(case, 1.01 * rows_of(retrieval, states)).holds


@pytest.mark.parametrize("name", CONTROLS)
def test_a_wrong_prefix_would_be_seen(name: str, retrieval: JinaV4Encoder) -> None:
    case = case_of(name)
    prompt = retrieval._prompt
    for side, text in (
        ("query", case.text),
        ("document", f" {case.text}"),
        ("document", f"Passage: {case.text}"),
    ):
        dense, multi = outputs(encoded(retrieval, [text], side))
        assert not dense_agreement(case, dense[0]).holds
        assert not multi_agreement(case, multi.row(0)).holds
    try:
        retrieval._prompt = replace(prompt, document="")
        dense, multi = outputs(encoded(retrieval, [case.text]))
    finally:
        retrieval._prompt = prompt
    assert not dense_agreement(case, dense[0]).holds
    assert not multi_agreement(case, multi.row(0)).holds


@pytest.mark.parametrize("name", CONTROLS)
def test_wrong_positions_and_attention_would_be_seen(name: str, retrieval: JinaV4Encoder) -> None:
    case = case_of(name)
    length = len(states_of(retrieval, case.text)[1])
    positions = torch.arange(length)[None]
    gap = positions + (positions > 0)
    everything = torch.zeros(1, 1, length, length)
    for wrong in ({"position_ids": gap}, {"position_ids": positions * 2}, {"attention_mask": everything}):
        states, _ = states_of(retrieval, case.text, **wrong)
        assert not dense_agreement(case, unit(states.mean(axis=0))).holds
        assert not multi_agreement(case, rows_of(retrieval, states)).holds
    # Rotary positions enter as differences only, so beginning at 1 instead of 0 is no error.
    states, _ = states_of(retrieval, case.text, position_ids=positions + 1)
    assert dense_agreement(case, unit(states.mean(axis=0))).holds


@pytest.mark.parametrize("name", ["code", "513 tokens"])
def test_one_other_token_would_be_seen(name: str, retrieval: JinaV4Encoder) -> None:
    case = case_of(name)
    (batch,) = retrieval.prepare([case.text], "document").micro_batches
    for at in (0, batch.tokens.ids.shape[1] // 2, -1):
        ids = batch.tokens.ids.copy()
        ids[0, at] = (ids[0, at] + 1) % 500
        changed = replace(batch, tokens=replace(batch.tokens, ids=ids))
        made = retrieval.finish(changed, retrieval.forward(changed), ["dense", "multi"])
        assert isinstance(made["dense"], Dense)
        assert isinstance(made["multi"], Multi)
        assert not dense_agreement(case, made["dense"].values[0]).holds
        assert not multi_agreement(case, made["multi"].row(0)).holds


@pytest.mark.parametrize("task", recipe.TASKS)
@pytest.mark.parametrize("side", ["query", "document"])
def test_another_adapter_would_be_seen(
    task: str, side: Any, encoder_of: Callable[[str], JinaV4Encoder]
) -> None:
    case = case_of("sentence", task, side)
    for other in set(recipe.TASKS) - {task}:
        # The same ids, so that only the adapter differs.
        _, ids = states_of(encoder_of(task), case.text, side)
        encoder = encoder_of(other)
        with torch.inference_mode():
            hidden = encoder._model.text(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state
        states = hidden[0].numpy()
        assert not dense_agreement(case, unit(states.mean(axis=0))).holds
        assert not multi_agreement(case, rows_of(encoder, states)).holds


def _unmerged(adapter: Adapter) -> Adapter:
    return Adapter(adapter.scaling, {})


def _unscaled(adapter: Adapter) -> Adapter:
    return Adapter(1.0, adapter.factors)


def _without_one(adapter: Adapter) -> Adapter:
    left = {k: v for k, v in adapter.factors.items() if not k.endswith("layers.1.self_attn.k_proj")}
    assert len(left) == len(adapter.factors) - 1
    return Adapter(adapter.scaling, left)


def _without_projector(adapter: Adapter) -> Adapter:
    left = {k: v for k, v in adapter.factors.items() if k != jina_v4_model.PROJECTOR}
    assert len(left) == len(adapter.factors) - 1
    return Adapter(adapter.scaling, left)


@pytest.mark.parametrize("change", [_unmerged, _unscaled, _without_one, _without_projector])
def test_an_adapter_left_out_would_be_seen(
    change: Callable[[Adapter], Adapter], snapshot: Path, cpu: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jina_v4_model, "read_adapter", lambda *given: change(read_adapter(*given)))
    wrong = JinaV4Encoder(SPEC, "retrieval", locate(SPEC, cpu), cpu)
    for case in (case_of("code"), case_of("129 tokens")):
        dense, multi = outputs(encoded(wrong, [case.text]))
        assert dense_agreement(case, dense[0]).holds == (change is _without_projector)
        assert not multi_agreement(case, multi.row(0)).holds


@pytest.mark.parametrize("width", SPEC.matryoshka)
def test_a_cut_is_normalised_again(width: int, made_of: Callable[[Case], tuple[Floats, Floats]]) -> None:
    whole = width == SPEC.dimension
    for case in (case for case in CASES if case.name in ("code", "sentence")):
        wanted = unit(unpack(MADE["cases"][case.key]["dense"])[:width])
        dense = made_of(case)[0]
        cut = measured(prefix(dense[None], width), wanted)
        print(f"{case.key} cut at {width}: {cut}")
        assert cut.holds
        assert measured(dense[:width], wanted).holds == whole
        assert measured(unit(dense[-width:]), wanted).holds == whole


def test_different_texts_have_different_vectors(made_of: Callable[[Case], tuple[Floats, Floats]]) -> None:
    dense = np.stack([made_of(case)[0] for case in DOCUMENTS])
    cosines = dense @ dense.T - 2 * np.eye(len(dense))
    print(f"largest cosine of two texts {cosines.max():.3f} (under {MAX_COSINE_OF_OTHERS})")
    assert cosines.max() < MAX_COSINE_OF_OTHERS


def test_a_long_text_is_cut_at_its_end_and_counted(retrieval: JinaV4Encoder) -> None:
    text = case_of("cut at the limit").text
    part = encoded(retrieval, [text])
    assert (part.tokens_seen.tolist(), part.tokens_kept.tolist()) == ([LIMIT + 102], [LIMIT])
    kept_end = " ".join(text.split()[102:])
    assert not dense_agreement(
        case_of("cut at the limit"), outputs(encoded(retrieval, [kept_end]))[0][0]
    ).holds


def test_rows_past_the_stores_ceiling_are_cut_and_counted(
    retrieval: JinaV4Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "MAX_MULTIVECTOR_VALUES", 128 * 40)
    case = case_of("129 tokens")
    whole = rows_of(retrieval, states_of(retrieval, case.text)[0])
    part = encoded(retrieval, [case.text, "short"])
    dense, multi = outputs(part)
    assert part.notes["rows_cut"] == {"0": 129 - 39}
    np.testing.assert_allclose(multi.row(0), whole[:39], atol=1e-5)
    assert dense_agreement(case, dense[0]).holds


def test_a_text_is_only_ever_text(
    retrieval: JinaV4Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FILE_TEXT).write_bytes(b"\x89PNG\r\n\x1a\n")
    monkeypatch.chdir(tmp_path)
    assert Path(FILE_TEXT).is_file()

    def refuse(*_: Any) -> None:
        raise AssertionError("an encoder reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for case in (case_of("file"), case_of("address"), case_of("special tokens"), case_of("vision tokens")):
        dense, multi = outputs(encoded(retrieval, [case.text]))
        assert dense_agreement(case, dense[0]).holds
        assert multi_agreement(case, multi.row(0)).holds
    # Upstream would pool the picture that the tokens announce; this is the stated difference.
    as_picture = unpack(MADE["cases"][case_of("vision tokens").key]["dense_as_picture"])
    assert not dense_agreement(case_of("vision tokens"), as_picture).holds


def test_only_what_is_asked_for_is_made(retrieval: JinaV4Encoder) -> None:
    (batch,) = retrieval.prepare(["one", "two words"], "query").micro_batches
    raw = retrieval.forward(batch)
    assert retrieval.finish(batch, raw, ["dense"]).keys() == {"dense"}
    assert retrieval.finish(batch, raw, ["multi"]).keys() == {"multi"}


def test_the_factory_loads_it_and_it_warms_up(cpu: Settings) -> None:
    encoder = load_encoder(SPEC.name, "", cpu, ["dense", "multi"])
    assert warm_up(encoder, ["dense", "multi"]) > 0
    assert encoder.space("dense").task == "retrieval"
    assert encoder.numerics.dtype == "float32"
    assert (encoder.space("dense").dimension, encoder.space("multi").dimension) == (2048, 128)
    encoder.close()
