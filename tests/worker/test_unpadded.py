"""Texts without padding between them: the vectors that padded ones have, and padding where that is not so."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from registry.codecs import Dense, Multi, Part, Sparse
from registry.errors import DeviceFailed, EncodeError, InfrastructureError
from registry.models import OutputKind, model
from registry.settings import load_settings
from tests.checkpoints import bge_m3, jina_code, jina_v4
from tests.checkpoints.material import sentence
from worker.encoders.base import Encoder
from worker.encoders.budget import FILE
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder
from worker.encoders.tokens import Packed, TextTokenizer, pack

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from worker.encoders import torch_runtime, unpadded  # noqa: E402
from worker.encoders.torch_runtime import TorchRuntime  # noqa: E402

pytestmark = pytest.mark.weights

BGE, CODE, V4, MINILM = "bge-m3", "jina-code-embeddings-1.5b", "jina-embeddings-v4", "all-miniLM-l6"
KINDS: dict[str, tuple[OutputKind, ...]] = {
    BGE: ("dense", "sparse", "multi"),
    CODE: ("dense",),
    V4: ("dense", "multi"),
    MINILM: ("dense",),
}
RECIPES: dict[str, ModuleType] = {BGE: bge_m3, CODE: jina_code, V4: jina_v4}
#: Lengths from one word to over the limit of all small models but jina-embeddings-v4; a text of its own
#: with padding inside; the same text twice.
TEXTS = [
    "river",
    "def add(a, b):\n    return a + b",
    *(sentence(n, seed) for seed, n in enumerate((3, 9, 40, 170, 171, 590, 700))),
    "the stone <pad> and the <pad><pad> river </s> <s> tree <|endoftext|>",
    sentence(9, 1),
]
#: More tokens than the small models have positions.
BUDGET = 2048


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Loads a model; its small checkpoint is made once."""
    paths: dict[str, Path] = {}

    def load(name: str, attention: str = "unpadded", truncation: str = "cut", **settings: Any) -> Any:
        if name in RECIPES and name not in paths:
            paths[name] = RECIPES[name].build(tmp_path_factory.mktemp("weights") / name)
        given = {"weights": paths, "fake_weights": True} if name in RECIPES else {}
        given |= {"device": "cpu", "attention": attention, "data_dir": tmp_path_factory.mktemp("data")}
        settings = load_settings(**{**given, "micro_batch_tokens": BUDGET, **settings})
        return load_encoder(name, "", settings, KINDS[name], truncation=truncation)

    return load


def texts_for(name: str) -> list[str]:
    """Without the long ones for the model that has no limit here."""
    return [text for text in TEXTS if name != V4 or len(text) < 600]


def run(encoder: Encoder, texts: Sequence[str]) -> Part:
    return encode(encoder, texts, "document", KINDS[encoder.model], device_lock=threading.Lock())


def close(found: Part, wanted: Part, *, atol: float = 1e-5) -> None:
    """Assert that two parts hold the same vectors."""
    assert found.rejected == wanted.rejected == {}
    assert found.vectors.keys() == wanted.vectors.keys()
    for kind, one in found.vectors.items():
        other: Any = wanted.vectors[kind]
        np.testing.assert_allclose(one.values, other.values, atol=atol)
        if isinstance(one, Dense | Multi):
            assert (one.values * other.values).sum(axis=1).min() > 0.999999
        if isinstance(one, Sparse | Multi):
            np.testing.assert_array_equal(one.offsets, other.offsets)
        if isinstance(one, Sparse):
            np.testing.assert_array_equal(one.indices, other.indices)


@pytest.mark.parametrize("name", KINDS)
def test_packed_texts_have_the_vectors_of_padded_ones(name: str, loaded: Callable[..., Any]) -> None:
    packed, padded = loaded(name), loaded(name, "padded")
    texts = texts_for(name)
    prepared = packed.prepare(texts, "document")
    batch = max(prepared.micro_batches, key=lambda batch: batch.padded_tokens)
    assert isinstance(batch.tokens, Packed)
    assert len(batch.rows) > 1
    assert batch.useful_tokens == batch.padded_tokens == batch.tokens.ids.size <= BUDGET
    if name != V4:
        assert batch.padded_tokens > getattr(RECIPES.get(name), "MAX_TOKENS", 512)
    assert batch.longest == batch.tokens.longest == prepared.tokens_kept[list(batch.rows)].max()
    found, wanted = run(packed, texts), run(padded, texts)
    close(found, wanted)
    assert found.notes["padded_tokens"] == found.notes["useful_tokens"] == wanted.notes["useful_tokens"]
    assert wanted.notes["padded_tokens"] > wanted.notes["useful_tokens"]
    assert (found.notes["attention"], wanted.notes["attention"]) == (unpadded.EACH, "")


