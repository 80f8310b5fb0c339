"""Real weights: the two MiniLM entries agree with each other and with upstream's own encode."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from registry.codecs import Dense
from registry.errors import FleetError, WeightsError
from registry.models import model
from registry.settings import Settings, load_settings
from worker.encoders.base import Encoder
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder, warm_up
from worker.encoders.pooling import masked_mean, unit
from worker.encoders.tokens import TextTokenizer
from worker.onnx_export import exported
from worker.weights import locate

pytestmark = pytest.mark.weights

Floats = npt.NDArray[np.floating[Any]]
MIN_COSINE = 0.9999
LENGTHS = (1, 2, 5, 17, 64, 126, 127, 128, 129, 130, 200, 254, 255, 256, 257, 258, 300)
ODD = (
    "",
    "🙂🎉 emoji 👩‍👩‍👧",
    "a\x00b NUL byte",
    "汉字 漢字 かな",
    "x" * 5000,
    "Größe naïve ÅNGSTRÖM",
    "https://example.org/cat.png",
    "pyproject.toml",
    "[SEP] [CLS] [MASK] [PAD]",
    "\n\t  \r\n",
    "def f():\n    return 1\n" * 400,
)


def words(tokens: int) -> str:
    """A text of that many tokens, special ones included where there is room for them."""
    vocabulary = ["house", "tree", "red", "run", "code", "water", "seven", "music"]
    return " ".join(vocabulary[(i * 5 + tokens) % 8] for i in range(max(0, tokens - 2)))


TEXTS = [words(n) for n in LENGTHS] + list(ODD)


def vectors(encoder: Encoder, texts: list[str]) -> Floats:
    part = encode(encoder, texts, "document", ["dense"], device_lock=threading.Lock())
    assert part.rejected == {}
    dense = part.vectors["dense"]
    assert isinstance(dense, Dense)
    return dense.values


def cosines(a: Floats, b: Floats) -> Floats:
    return np.asarray((a * b).sum(axis=1))


def test_both_entries_agree_with_upstream(
    onnx_encoder: Encoder, torch_encoder: Encoder, plain_model: Any
) -> None:
    wanted = plain_model.encode(TEXTS, batch_size=1, normalize_embeddings=True)
    for encoder in (onnx_encoder, torch_encoder):
        got = vectors(encoder, TEXTS)
        assert cosines(got, wanted).min() >= MIN_COSINE
        np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1, atol=1e-5)


def test_a_text_has_the_same_vector_alone_and_among_longer_ones(onnx_encoder: Encoder) -> None:
    together = vectors(onnx_encoder, TEXTS)
    alone = np.concatenate([vectors(onnx_encoder, [text]) for text in TEXTS])
    assert cosines(together, alone).min() >= MIN_COSINE


def test_a_dropped_mask_or_a_cut_at_128_would_be_seen(
    onnx_encoder: Any, minilm_snapshot: Path, plain_model: Any
) -> None:
    from tokenizers import Tokenizer

    texts = [words(10), words(250)]
    wanted = plain_model.encode(texts, normalize_embeddings=True)
    tokenizer = Tokenizer.from_file(str(minilm_snapshot / "tokenizer.json"))
    short = TextTokenizer(tokenizer, 128, pad_id=0, padding_side="right")
    ordered = sorted(short.prepare(texts, 1).micro_batches, key=lambda b: b.rows)
    cut = np.concatenate([unit(masked_mean(onnx_encoder.forward(b), b.tokens.mask)) for b in ordered])
    assert cosines(cut, wanted)[0] >= MIN_COSINE
    assert cosines(cut, wanted)[1] < MIN_COSINE

    full = TextTokenizer(tokenizer, 256, pad_id=0, padding_side="right")
    (batch,) = full.prepare(texts, 512).micro_batches
    states = onnx_encoder.forward(batch)
    unmasked = unit(masked_mean(states, np.ones_like(batch.tokens.mask)))
    assert cosines(unmasked, wanted[list(batch.rows)]).min() < MIN_COSINE


def test_counts_are_true_and_the_cut_is_the_tokenizers(onnx_encoder: Encoder, minilm_snapshot: Path) -> None:
    from tokenizers import Tokenizer

    whole = Tokenizer.from_file(str(minilm_snapshot / "tokenizer.json"))
    whole.no_padding()
    whole.no_truncation()
    cut = Tokenizer.from_str(whole.to_str())
    cut.enable_truncation(256)
    prepared = onnx_encoder.prepare(TEXTS, "document")
    assert prepared.tokens_seen.tolist() == [len(whole.encode(t).ids) for t in TEXTS]
    assert prepared.tokens_kept.max() == 256
    for batch in prepared.micro_batches:
        for i, row in enumerate(batch.rows):
            kept = batch.tokens.ids[i][batch.tokens.mask[i] == 1].tolist()
            assert kept == cut.encode(TEXTS[row]).ids


def test_a_megabyte_is_one_text(onnx_encoder: Encoder) -> None:
    prepared = onnx_encoder.prepare(["def foo(x): " * 87_000, "short"], "document")
    assert prepared.tokens_seen[0] > 500_000
    assert prepared.tokens_kept.tolist() == [256, 3]


@pytest.mark.parametrize("which", ["onnx_encoder", "torch_encoder"])
def test_warm_up_passes_and_knows_other_weights(which: str, request: pytest.FixtureRequest) -> None:
    encoder = request.getfixturevalue(which)
    assert warm_up(encoder, ["dense"]) > 0

    class Other:
        """The same, with every state turned a little."""

        def __getattr__(self, name: str) -> Any:
            return getattr(encoder, name)

        def finish(self, *arguments: Any) -> Any:
            values = encoder.finish(*arguments)["dense"].values
            return {"dense": Dense(unit(np.roll(values, 1, axis=1)))}

    with pytest.raises(WeightsError, match="golden"):
        warm_up(Other(), ["dense"])  # type: ignore[arg-type]


def test_a_damaged_export_is_made_again(
    onnx_encoder: Encoder, real_settings: Settings, tmp_path: Path, minilm_snapshot: Path
) -> None:
    spec = model("qdrant-minilm-onnx")
    weights = locate(spec, real_settings)
    if weights.onnx is not None:
        pytest.skip("these weights come with a graph")
    good = exported(spec, weights, real_settings.cache_dir)
    copy = tmp_path / "onnx" / good.parent.name
    shutil.copytree(good.parent, copy)
    content = bytearray(good.read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)
    mended = exported(spec, weights, tmp_path)
    assert mended == copy / "model.onnx"
    assert mended.read_bytes() != bytes(content)
    made = mended.stat().st_mtime_ns
    assert exported(spec, weights, tmp_path).stat().st_mtime_ns == made


def test_the_onnx_worker_runs_without_torch(onnx_encoder: Encoder, real_settings: Settings) -> None:
    code = (
        "import sys\n"
        "from registry.settings import load_settings\n"
        "from worker.encoders.factory import load_encoder, warm_up\n"
        f"s = load_settings(device='cpu', cache_dir={str(real_settings.cache_dir)!r})\n"
        "warm_up(load_encoder('qdrant-minilm-onnx', '', s, ['dense']), ['dense'])\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_that_contradicts_the_registry_is_refused(
    real_settings: Settings, minilm_snapshot: Path
) -> None:
    from worker.encoders.sentence_transformer import SentenceTransformerEncoder

    spec = replace(model("all-miniLM-l6"), pooling="cls", dimension=512)
    weights = locate(model("all-miniLM-l6"), real_settings)
    with pytest.raises(WeightsError, match=r"pooling.*dimension is 384, not 512"):
        SentenceTransformerEncoder(spec, "", weights, real_settings)


def test_a_cuda_device_that_is_not_there_is_refused() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    for name in ("qdrant-minilm-onnx", "all-miniLM-l6"):
        with pytest.raises(FleetError, match="cuda:0"):
            load_encoder(name, "", load_settings(device="cuda:0"), ["dense"])
