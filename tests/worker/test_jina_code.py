"""jina-code-embeddings against sentence-transformers' own numbers, on a small seeded checkpoint; and wrong
code against the same numbers, which must not pass. `pytest -rA` shows every figure with its tolerance."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from registry.codecs import Dense, Part
from registry.errors import WeightsError
from registry.models import model
from registry.plan import make_plan
from registry.settings import Settings, load_settings
from registry.spaces import space_of
from tests.checkpoints.jina_code import END, HIDDEN, MAX_TOKENS, build, write_prompts
from tests.checkpoints.material import DIGEST, decoded, digests
from tests.references.agreement import MAX_COSINE_OF_OTHERS, Agreement, agreement
from tests.references.jina_code_cases import CUT, NAMED, PROMPTS, REFERENCES, SHORT, TEXTS, WIDTHS
from worker.encoders.base import Side
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder
from worker.encoders.tokens import Padded
from worker.merge import named_vectors

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.weights

NAME = "jina-code-embeddings-1.5b"
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings that serve the small checkpoint."""
    path = build(tmp_path_factory.mktemp("jina") / "jina-code")
    write_prompts(path, NAMED)
    return load_settings(weights={NAME: path}, fake_weights=True, device="cpu")


@pytest.fixture(scope="module")
def encoders(small: Settings) -> dict[str, Any]:
    """An encoder of each task, loaded as a worker loads it."""
    return {task: load_encoder(NAME, task, small, ["dense"]) for task in PROMPTS}


@pytest.fixture(scope="module")
def encoder(encoders: dict[str, Any]) -> Any:
    """The encoder of the default task."""
    return encoders["nl2code"]


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    """Reference vectors: of texts, of prompts, of cuts."""
    found: dict[str, Any] = json.loads(REFERENCES.read_text())
    return found


def vectors(encoder: Any, texts: Sequence[str], side: Side = "document") -> Floats:
    """Each text's vector, in order, through prepare, forward and finish; unchecked."""
    found = np.empty((len(texts), HIDDEN), np.float32)
    for batch in encoder.prepare(texts, side).micro_batches:
        found[list(batch.rows)] = encoder.finish(batch, encoder.forward(batch), ["dense"])["dense"].values
    return found


def compared(encoder: Any, references: dict[str, Any], names: Sequence[str]) -> Agreement:
    """The named texts, in as few batches as they fit, with their references."""
    wanted = np.concatenate([decoded(references["texts"][name], HIDDEN) for name in names])
    return agreement(vectors(encoder, [TEXTS[name] for name in names]), wanted)


def test_the_registry_knows_the_prompts_of_the_card() -> None:
    spec = model(NAME)
    assert {task: (prompt.query, prompt.document) for task, prompt in spec.prompts.items()} == PROMPTS
    assert spec.matryoshka == WIDTHS


@pytest.mark.parametrize("name", TEXTS)
def test_each_text_alone_agrees_with_the_reference(
    encoder: Any, references: dict[str, Any], name: str
) -> None:
    found = compared(encoder, references, [name])
    print(f"{NAME} dense, {name}: {found}")
    assert found.holds


def test_all_texts_in_one_padded_batch_agree_with_the_reference(
    encoder: Any, references: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder.budget, "tokens", len(TEXTS) * MAX_TOKENS)
    (batch,) = encoder.prepare(list(TEXTS.values()), "document").micro_batches
    assert batch.tokens.mask[:, -1].all()
    assert not batch.tokens.mask[-1, 0]
    found = compared(encoder, references, list(TEXTS))
    print(f"{NAME} dense, {len(TEXTS)} texts in one batch: {found}")
    assert found.holds