@pytest.mark.parametrize("name", [BGE, CODE])
def test_windows_of_long_texts_do_too(name: str, loaded: Callable[..., Any]) -> None:
    texts = [sentence(1500, 3), "river", sentence(800, 4)]
    found = run(loaded(name, truncation="split-and-pool"), texts)
    assert set(found.notes["windows"]) == {"0", "2"}
    close(found, run(loaded(name, "padded", truncation="split-and-pool"), texts))


@pytest.mark.parametrize("name", KINDS)
def test_neighbours_change_nothing(name: str, loaded: Callable[..., Any]) -> None:
    encoder = loaded(name)
    texts = texts_for(name)
    among = run(encoder, texts)
    for row in (0, 4, -2):
        alone = run(encoder, [texts[row]])
        for kind, vectors in alone.vectors.items():
            others: Any = among.vectors[kind]
            at = row % len(texts)
            span = slice(at, at + 1) if isinstance(vectors, Dense) else slice(*others.offsets[at : at + 2])
            np.testing.assert_allclose(vectors.values, others.values[span], atol=1e-5)


def test_packing_keeps_the_budget_by_the_sum_of_tokens() -> None:
    lengths = np.random.default_rng(3).integers(1, 300, 500).astype(np.int32)
    batches = pack(lengths, 256, packed=True)
    assert sorted(row for rows in batches for row in rows) == list(range(500))
    totals = [int(lengths[list(rows)].sum()) for rows in batches]
    assert all(total <= 256 or len(rows) == 1 for total, rows in zip(totals, batches, strict=True))
    firsts = [int(lengths[rows[0]]) for rows in batches]
    assert firsts == sorted(firsts, reverse=True)
    # Nothing that would have fitted was left to the next.
    assert all(total + first > 256 for total, first in zip(totals, firsts[1:], strict=False))


def test_positions_begin_anew_with_each_text() -> None:
    tokens = Packed(np.array([5, 1, 6, 7, 8, 1]), np.array([0, 3, 4, 6], np.int32))
    assert tokens.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert tokens.counted((tokens.flat_ids != 1).astype(np.int64)).tolist() == [0, 1, 1, 0, 0, 1]
    assert tokens.longest == 3


