"""Golden vectors: right encoders agree, also in other numerics; wrong code and wrong weights do not."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.codecs import Dense, Multi, Part, Sparse, Vectors, pack_part
from registry.errors import CodecError, GoldenMismatch, InfrastructureError
from registry.models import MODELS, OutputKind, model
from registry.settings import load_settings
from registry.spaces import space_of
from worker.encoders.base import Encoder
from worker.encoders.factory import load_encoder
from worker.encoders.fake import FakeEncoder
from worker.encoders.goldens import (
    AGREEMENT,
    ROWS,
    TEXTS,
    Golden,
    agreement,
    measure,
    pack_golden,
    unpack_golden,
)
from worker.encoders.minilm_goldens import shipped

KINDS: tuple[OutputKind, ...] = ("dense", "sparse", "multi")
#: What a store keeps beside a collection in one note. Characters of base64.
MOST_NOTED = 64 * 1024


class Changed:
    """An encoder whose vectors of an output are changed on their way out."""

    def __init__(self, encoder: Any, **changes: Any) -> None:
        self._encoder = encoder
        self._changes = changes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def finish(self, batch: Any, raw: Any, kinds: Sequence[OutputKind]) -> dict[OutputKind, Vectors]:
        made = self._encoder.finish(batch, raw, kinds)
        return {kind: self._changes.get(kind, lambda v: v)(vectors) for kind, vectors in made.items()}


def fake(name: str = "bge-m3") -> FakeEncoder:
    return FakeEncoder(model(name), "", load_settings(fake_encoders=True))


def unit(values: Any) -> Any:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def worst(golden: Golden, encoder: Any, kind: OutputKind) -> float:
    """The agreement of an encoder that must fail, printed, as a number under the limit."""
    found = agreement(golden, measure(encoder, [kind])[kind])
    print(f"{kind}: cosine {found.worst:.5f}, must be under {AGREEMENT}: {found.problem}")
    assert found.problem
    return found.worst


def test_the_texts_are_those_that_standing_goldens_were_made_of() -> None:
    said = repr(TEXTS).encode()
    assert hashlib.sha256(said).hexdigest()[:16] == "92fcff8a0247b620"
    assert len(TEXTS) == 5


@pytest.mark.parametrize("name", [spec.name for spec in MODELS.values() if not spec.reranker])
def test_a_golden_survives_its_blob_and_fits_a_note(name: str) -> None:
    encoder = fake(name)
    for kind, golden in measure(encoder, [o.kind for o in model(name).outputs]).items():
        blob = pack_golden(golden)
        assert len(base64.b64encode(blob)) < MOST_NOTED
        again = unpack_golden(blob)
        assert (again.tokens, again.rows) == (golden.tokens, golden.rows)
        assert agreement(again, golden).worst > 0.999999
        assert agreement(golden, measure(encoder, [kind], alone=True)[kind]).problem == ""


def test_the_largest_golden_fits_a_note() -> None:
    rows = ROWS * len(TEXTS)
    values = np.random.default_rng(0).normal(size=(rows, 1024)).astype(np.float32)
    multi = Multi(values, np.arange(0, rows + 1, ROWS))
    golden = Golden((9000,) * len(TEXTS), (9000,) * len(TEXTS), multi)
    assert len(base64.b64encode(pack_golden(golden))) < MOST_NOTED


def test_blobs_that_are_no_goldens_are_refused() -> None:
    with pytest.raises(CodecError, match="2 texts"):
        unpack_golden(pack_part(Part({"dense": Dense(np.ones((2, 3), np.float32))}, np.ones(2), np.ones(2))))
    blob = bytearray(pack_golden(measure(fake(), ["dense"])["dense"]))
    blob[-1] ^= 1
    with pytest.raises(CodecError, match="checksum"):
        unpack_golden(bytes(blob))


def test_rows_kept_are_the_first_the_last_and_between() -> None:
    golden = measure(fake(), ["multi"])["multi"]
    assert isinstance(golden.vectors, Multi)
    assert np.diff(golden.vectors.offsets).max() <= ROWS
    values = np.eye(64, dtype=np.float32)[:10]

    class Ten(Changed):
        pass

    ten = Ten(fake(), multi=lambda v: Multi(np.tile(np.pad(values, ((0, 0), (0, 960))), (len(v), 1)),
                                             np.arange(len(v) + 1) * 10))  # fmt: skip
    kept = measure(ten, ["multi"])["multi"]  # type: ignore[arg-type]
    assert kept.rows == (10,) * 5
    assert isinstance(kept.vectors, Multi)
    assert kept.vectors.row(0).argmax(axis=1).tolist() == [0, 3, 6, 9]


@pytest.mark.parametrize("kind", ["dense", "multi"])
def test_rounding_passes_and_noise_does_not(kind: OutputKind) -> None:
    encoder = fake()
    golden = measure(encoder, [kind])[kind]

    def noisy(deviation: float) -> Any:
        def change(vectors: Any) -> Any:
            noise = np.random.default_rng(1).normal(0, deviation, vectors.values.shape)
            values = unit(vectors.values + noise).astype(np.float32)
            return Dense(values) if isinstance(vectors, Dense) else Multi(values, vectors.offsets)

        return Changed(encoder, **{kind: change})

    # bfloat16 keeps 8 bits; over 1024 values of a unit vector that is a noise of about 1e-4 each.
    for deviation in (1e-5, 1e-4, 1e-3):
        found = agreement(golden, measure(noisy(deviation), [kind])[kind])
        print(f"{kind}: noise {deviation} on each value: cosine {found.worst:.6f}")
        assert found.problem == ""
    assert worst(golden, noisy(1e-2), kind) < AGREEMENT


@pytest.mark.parametrize(("distance", "passes"), [(0.9e-3, True), (1.1e-3, False)])
def test_the_limit_is_a_cosine_of_0999(distance: float, passes: bool) -> None:
    encoder = fake("all-miniLM-l6")
    golden = measure(encoder, ["dense"])["dense"]

    def turned(vectors: Any) -> Any:
        values = vectors.values.astype(np.float64)
        side = np.roll(values, 1, axis=1)
        side = unit(side - (side * values).sum(axis=1, keepdims=True) * values)
        cosine = 1 - distance
        return Dense((cosine * values + np.sqrt(1 - cosine**2) * side).astype(np.float32))

    found = agreement(golden, measure(Changed(encoder, dense=turned), ["dense"])["dense"])  # type: ignore[arg-type]
    assert found.worst == pytest.approx(1 - distance, abs=1e-5)
    assert (found.problem == "") is passes


def test_of_sparse_vectors_only_tiny_weights_may_come_and_go() -> None:
    encoder = fake()
    golden = measure(encoder, ["sparse"])["sparse"]

    def one_more(weight: float) -> Any:
        def change(vectors: Sparse) -> Sparse:
            # Token 249_999 is in no made-up vector of these texts.
            rows = [vectors.row(i) for i in range(len(vectors))]
            assert not any(249_999 in ids for ids, _ in rows)
            ids = [np.append(ids, 249_999) for ids, _ in rows]
            values = [np.append(v, np.float32(weight * v.max())) for _, v in rows]
            offsets = np.cumsum([0, *map(len, ids)])
            return Sparse(np.concatenate(ids), np.concatenate(values).astype(np.float32), offsets)

        return Changed(encoder, sparse=change)

    assert agreement(golden, measure(one_more(0.005), ["sparse"])["sparse"]).problem == ""
    assert worst(golden, one_more(0.02), "sparse") < AGREEMENT
    doubled = Changed(encoder, sparse=lambda v: Sparse(v.indices, v.values * 2, v.offsets))
    assert agreement(golden, measure(doubled, ["sparse"])["sparse"]).worst > AGREEMENT  # type: ignore[arg-type]


def test_texts_that_have_no_sparse_weight_agree() -> None:
    nothing = Sparse(np.empty(0, np.int64), np.empty(0, np.float32), np.zeros(len(TEXTS) + 1, np.int64))
    golden = Golden((1,) * len(TEXTS), (1,) * len(TEXTS), nothing)
    assert agreement(unpack_golden(pack_golden(golden)), golden).problem == ""


def test_a_text_that_is_refused_is_a_mismatch_and_no_memory_is_not() -> None:
    def failing(error: Exception) -> Any:
        class Failing(Changed):
            def forward(self, batch: Any) -> Any:
                if batch.useful_tokens > 50:
                    raise error
                return self._encoder.forward(batch)

        return Failing(fake())

    with pytest.raises(GoldenMismatch, match="cannot embed a golden text: ValueError: broken"):
        measure(failing(ValueError("broken")), ["dense"])
    with pytest.raises(InfrastructureError, match="MemoryError"):
        measure(failing(MemoryError("too small")), ["dense"])


def test_goldens_are_shipped_for_the_minilm_space_alone() -> None:
    spec = model("all-miniLM-l6")
    assert shipped(space_of(spec, "dense")) is not None
    assert shipped(space_of(spec, "dense", fake=True)) is None
    assert shipped(space_of(model("bge-m3"), "dense")) is None


@pytest.mark.weights
class TestRealWeights:
    """The MiniLM pair."""

    @pytest.mark.parametrize("which", ["onnx_encoder", "torch_encoder"])
    def test_both_entries_give_the_shipped_goldens(self, which: str, request: pytest.FixtureRequest) -> None:
        encoder: Encoder = request.getfixturevalue(which)
        golden = shipped(encoder.space("dense"))
        assert golden is not None
        assert 128 < golden.tokens[1] < 256
        for alone in (False, True):
            found = agreement(golden, measure(encoder, ["dense"], alone=alone)["dense"])
            print(f"{which}: smallest cosine {found.worst:.7f}")
            assert found.worst > 0.99999

    @pytest.fixture
    def fresh(self) -> Any:
        """An encoder that a test may damage."""
        encoder = load_encoder("all-miniLM-l6", "", load_settings(device="cpu"), ["dense"])
        yield encoder
        encoder.close()

    def test_bfloat16_shares_the_space(self, fresh: Any) -> None:
        golden = shipped(fresh.space("dense"))
        assert golden is not None
        fresh._model[0].auto_model.bfloat16()
        found = agreement(golden, measure(fresh, ["dense"])["dense"])
        print(f"MiniLM in bfloat16: smallest cosine {found.worst:.6f}")
        assert AGREEMENT <= found.worst < 0.99999

    def test_one_changed_tensor_does_not_pass(self, fresh: Any) -> None:
        golden = shipped(fresh.space("dense"))
        assert golden is not None
        weight = fresh._model[0].auto_model.encoder.layer[3].output.dense.weight
        weight.data = weight.data.roll(1, dims=0)
        worst(golden, fresh, "dense")

    def test_wrong_code_does_not_pass(self, torch_encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        golden = shipped(torch_encoder.space("dense"))
        assert golden is not None
        pooling = torch_encoder._model[1]
        monkeypatch.setattr(pooling, "pooling_mode", "cls")
        worst(golden, torch_encoder, "dense")
        monkeypatch.undo()
        tokenizer = torch_encoder._tokenizer
        monkeypatch.setattr(tokenizer, "_max_tokens", 128)
        found = measure(torch_encoder, ["dense"])["dense"]
        assert agreement(golden, found).problem, "a cut at 128 tokens"
        monkeypatch.undo()

        class Prefixed(Changed):
            def prepare(self, texts: Any, side: Any) -> Any:
                return self._encoder.prepare(["passage: " + text for text in texts], side)

        worst(golden, Prefixed(torch_encoder), "dense")


@pytest.mark.weights
def test_another_adapter_or_prompt_of_one_model_does_not_pass(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.checkpoints import jina_v4

    path = jina_v4.build(tmp_path / "v4")
    settings = load_settings(device="cpu", threads=1, fake_weights=True, weights={"jina-embeddings-v4": path})
    kinds: tuple[OutputKind, ...] = ("dense", "multi")
    retrieval: Any = load_encoder("jina-embeddings-v4", "retrieval", settings, kinds)
    code = load_encoder("jina-embeddings-v4", "code", settings, kinds)
    goldens = measure(retrieval, kinds)
    for kind in kinds:
        assert agreement(goldens[kind], measure(retrieval, kinds, alone=True)[kind]).problem == ""
        worst(goldens[kind], code, kind)
    code.close()
    retrieval._prompt = model("jina-embeddings-v4").prompts["text-matching"]
    for kind in kinds:
        assert agreement(goldens[kind], measure(retrieval, kinds)[kind]).problem


@pytest.mark.weights
def test_another_pooling_head_or_row_does_not_pass(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from tests.checkpoints import bge_m3

    settings = load_settings(
        device="cpu", threads=1, fake_weights=True, weights={"bge-m3": bge_m3.build(tmp_path / "bge")}
    )
    encoder: Any = load_encoder("bge-m3", "", settings, KINDS)
    goldens = measure(encoder, KINDS)
    alone = measure(encoder, KINDS, alone=True)
    for kind in KINDS:
        assert agreement(goldens[kind], alone[kind]).problem == ""

    class Last(Changed):
        def forward(self, batch: Any) -> Any:
            return torch.roll(self._encoder.forward(batch), 1, dims=1)

    for kind in KINDS:
        worst(goldens[kind], Last(encoder), kind)
    # A row more for each text: the state of <s> is not left out.
    with_first = Changed(
        encoder,
        multi=lambda v: Multi(
            np.concatenate([np.concatenate([v.row(i)[:1], v.row(i)]) for i in range(len(v))]),
            v.offsets + np.arange(len(v) + 1),
        ),
    )
    assert "rows" in agreement(goldens["multi"], measure(with_first, ["multi"])["multi"]).problem  # type: ignore[arg-type]
    encoder._sparse.weight.data = encoder._sparse.weight.data.roll(1)
    worst(goldens["sparse"], encoder, "sparse")
    encoder._colbert.weight.data = encoder._colbert.weight.data.roll(1)
    worst(goldens["multi"], encoder, "multi")
    assert agreement(goldens["dense"], measure(encoder, KINDS)["dense"]).problem == ""