@pytest.mark.parametrize("side", ["query", "document"])
@pytest.mark.parametrize("task", PROMPTS)
def test_every_prompt_agrees_and_every_other_prompt_does_not(
    encoders: dict[str, Any], references: dict[str, Any], task: str, side: Side
) -> None:
    texts = [TEXTS[name] for name in SHORT]
    found = digests(vectors(encoders[task], texts, side))
    for prompt, text in NAMED.items():
        wanted = np.concatenate([decoded(references["prompts"][prompt][name], 2 * DIGEST) for name in SHORT])
        one = agreement(found, wanted)
        print(f"{NAME} {task}, {side} against {prompt}: {one}")
        # Two tasks have the same prompt for their documents.
        assert one.holds == (text == NAMED[f"{task}_{side}"])


@pytest.mark.parametrize("width", WIDTHS)
def test_every_matryoshka_width_agrees_and_a_plain_cut_does_not(
    encoder: Any, references: dict[str, Any], width: int
) -> None:
    named = NAME if width == HIDDEN else f"{NAME}-{width}"
    widths = (width,) if width < HIDDEN else ()
    plan = make_plan(primary=NAME, matryoshka={NAME: widths} if widths else {}, fake=True)
    texts = [TEXTS[name] for name in CUT]
    part = encode(encoder, texts, "document", ["dense"], device_lock=threading.Lock())
    wanted = np.concatenate([decoded(references["cuts"][name][str(width)], width) for name in CUT])
    found = np.stack([_named(plan, named, part, row) for row in range(len(texts))])
    right = agreement(found, wanted)
    plain = agreement(vectors(encoder, texts)[:, :width], wanted)
    print(f"{NAME} cut to {width}: {right}; not normalised again: {plain}")
    assert right.holds
    assert plain.holds == (width == HIDDEN)


def _named(plan: Any, name: str, part: Part, row: int) -> Floats:
    vector = named_vectors(plan, [name], {NAME: part}, row)[name]
    assert isinstance(vector, np.ndarray)
    return vector


def test_different_texts_are_far_apart(references: dict[str, Any]) -> None:
    found = np.concatenate([decoded(one, HIDDEN) for one in references["texts"].values()])
    cosines = found @ found.T
    np.fill_diagonal(cosines, -1)
    print(f"{NAME} dense, different texts: cosine at most {cosines.max():.4f} (under {MAX_COSINE_OF_OTHERS})")
    assert cosines.max() < MAX_COSINE_OF_OTHERS


class Wrong:
    """An encoder with one step replaced."""

    def __init__(self, encoder: Any, **steps: Callable[..., Any]) -> None:
        self._encoder = encoder
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        step = self._steps.get(name)
        if step is None:
            return getattr(self._encoder, name)
        return lambda *arguments: step(self._encoder, *arguments)


def _states(encoder: Any, tokens: Padded, **changes: Any) -> Any:
    """Last hidden states of the decoder, left to the caller to pool."""
    inputs = {"input_ids": tokens.ids, "attention_mask": tokens.mask, **changes}
    with torch.inference_mode():
        decoder = encoder._model[0].auto_model
        return decoder(**{k: torch.from_numpy(v) for k, v in inputs.items()}).last_hidden_state


