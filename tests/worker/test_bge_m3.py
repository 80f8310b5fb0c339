"""bge-m3 against the reference implementation's numbers, on a small seeded checkpoint; and wrong code against
the same numbers, which must not pass. `pytest -rA` shows every figure with its tolerance."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from registry.codecs import Multi, Sparse, Vectors, pack_part, unpack_part
from registry.errors import WeightsError
from registry.models import OutputKind, model
from registry.settings import Settings, load_settings
from registry.spaces import space_of
from tests.checkpoints.bge_m3 import MAX_TOKENS, build
from tests.checkpoints.jina_code import make_tokenizer
from tests.checkpoints.material import DIGEST, decoded, digests, sentence
from tests.references.agreement import MAX_COSINE_OF_OTHERS, Agreement, agreement, worst
from tests.references.bge_m3_cases import REFERENCES, TEXTS, rows_shown
from worker.encoders.check import check_vectors
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder
from worker.encoders.tokens import Padded
from worker.encoders.unpadded import useful

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.weights

KINDS: tuple[OutputKind, ...] = ("dense", "sparse", "multi")
#: What a text's outputs are compared as: dense `[1, d]`; token ids and weights `[1, n]`; rows `[n, d]`.
Outputs = dict[OutputKind, Any]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings that serve the small checkpoint."""
    path = build(tmp_path_factory.mktemp("bge") / "bge-m3")
    return load_settings(weights={"bge-m3": path}, fake_weights=True, device="cpu")


@pytest.fixture(scope="module")
def encoder(small: Settings) -> Any:
    """The encoder, loaded as a worker loads it."""
    return load_encoder("bge-m3", "", small, KINDS)


@pytest.fixture(scope="module")
def references() -> dict[str, Any]:
    """Reference outputs by the name of the text."""
    found: dict[str, Any] = json.loads(REFERENCES.read_text())["texts"]
    return found


def outputs(encoder: Any, texts: Sequence[str]) -> list[Outputs]:
    """Each text's outputs, in order, through prepare, forward and finish; unchecked."""
    found: list[Outputs] = [{} for _ in texts]
    for batch in encoder.prepare(texts, "document").micro_batches:
        vectors: dict[OutputKind, Vectors] = encoder.finish(batch, encoder.forward(batch), KINDS)
        for i, row in enumerate(batch.rows):
            sparse, multi = vectors["sparse"], vectors["multi"]
            assert isinstance(sparse, Sparse)
            assert isinstance(multi, Multi)
            found[row] = {
                "dense": vectors["dense"].values[i : i + 1],
                "sparse": sparse.row(i),
                "multi": multi.row(i),
            }
    return found


def compared(found: Outputs, wanted: dict[str, Any]) -> dict[OutputKind, Agreement]:
    """One text's outputs with their references."""
    tokens, weights = found["sparse"]
    dense, rows = found["dense"], found["multi"]
    expected = decoded(wanted["weights"], 1).T
    return {
        "dense": agreement(dense, decoded(wanted["dense"], dense.shape[1])),
        "sparse": agreement(
            weights[None], expected if tokens.tolist() == wanted["tokens"] else expected[:, :0, None]
        ),
        "multi": agreement(
            digests(rows[rows_shown(len(rows))]) if len(rows) == wanted["rows"] else rows,
            decoded(wanted["shown"], 2 * DIGEST),
        ),
    }


def agreements(
    encoder: Any, references: dict[str, Any], names: Sequence[str], *, together: bool = False
) -> dict[OutputKind, Agreement]:
    """The worst over the named texts, each alone or all in one padded batch."""
    texts = [TEXTS[name] for name in names]
    found = outputs(encoder, texts) if together else [outputs(encoder, [text])[0] for text in texts]
    each = [compared(one, references[name]) for one, name in zip(found, names, strict=True)]
    return {kind: worst([one[kind] for one in each]) for kind in KINDS}