def test_a_text_without_tokens_is_refused_and_takes_none_of_its_neighbours_for_its_own(
    loaded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = loaded(CODE)
    monkeypatch.setattr(type(encoder), "_prefix", lambda *_: "")
    part = run(encoder, ["river", "", "stone"])
    assert set(part.rejected) == {1}
    assert "without any token" in part.rejected[1]
    with pytest.raises(EncodeError):
        TextTokenizer._micro_batch(encoder._tokenizer, (0,), [[]])


def test_memory_for_fewer_tokens_halves_the_packed_micro_batch(
    loaded: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    encoder = loaded(BGE, data_dir=tmp_path, micro_batch_tokens=0)
    wanted, forward = run(encoder, TEXTS), encoder.forward
    assert encoder.budget.tokens == 1024

    def small(batch: Any) -> Any:
        if batch.padded_tokens > 620:
            raise MemoryError("too large")
        return forward(batch)

    monkeypatch.setattr(encoder, "forward", small)
    found = run(encoder, TEXTS)
    assert found.notes["oom"] > 0
    assert encoder.budget.tokens == 512
    # The longest text that went through, not the mean of its micro-batch.
    assert encoder.budget.widest == bge_m3.MAX_TOKENS
    close(found, wanted)
    (name,) = json.loads((tmp_path / FILE).read_text())
    assert "transformers unpadded on" in name


AMPERE, TURING, HOPPER = (8, 0), (7, 5), (9, 0)
HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32


@pytest.mark.parametrize(
    ("asked", "kind", "capability", "dtype", "wanted"),
    [
        ("auto", "cuda", AMPERE, HALF, unpadded.VARLEN),
        ("auto", "cuda", HOPPER, BRAIN, unpadded.VARLEN),
        ("auto", "cuda", AMPERE, FULL, unpadded.PADDED),
        ("auto", "cuda", TURING, HALF, unpadded.PADDED),
        ("auto", "cpu", (0, 0), FULL, unpadded.PADDED),
        ("unpadded", "cuda", AMPERE, BRAIN, unpadded.VARLEN),
        ("unpadded", "cuda", TURING, HALF, unpadded.EACH),
        ("unpadded", "cuda", HOPPER, FULL, unpadded.EACH),
        ("unpadded", "cpu", (0, 0), FULL, unpadded.EACH),
        ("padded", "cuda", HOPPER, BRAIN, unpadded.PADDED),
    ],
)
def test_which_attention_a_device_takes(
    asked: Any, kind: str, capability: tuple[int, int], dtype: Any, wanted: str
) -> None:
    assert unpadded.attention_for(asked, kind, capability, dtype) == wanted


def _kernel(
    query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, **options: Any
) -> Any:
    """What torch documents of `varlen_attn`, by a mask over all texts at once."""
    assert query.shape[0] == key.shape[0] == value.shape[0] == int(cu_q[-1])
    assert cu_q.dtype == cu_k.dtype == torch.int32
    assert max_q == max_k == int(cu_q.diff().max())
    assert options.keys() == {"scale", "window_size", "enable_gqa", "num_splits"}
    assert options["num_splits"] == 1
    assert options["enable_gqa"] == (query.shape[1] != key.shape[1])
    text = torch.repeat_interleave(torch.arange(len(cu_q) - 1), cu_q.diff())
    mask = text[:, None] == text[None]
    if options["window_size"] == (-1, 0):
        mask = mask.tril()
    else:
        assert options["window_size"] == (-1, -1)
    q, k, v = (each.transpose(0, 1)[None] for each in (query, key, value))
    states = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=options["scale"], enable_gqa=options["enable_gqa"]
    )
    return states[0].transpose(0, 1)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A CPU with the GPU's kernel."""
    monkeypatch.setattr(unpadded, "varlen_attn", _kernel)
    monkeypatch.setattr(torch_runtime, "attention_for", lambda *_: unpadded.VARLEN)
    return monkeypatch


@pytest.mark.parametrize("name", KINDS)
def test_the_kernel_is_called_as_it_is_documented(
    name: str, loaded: Callable[..., Any], kernel: pytest.MonkeyPatch
) -> None:
    encoder = loaded(name)
    assert encoder.numerics.attention == unpadded.VARLEN
    found = run(encoder, texts_for(name))
    kernel.undo()
    close(found, run(loaded(name, "padded"), texts_for(name)))


def _raises(error: Exception) -> Callable[..., Any]:
    def kernel(*_: Any, **__: Any) -> Any:
        raise error

    return kernel


def _never_causal(*given: Any, **options: Any) -> Any:
    return _kernel(*given, **{**options, "window_size": (-1, -1)})


def _one_text(query: Any, key: Any, value: Any, *_: Any, **options: Any) -> Any:
    starts, length = torch.tensor([0, len(query)], dtype=torch.int32), len(query)
    return _kernel(query, key, value, starts, starts, length, length, **options)


def _unscaled(*given: Any, **options: Any) -> Any:
    return _kernel(*given, **{**options, "scale": 1.0})


def _no_number(*given: Any, **options: Any) -> Any:
    states = _kernel(*given, **options)
    states[-1, -1, -1] = torch.nan
    return states


LIES = [_never_causal, _one_text, _unscaled, _no_number]


@pytest.mark.parametrize(
    "wrong",
    [
        *LIES,
        _raises(NotImplementedError("no such operator")),
        _raises(RuntimeError("FlashAttention only supports Ampere GPUs or newer.")),
        _raises(RuntimeError("CUDA error: no kernel image is available for execution on the device")),
    ],
)
def test_a_kernel_that_fails_or_lies_at_the_start_leaves_the_texts_padded(
    wrong: Callable[..., Any], kernel: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.setattr(unpadded, "varlen_attn", wrong)
    for name in (CODE, BGE):
        caplog.clear()
        runtime = TorchRuntime(model(name), load_settings(device="cpu"))
        runtime.leave_out_padding()
        assert not runtime.packed
        assert runtime.numerics("transformers").attention == ""
        assert f"{name} on cpu: attention without padding (varlen) is of no use" in caplog.text
        assert ("off by" in caplog.text) == (
            wrong in LIES and wrong is not _no_number
        ) or "nan" in caplog.text


def test_what_the_format_rounds_is_no_lie(kernel: pytest.MonkeyPatch) -> None:
    def rounded(query: Any, key: Any, value: Any, *starts: Any, **options: Any) -> Any:
        exact = _kernel(*(each.float() for each in (query, key, value)), *starts, **options)
        return exact.to(query.dtype)

    kernel.setattr(unpadded, "varlen_attn", rounded)
    sizes = model(CODE).architecture
    for dtype in (HALF, BRAIN):
        assert unpadded.problem_of(unpadded.VARLEN, sizes, device="cpu", dtype=dtype) == ""
    for lie in LIES:
        kernel.setattr(unpadded, "varlen_attn", lie)
        assert unpadded.problem_of(unpadded.VARLEN, sizes, device="cpu", dtype=BRAIN)


def test_a_device_that_fails_or_is_full_at_the_trial_is_no_reason_for_padding(
    kernel: pytest.MonkeyPatch,
) -> None:
    runtime = TorchRuntime(model(CODE), load_settings(device="cpu"))
    kernel.setattr(unpadded, "varlen_attn", _raises(RuntimeError("CUDA error: an illegal memory access")))
    with pytest.raises(DeviceFailed, match="V5_ATTENTION=padded"):
        runtime.leave_out_padding()
    kernel.setattr(unpadded, "varlen_attn", _raises(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(InfrastructureError, match="does not fit"):
        runtime.leave_out_padding()


def test_a_sliding_window_is_refused() -> None:
    with pytest.raises(ValueError, match="V5_ATTENTION=padded"):
        unpadded._each(
            None, *(torch.zeros(1, 1, 2, 8),) * 3, None, cu_seq_lens_q=None, scaling=1.0, sliding_window=4
        )