def _positions(change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Rotary positions are relative, so moving all of them by one changes nothing, and must not."""

    def forward(encoder: Any, batch: Any) -> Any:
        counted = np.broadcast_to(np.arange(batch.tokens.ids.shape[1]), batch.tokens.ids.shape)
        return _states(encoder, batch.tokens, position_ids=np.ascontiguousarray(change(counted)))[:, -1]

    return forward


def _one_token_changed(encoder: Any, batch: Any) -> Any:
    ids = batch.tokens.ids.copy()
    ids[:, -2] = (ids[:, -2] + 1) % 100
    return _states(encoder, Padded(ids, batch.tokens.mask))[:, -1]


def _unmasked(encoder: Any, batch: Any) -> Any:
    return _states(encoder, batch.tokens, attention_mask=np.ones_like(batch.tokens.mask))[:, -1]


def _padded_on_the_right(encoder: Any, batch: Any) -> Any:
    """As if the last column were always the last token."""
    order = np.argsort(-batch.tokens.mask, axis=1, kind="stable")
    tokens = Padded(
        np.take_along_axis(batch.tokens.ids, order, 1), np.take_along_axis(batch.tokens.mask, order, 1)
    )
    return _states(encoder, tokens)[:, -1]


def _mean(encoder: Any, batch: Any) -> Any:
    mask = torch.from_numpy(batch.tokens.mask)[:, :, None]
    return (_states(encoder, batch.tokens) * mask).sum(1) / mask.sum(1)


def _unnormalised(encoder: Any, batch: Any, raw: Any, kinds: Any) -> Any:
    return {"dense": Dense(raw.numpy())}


def _no_prefix(encoder: Any, texts: list[str], side: str) -> Any:
    return encoder._tokenizer.prepare(texts, encoder.budget.tokens)


def _prefix_without_its_line_end(encoder: Any, texts: list[str], side: str) -> Any:
    prefix = encoder._prompt.document.rstrip("\n")
    return encoder._tokenizer.prepare([prefix + text for text in texts], encoder.budget.tokens)


#: Name of what is wrong, and the steps replaced. The texts are of two lengths, so one of them is padded.
CONTROLS: dict[str, dict[str, Any]] = {
    "no prefix": {"prepare": _no_prefix},
    "prefix without its line end": {"prepare": _prefix_without_its_line_end},
    "mask ignored": {"forward": _unmasked},
    "padded on the right": {"forward": _padded_on_the_right},
    "mean pooling": {"forward": _mean},
    "first-token pooling": {"forward": lambda e, b: _states(e, b.tokens)[:, b.tokens.mask.argmax(1).max()]},
    "the token before the last": {"forward": lambda e, b: _states(e, b.tokens)[:, -2]},
    "positions reversed": {"forward": _positions(lambda p: p[:, ::-1])},
    "positions twice as far apart": {"forward": _positions(lambda p: p * 2)},
    "one position off by one": {"forward": _positions(lambda p: p + (p == p.max()))},
    "one token changed": {"forward": _one_token_changed},
    "not normalised": {"finish": _unnormalised},
}


@pytest.mark.parametrize("wrong", CONTROLS)
def test_wrong_code_does_not_agree(encoder: Any, references: dict[str, Any], wrong: str) -> None:
    found = compared(Wrong(encoder, **CONTROLS[wrong]), references, ["two words", "code"])
    print(f"{NAME} dense, {wrong}: {found}")
    assert not found.holds


@pytest.mark.parametrize("shift", [0, 1])
def test_the_controls_own_arithmetic_agrees_where_nothing_is_wrong(
    encoder: Any, references: dict[str, Any], shift: int
) -> None:
    right = Wrong(encoder, forward=_positions(lambda p: p + shift))
    assert compared(right, references, ["two words", "code"]).holds


@pytest.mark.parametrize("limit", [MAX_TOKENS - 1, MAX_TOKENS // 2])
def test_another_limit_does_not_agree(
    encoder: Any, references: dict[str, Any], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder._tokenizer, "_max_tokens", limit)
    assert not compared(encoder, references, ["one over the limit"]).holds


def test_a_part_is_what_the_steps_give_in_a_space_of_made_up_vectors(encoders: dict[str, Any]) -> None:
    texts = list(TEXTS.values())
    for task, encoder in encoders.items():
        assert encoder.space("dense") == space_of(model(NAME), "dense", task, fake=True)
    part = encode(encoders["qa"], texts, "query", ["dense"], device_lock=threading.Lock())
    assert part.rejected == {}
    assert part.tokens_kept.max() == MAX_TOKENS
    np.testing.assert_allclose(
        part.vectors["dense"].values, vectors(encoders["qa"], texts, "query"), atol=1e-6
    )


@pytest.mark.parametrize("what", ["missing", "reshaped"])
def test_a_tensor_that_is_missing_or_of_another_shape_is_refused(
    small: Settings, tmp_path: Path, what: str
) -> None:
    from safetensors.torch import load_file, save_file

    path = tmp_path / "copy"
    shutil.copytree(small.weights[NAME], path)
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    whole = tensors.pop(name)
    if what == "reshaped":
        tensors[name] = whole[:-1].contiguous()
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    settings = load_settings(weights={NAME: path}, fake_weights=True, device="cpu")
    with pytest.raises(WeightsError, match=r"up_proj|cannot be loaded"):
        load_encoder(NAME, "", settings, ["dense"])


def _altered(small: Settings, path: Path, file: str, change: Callable[[Any], Any]) -> Settings:
    """Settings that serve a copy of the checkpoint whose one JSON file is changed in place."""
    shutil.copytree(small.weights[NAME], path)
    content = json.loads((path / file).read_text())
    change(content)
    (path / file).write_text(json.dumps(content))
    return load_settings(weights={NAME: path}, fake_weights=True, device="cpu")


def test_texts_are_tokenised_as_the_checkpoints_file_says(small: Settings, tmp_path: Path) -> None:
    def ends_in_a_token_and_ignores_case(content: Any) -> None:
        end = {"id": END, "ids": [_id_of(content, END)], "tokens": [END]}
        template = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}]
        content["normalizer"] = {"type": "Lowercase"}
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": template,
            "pair": [*template, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {END: end},
        }

    settings = _altered(small, tmp_path / "copy", "tokenizer.json", ends_in_a_token_and_ignores_case)
    made = load_encoder(NAME, "", settings, ["dense"])
    plain = load_encoder(NAME, "", small, ["dense"])
    (shouted,), (spoken,), (before,) = (
        encoder.prepare([text], "document").micro_batches[0].tokens.ids
        for encoder, text in ((made, "DEF"), (made, "def"), (plain, "def"))
    )
    np.testing.assert_array_equal(shouted, spoken)
    end = json.loads((tmp_path / "copy" / "tokenizer.json").read_text())
    assert shouted[-1] == _id_of(end, END)
    assert before[-1] != shouted[-1]


def _id_of(content: Any, token: str) -> int:
    (found,) = (added["id"] for added in content["added_tokens"] if added["content"] == token)
    return int(found)


def test_a_token_without_a_row_of_embeddings_is_refused(small: Settings, tmp_path: Path) -> None:
    def gap(content: Any) -> None:
        content["model"]["vocab"]["far away"] = 900_000

    settings = _altered(small, tmp_path / "copy", "tokenizer.json", gap)
    with pytest.raises(WeightsError, match=r"embeddings for \d+ tokens and a tokenizer of"):
        load_encoder(NAME, "", settings, ["dense"])


def test_prompts_of_another_model_are_refused(small: Settings, tmp_path: Path) -> None:
    def reword(content: Any) -> None:
        content["prompts"]["nl2code_document"] += " "

    settings = _altered(small, tmp_path / "copy", "config_sentence_transformers.json", reword)
    with pytest.raises(WeightsError, match="its prompt nl2code_document is"):
        load_encoder(NAME, "", settings, ["dense"])


def test_a_pooling_that_leaves_the_prompt_out_is_refused(small: Settings, tmp_path: Path) -> None:
    def leave_out(content: Any) -> None:
        content["include_prompt"] = False

    settings = _altered(small, tmp_path / "copy", "1_Pooling/config.json", leave_out)
    with pytest.raises(WeightsError, match="it leaves the prompt out of its pooling"):
        load_encoder(NAME, "", settings, ["dense"])


def test_a_module_that_the_model_does_not_have_is_refused(small: Settings, tmp_path: Path) -> None:
    from sentence_transformers.base.modules import Dense as Layer

    def also_through_a_layer(content: Any) -> None:
        kind = "sentence_transformers.models.Dense"
        content.append({"idx": len(content), "name": "2", "path": "2_Dense", "type": kind})

    settings = _altered(small, tmp_path / "copy", "modules.json", also_through_a_layer)
    (tmp_path / "copy" / "2_Dense").mkdir()
    Layer(HIDDEN, HIDDEN).save(str(tmp_path / "copy" / "2_Dense"))
    with pytest.raises(WeightsError, match="it goes through Dense"):
        load_encoder(NAME, "", settings, ["dense"])