@pytest.mark.parametrize("name", TEXTS)
def test_each_text_alone_agrees_with_the_reference(
    encoder: Any, references: dict[str, Any], name: str
) -> None:
    found = agreements(encoder, references, [name])
    for kind, one in found.items():
        print(f"bge-m3 {kind}, {name}: {one}")
    assert all(one.holds for one in found.values()), found


def test_all_texts_in_one_padded_batch_agree_with_the_reference(
    encoder: Any, references: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder.budget, "tokens", len(TEXTS) * MAX_TOKENS)
    assert len(encoder.prepare(list(TEXTS.values()), "document").micro_batches) == 1
    found = agreements(encoder, references, list(TEXTS), together=True)
    for kind, one in found.items():
        print(f"bge-m3 {kind}, {len(TEXTS)} texts in one batch: {one}")
    assert all(one.holds for one in found.values()), found


def test_different_texts_are_far_apart(references: dict[str, Any]) -> None:
    # A blank text is the empty one to the tokenizer.
    names = [name for name in TEXTS if name != "blank"]
    dense = np.concatenate([decoded(references[name]["dense"], 1024) for name in names])
    cosines = dense @ dense.T
    np.fill_diagonal(cosines, -1)
    print(f"bge-m3 dense, different texts: cosine at most {cosines.max():.4f} (under {MAX_COSINE_OF_OTHERS})")
    assert cosines.max() < MAX_COSINE_OF_OTHERS
    assert sum(len(entry["tokens"]) for entry in references.values()) > 200


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


def _model(encoder: Any, batch: Any, **changes: Any) -> Any:
    inputs = {"input_ids": batch.tokens.ids, "attention_mask": batch.tokens.mask, **changes}
    with torch.inference_mode():
        return encoder._model(**{k: torch.from_numpy(v) for k, v in inputs.items()}).last_hidden_state


def _positions_off_by_one(encoder: Any, batch: Any) -> Any:
    tokens: Padded = batch.tokens
    counted = np.where(tokens.ids == 1, 1, np.cumsum(tokens.ids != 1, axis=1) + 1)
    assert np.allclose(_model(encoder, batch, position_ids=counted), encoder.forward(batch), atol=1e-5)
    return _model(encoder, batch, position_ids=np.maximum(counted - 1, 0))


def _one_token_changed(encoder: Any, batch: Any) -> Any:
    ids = batch.tokens.ids.copy()
    ids[:, 1] += 1
    return _model(encoder, batch, input_ids=ids)


def _with(encoder: Any, batch: Any, raw: Any, **replaced: Any) -> dict[str, Any]:
    return {**encoder.finish(batch, raw, KINDS), **replaced}


