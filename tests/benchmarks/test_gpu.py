"""What is measured of a GPU, with small models on a CPU: that all of it runs, and counts rightly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import gpu
from benchmarks.flops import forward_flops
from registry.models import model
from registry.settings import load_settings
from tests.checkpoints import bge_m3, jina_code
from worker.encoders.factory import load_encoder

pytestmark = [pytest.mark.weights, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.mark.parametrize(("name", "builder"), [("bge-m3", bge_m3), ("jina-code-embeddings-1.5b", jina_code)])
def test_operations_are_those_that_torch_counts(name: str, builder: object, tmp_path: Path) -> None:
    path = builder.build(tmp_path / "weights")
    settings = load_settings(
        data_dir=tmp_path, fake_weights=True, weights={name: path}, device="cpu", threads=1
    )
    encoder = load_encoder(name, "", settings, ["dense"])
    sizes = replace(model(name).architecture, layers=builder.LAYERS, ffn=builder.FFN)
    for words in (20, 80):
        (batch,) = encoder.prepare(gpu.texts_of(name, words, 1), "document").micro_batches
        # Spelt out, as torch's counter does not know the fused attention of a CPU.
        with (
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            encoder.forward(batch)
        tokens = batch.useful_tokens
        # A causal model's unused half is computed all the same where attention is spelt out.
        head = sizes.hidden // sizes.heads
        unused = 2 * sizes.layers * sizes.heads * head * tokens * (tokens - 1) if name != "bge-m3" else 0
        assert counter.get_total_flops() == forward_flops(sizes, tokens) + unused


def test_the_whole_path_runs_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "PROBE_TEXTS", 8)
    monkeypatch.setattr(gpu, "BATCH_SIZES", (4, 8))
    results = tmp_path / "gpu.json"
    asked = ["--device", "cpu", "--tiny", "--models", "bge-m3", "--tokens", "16,2048", "--seconds", "0.01"]
    assert gpu.main([*asked, "--json", str(results)]) == 0
    found = json.loads(results.read_text())
    # The small model takes no text of 2048 tokens.
    assert [(row["tokens"], row["outputs"]) for row in found["rows"]] == [
        (16, "dense"),
        (16, "dense, sparse, multi"),
    ]
    for row in found["rows"]:
        assert row["of peak"] > 0
        assert 0 < row["busy"] <= 1
        assert row["padding"] == 0
        assert row["times_padded"] > 0
    assert found["rows"][0]["times_default"] >= found["rows"][0]["times_best"] > 0
    assert found["aims"] == []
    assert "bge-m3" in capsys.readouterr().out


def test_a_machine_without_a_gpu_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu.main([]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_time_that_two_kernels_share_is_counted_once() -> None:
    assert gpu.covered([(0, 4), (1, 2), (3, 6), (10, 11)]) == 7


def test_aims_are_held_against_the_worst_length() -> None:
    rows = [
        {
            "model": gpu.BGE,
            "outputs": "dense",
            "tokens": tokens,
            "of peak": part,
            "busy": part,
            "chunks/s": 1.0,
        }
        for tokens, part in ((128, 0.1), (256, 0.6), (512, 0.5))
    ]
    (peak, busy) = gpu._aims(rows)
    assert (peak.value, peak.met) == (0.5, False)
    assert (busy.value, busy.met) == (0.5, False)