def _pooled(pool: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def finish(encoder: Any, batch: Any, raw: Any, kinds: Any) -> Any:
        states = raw.clone()
        states[:, 0] = pool(raw, torch.from_numpy(batch.tokens.mask))
        return _with(encoder, batch, raw, dense=encoder.finish(batch, states, ["dense"])["dense"])

    return finish


def _unnormalised(encoder: Any, batch: Any, raw: Any, kinds: Any) -> Any:
    from registry.codecs import Dense

    return _with(encoder, batch, raw, dense=Dense(raw[:, 0].numpy()))


def _rows_from_the_first_token(encoder: Any, batch: Any, raw: Any, kinds: Any) -> Any:
    """As many rows as are right, `<s>` kept and `</s>` dropped."""
    states = torch.roll(raw, 1, dims=1)
    return _with(encoder, batch, raw, multi=encoder.finish(batch, states, ["multi"])["multi"])


def _all_rows(encoder: Any, batch: Any, raw: Any, kinds: Any) -> Any:
    """A row for `<s>`, too."""
    states = torch.cat([raw[:, :1], raw], dim=1)
    ids, mask = (
        np.pad(each, ((0, 0), (1, 0)), constant_values=1) for each in (batch.tokens.ids, batch.tokens.mask)
    )
    tokens = Padded(ids, mask)
    with torch.inference_mode():
        flat = useful(states, tokens)
        return _with(encoder, batch, raw, multi=encoder._rows(flat, tokens.starts, tokens.flat_ids))


def _rows_not_unit(encoder: Any, batch: Any, raw: Any, kinds: Any) -> Any:
    multi = encoder.finish(batch, raw, ["multi"])["multi"]
    return _with(encoder, batch, raw, multi=Multi(multi.values * 1.01, multi.offsets))


def _lexical(encoder: Any, batch: Any, raw: Any, combine: Callable[..., dict[int, float]]) -> Any:
    with torch.inference_mode():
        weights = encoder._sparse(raw)[:, :, 0].numpy()
    found = [
        combine(ids[mask == 1].tolist(), row[mask == 1].tolist())
        for ids, row, mask in zip(batch.tokens.ids, weights, batch.tokens.mask, strict=True)
    ]
    offsets = np.cumsum([0, *map(len, found)])
    indices = np.array([token for one in found for token in sorted(one)], np.int64)
    values = np.array([one[token] for one in found for token in sorted(one)], np.float32)
    return _with(encoder, batch, raw, sparse=Sparse(indices, values, offsets))


def _combined(combine: Callable[..., dict[int, float]]) -> Callable[..., Any]:
    def finish(encoder: Any, batch: Any, raw: Any, kinds: Any) -> Any:
        return _lexical(encoder, batch, raw, combine)

    return finish


def _largest(tokens: list[int], weights: list[float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for token, weight in zip(tokens, weights, strict=True):
        if weight > 0 and token > 3:
            found[token] = max(found.get(token, 0), weight)
    return found


def _sum(tokens: list[int], weights: list[float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for token, weight in zip(tokens, weights, strict=True):
        if weight > 0 and token > 3:
            found[token] = found.get(token, 0) + weight
    return found


def _last(tokens: list[int], weights: list[float]) -> dict[int, float]:
    return {t: w for t, w in zip(tokens, weights, strict=True) if w > 0 and t > 3}


def _specials_kept(tokens: list[int], weights: list[float]) -> dict[int, float]:
    return {
        **_largest(tokens, weights),
        **{t: abs(w) for t, w in zip(tokens, weights, strict=True) if t <= 3},
    }


def _no_relu(tokens: list[int], weights: list[float]) -> dict[int, float]:
    found: dict[int, float] = {}
    for token, weight in zip(tokens, weights, strict=True):
        if token > 3:
            found[token] = max(found.get(token, -9), weight)
    return found


def _prefixed(encoder: Any, texts: list[str], side: str) -> Any:
    return encoder.prepare(["query: " + text for text in texts], side)


#: Name of what is wrong; the outputs that must show it; the text it must show on; the steps replaced.
CONTROLS: list[tuple[str, tuple[OutputKind, ...], str, dict[str, Any]]] = [
    ("a prefix the model has not", KINDS, "129 tokens", {"prepare": _prefixed}),
    ("positions off by one", KINDS, "129 tokens", {"forward": _positions_off_by_one}),
    ("one token changed", KINDS, "513 tokens", {"forward": _one_token_changed}),
    ("mean pooling", ("dense",), "two words", {"finish": _pooled(lambda s, m: (s * m[:, :, None]).mean(1))}),
    ("last-token pooling", ("dense",), "two words", {"finish": _pooled(lambda s, m: s[:, -1])}),
    ("dense not normalised", ("dense",), "two words", {"finish": _unnormalised}),
    ("ColBERT with <s>, without </s>", ("multi",), "two words", {"finish": _rows_from_the_first_token}),
    ("ColBERT with both", ("multi",), "two words", {"finish": _all_rows}),
    ("ColBERT rows not unit", ("multi",), "two words", {"finish": _rows_not_unit}),
    ("sum of a token's weights", ("sparse",), "repeated", {"finish": _combined(_sum)}),
    ("last of a token's weights", ("sparse",), "repeated", {"finish": _combined(_last)}),
    ("special tokens weighted", ("sparse",), "specials inside", {"finish": _combined(_specials_kept)}),
    ("negative weights kept", ("sparse",), "code", {"finish": _combined(_no_relu)}),
]


@pytest.mark.parametrize(("wrong", "kinds", "name", "steps"), CONTROLS, ids=[c[0] for c in CONTROLS])
def test_wrong_code_does_not_agree(
    encoder: Any,
    references: dict[str, Any],
    wrong: str,
    kinds: tuple[OutputKind, ...],
    name: str,
    steps: dict[str, Any],
) -> None:
    found = agreements(Wrong(encoder, **steps), references, [name])
    for kind in kinds:
        print(f"bge-m3 {kind}, {wrong}, {name}: {found[kind]}")
    assert not any(found[kind].holds for kind in kinds), found
    # What the replaced step does not touch still agrees: the control is wrong in this one thing.
    assert all(found[kind].holds for kind in set(KINDS) - set(kinds)), found


def test_the_controls_own_arithmetic_agrees_where_nothing_is_wrong(
    encoder: Any, references: dict[str, Any]
) -> None:
    right = Wrong(encoder, finish=_combined(_largest), forward=_model)
    found = agreements(right, references, ["repeated", "specials inside", "code"])
    assert all(one.holds for one in found.values()), found


def test_an_ignored_mask_does_not_agree(encoder: Any, references: dict[str, Any]) -> None:
    names = ["repeated", "129 tokens"]
    unmasked = Wrong(encoder, forward=lambda e, b: _model(e, b, attention_mask=np.ones_like(b.tokens.mask)))
    found = agreements(unmasked, references, names, together=True)
    for kind, one in found.items():
        print(f"bge-m3 {kind}, mask ignored: {one}")
    assert not any(one.holds for one in found.values()), found
    assert all(one.holds for one in agreements(encoder, references, names, together=True).values())


@pytest.mark.parametrize("limit", [MAX_TOKENS - 1, MAX_TOKENS // 2])
def test_another_limit_does_not_agree(
    encoder: Any, references: dict[str, Any], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder._tokenizer, "_max_tokens", limit)
    found = agreements(encoder, references, ["one over the limit"])
    assert not any(one.holds for one in found.values()), found


def test_a_part_is_what_the_steps_give_and_survives_its_checks(encoder: Any) -> None:
    texts = list(TEXTS.values())
    part = encode(encoder, texts, "query", KINDS, device_lock=threading.Lock())
    assert part.rejected == {}
    assert part.tokens_kept.max() == MAX_TOKENS
    assert part.tokens_seen.max() > MAX_TOKENS
    standing = unpack_part(pack_part(part))
    for i, one in enumerate(outputs(encoder, texts)):
        np.testing.assert_allclose(part.vectors["dense"].values[i], one["dense"][0], atol=1e-6)
        sparse, multi = standing.vectors["sparse"], standing.vectors["multi"]
        assert isinstance(sparse, Sparse)
        assert isinstance(multi, Multi)
        np.testing.assert_array_equal(sparse.row(i)[0], one["sparse"][0])
        assert len(multi.row(i)) == part.tokens_kept[i] - 1
    for kind in KINDS:
        check_vectors(part.vectors[kind], encoder.space(kind), len(texts))


def test_a_text_of_special_tokens_alone_has_no_lexical_weights(encoder: Any) -> None:
    part = encode(
        encoder, [TEXTS["only specials"], "", "red tree"], "document", KINDS, device_lock=threading.Lock()
    )
    sparse = part.vectors["sparse"]
    assert isinstance(sparse, Sparse)
    assert [len(sparse.row(i)[0]) for i in range(2)] == [0, 0]
    assert part.rejected == {}


def test_only_the_outputs_asked_for_are_computed(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_colbert", None)
    monkeypatch.setattr(encoder, "_sparse", None)
    (batch,) = encoder.prepare(["red tree"], "document").micro_batches
    assert set(encoder.finish(batch, encoder.forward(batch), ["dense"])) == {"dense"}


def test_sides_do_not_differ_and_the_space_is_of_made_up_vectors(encoder: Any) -> None:
    texts = [sentence(20)]
    a, b = (
        encode(encoder, texts, side, KINDS, device_lock=threading.Lock()) for side in ("query", "document")
    )
    np.testing.assert_array_equal(a.vectors["dense"].values, b.vectors["dense"].values)
    for kind in KINDS:
        assert encoder.space(kind) == space_of(model("bge-m3"), kind, fake=True)
    assert encoder.numerics.backend == "transformers"
    assert encoder.numerics.dtype == "float32"


def test_the_recipe_makes_the_same_bytes_again(small: Settings, tmp_path: Path) -> None:
    again = build(tmp_path / "again")
    for name in ("pytorch_model.bin", "colbert_linear.pt", "sparse_linear.pt"):
        first = torch.load(small.weights["bge-m3"] / name, weights_only=True)
        second = torch.load(again / name, weights_only=True)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def altered(small: Settings, path: Path, file: str) -> tuple[Settings, Path]:
    """A copy of the checkpoint whose `file` may be replaced, and that file."""
    shutil.copytree(small.weights["bge-m3"], path)
    return load_settings(weights={"bge-m3": path}, fake_weights=True, device="cpu"), path / file


def refused(settings: Settings) -> str:
    with pytest.raises(WeightsError) as caught:
        load_encoder("bge-m3", "", settings, KINDS)
    return str(caught.value)


def test_a_tensor_too_few_too_many_or_of_another_shape_is_refused(small: Settings, tmp_path: Path) -> None:
    settings, file = altered(small, tmp_path / "copy", "pytorch_model.bin")
    whole = torch.load(file, weights_only=True)
    name = "encoder.layer.1.output.dense.weight"
    for changed in (
        {key: value for key, value in whole.items() if key != name},
        {**whole, name.replace("layer.1", "layer.2"): whole[name]},
        {**whole, name: whole[name][:, :-1].contiguous()},
    ):
        torch.save(changed, file)
        said = refused(settings)
        assert "pytorch_model.bin" in said or str(file.parent) in said
        assert "output.dense.weight" in said
    torch.save({key: value for key, value in whole.items() if not key.startswith("pooler.")}, file)
    load_encoder("bge-m3", "", settings, KINDS).close()


@pytest.mark.parametrize("head", ["colbert_linear.pt", "sparse_linear.pt"])
def test_a_head_that_is_not_this_models_is_refused(small: Settings, tmp_path: Path, head: str) -> None:
    settings, file = altered(small, tmp_path / "copy", head)
    whole = torch.load(file, weights_only=True)
    for changed in (
        {"weight": whole["weight"]},
        {**whole, "scale": whole["bias"]},
        {**whole, "weight": whole["weight"][:, :-1].contiguous()},
        [whole["weight"]],
        {**whole, "bias": _NotATensor()},
    ):
        torch.save(changed, file)
        said = refused(settings)
        assert head in said
        assert "take the snapshot" in said


class _NotATensor:
    """Unpickled, it would be an object of this module."""


def test_a_tokenizer_of_another_checkpoint_is_refused(small: Settings, tmp_path: Path) -> None:
    settings, file = altered(small, tmp_path / "copy", "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.add_tokens([f"further{i}" for i in range(10)])
    tokenizer.save(str(file))
    assert "a tokenizer of" in refused(settings)
    shutil.copy(build_qwen(tmp_path / "other"), file)
    assert "'<s>'" in refused(settings)
    file.write_text("{}")
    assert "tokenizer.json cannot be read" in refused(settings)


def build_qwen(path: Path) -> Path:
    """A tokenizer without the tokens that bge-m3 leaves unweighted."""
    path.mkdir()
    make_tokenizer().save(str(path / "tokenizer.json"))
    return path / "tokenizer.json"
