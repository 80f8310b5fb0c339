"""MiniLM's graph in other number formats, with the real weights; outputs that stay on the device."""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from registry.errors import UsageError, WeightsError
from registry.models import model
from registry.plan import make_plan
from registry.settings import Settings, load_settings
from worker import onnx_variants
from worker.encoders import onnx as onnx_module
from worker.encoders.base import Encoder
from worker.encoders.device import Device
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder, warm_up
from worker.encoders.onnx import OnnxEncoder
from worker.onnx_variants import formed
from worker.supervisor import Supervisor
from worker.weights import locate

pytestmark = pytest.mark.weights

NAME = "qdrant-minilm-onnx"
TEXTS = [
    "x",
    "def add(a, b):\n    return a + b",
    "Größe 漢字 🙂",
    "for row in rows: total += row.price * row.count\n" * 12,
    "The harbour master notes each vessel by name, and the hour of its arrival. " * 30,
]
Floats = npt.NDArray[np.float32]


@pytest.fixture(scope="session")
def int8(real_settings: Settings, minilm_snapshot: Path) -> Encoder:
    return load_encoder(NAME, "", real_settings, ["dense"], variant="int8")


def vectors(encoder: Encoder, texts: list[str]) -> Floats:
    part = encode(encoder, texts, "document", ["dense"], device_lock=threading.Lock())
    assert part.rejected == {}
    values: Floats = part.vectors["dense"].values
    return values


def test_int8_is_near_the_float_vectors_and_is_not_them(int8: Encoder, onnx_encoder: Encoder) -> None:
    cosines = (vectors(int8, TEXTS) * vectors(onnx_encoder, TEXTS)).sum(axis=1)
    assert cosines.min() > 0.97
    assert cosines.max() < 0.9999
    assert int8.space("dense").weights == onnx_encoder.space("dense").weights + "+int8-dynamic"
    assert int8.numerics.quantization == "int8-dynamic"
    assert onnx_encoder.numerics.quantization == ""
    assert warm_up(int8, ["dense"]) > 0


def test_an_int8_vector_does_not_depend_on_its_neighbours(
    int8: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = vectors(int8, TEXTS)
    for i, text in enumerate(TEXTS):
        np.testing.assert_array_equal(vectors(int8, [text])[0], together[i])
    # It is the packing that sees to it.
    monkeypatch.setattr(int8.budget, "tokens", 4096)
    assert (vectors(int8, TEXTS) * together).sum(axis=1).min() < 0.999


def test_int8_is_made_once_without_torch_and_proved(real_settings: Settings, minilm_snapshot: Path) -> None:
    code = (
        "import sys\n"
        "from registry.settings import load_settings\n"
        "from worker.encoders.factory import load_encoder\n"
        f"s = load_settings(device='cpu', cache_dir={str(real_settings.cache_dir)!r})\n"
        f"load_encoder({NAME!r}, '', s, ['dense'], variant='int8')\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    spec = model(NAME)
    graph = formed("int8", spec, locate(spec, real_settings), real_settings.cache_dir)
    tokenizer = minilm_snapshot / "tokenizer.json"
    plain = onnx_module.exported(spec, locate(spec, real_settings), real_settings.cache_dir)
    assert onnx_variants._prove("int8", plain, graph, tokenizer) > 0.97
    with pytest.raises(WeightsError, match=r"float16 graph is only within a cosine of 0\.98"):
        onnx_variants._prove("float16", plain, graph, tokenizer)


def test_int8_of_a_snapshot_without_safetensors_is_refused(real_settings: Settings, tmp_path: Path) -> None:
    spec = model(NAME)
    bare = replace(locate(spec, real_settings), path=tmp_path)
    with pytest.raises(WeightsError, match=r"made from model\.safetensors"):
        formed("int8", spec, bare, real_settings.cache_dir)


def test_the_float16_graph_is_near_and_shares_the_space(
    onnx_encoder: Encoder, real_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(onnx_encoder, OnnxEncoder)
    spec = model(NAME)
    graph = formed("float16", spec, locate(spec, real_settings), real_settings.cache_dir)
    wanted = vectors(onnx_encoder, TEXTS)
    session = onnx_module._open(graph, Device("cpu"), real_settings)
    monkeypatch.setattr(onnx_encoder, "_session", session)
    got = vectors(onnx_encoder, TEXTS)
    assert (got * wanted).sum(axis=1).min() > 0.9999
    assert np.abs(got - wanted).max() > 1e-6


def test_a_dtype_that_is_of_no_use_is_refused(real_settings: Settings, minilm_snapshot: Path) -> None:
    half = load_settings(device="cpu", dtype="float16")
    for name, said in ((NAME, "1.4 times as long"), ("all-miniLM-l6", "is for GPUs")):
        with pytest.raises(UsageError, match=f"V5_DTYPE=float16.*{said}"):
            load_encoder(name, "", half, ["dense"])
    with pytest.raises(UsageError, match="V5_DTYPE=bfloat16"):
        load_encoder(NAME, "", load_settings(device="cpu", dtype="bfloat16"), ["dense"])
    with pytest.raises(UsageError, match="leave one of them out"):
        load_encoder(NAME, "", half, ["dense"], variant="int8")
    with pytest.raises(UsageError, match="int8 is for CPUs"):
        load_encoder(NAME, "", load_settings(device="cuda:0"), ["dense"], variant="int8")
    full = load_encoder(
        "all-miniLM-l6", "", load_settings(device="cpu", dtype="float32", tf32=True), ["dense"]
    )
    # A CPU has no TF32, whatever is allowed.
    assert (full.numerics.dtype, full.numerics.tf32) == ("float32", False)


def test_a_local_fleet_starts_what_the_plan_says_and_int8_beside_the_gpu(data_dir: Path) -> None:
    plan = make_plan(
        primary="all-miniLM-l6", companions=(NAME,), variants={NAME: "int8"}, truncate="split-and-pool"
    )
    supervisor = Supervisor(load_settings(data_dir=data_dir, device="cuda:0"), plan)
    _, plain, quantized = supervisor.children
    assert plain.command[-2:] == ["--truncate", "split-and-pool"]
    assert quantized.command[-4:] == ["--variant", "int8", "--truncate", "split-and-pool"]
    assert "--variant" not in plain.command
    assert [plain.environment["V5_DEVICE"], quantized.environment["V5_DEVICE"]] == ["cuda:0", "cpu"]


class _Cuda:
    """Stands for a session that was opened on a GPU: notes how, and what was bound."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self.bound: list[tuple[str, str, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def io_binding(self) -> Any:
        real, outer = self._real.io_binding(), self

        class Binding:
            """Binds outputs where this machine has memory."""

            _iobinding = real._iobinding

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def bind_output(self, name: str, device: str, index: int) -> None:
                outer.bound.append((name, device, index))
                real.bind_output(name, "cpu", 0)

        return Binding()


def test_outputs_are_bound_and_read_when_finished(
    onnx_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(onnx_encoder, OnnxEncoder)
    wanted = vectors(onnx_encoder, TEXTS)
    session = _Cuda(onnx_encoder._session)
    monkeypatch.setattr(onnx_encoder, "_bound", True)
    monkeypatch.setattr(onnx_encoder, "_device", Device("cuda:3"))
    monkeypatch.setattr(onnx_encoder, "_session", session)
    (batch, *_) = onnx_encoder.prepare(TEXTS, "document").micro_batches
    assert not isinstance(onnx_encoder.forward(batch), np.ndarray)
    np.testing.assert_array_equal(vectors(onnx_encoder, TEXTS), wanted)
    assert set(session.bound) == {("last_hidden_state", "cuda", 3)}


@pytest.mark.parametrize("tf32", [False, True])
def test_a_gpu_session_is_opened_with_the_tf32_that_is_set(
    tf32: bool, onnx_encoder: Encoder, monkeypatch: pytest.MonkeyPatch, real_settings: Settings
) -> None:
    assert isinstance(onnx_encoder, OnnxEncoder)
    opened: list[Any] = []

    def session(path: str, options: Any, providers: list[Any]) -> Any:
        opened.append(providers)
        return real(path, options, providers=["CPUExecutionProvider"])

    real = onnx_module.onnxruntime.InferenceSession
    monkeypatch.setattr(onnx_module.onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnx_module, "_CUDA", "CPUExecutionProvider")
    monkeypatch.setattr(onnx_module.onnxruntime, "preload_dlls", lambda: None)
    settings = load_settings(device="cuda:1", tf32=tf32, cache_dir=real_settings.cache_dir)
    spec = model(NAME)
    encoder = OnnxEncoder(spec, "", locate(spec, settings), settings)
    (_, options), *_ = opened[0]
    assert options["use_tf32"] == str(int(tf32))
    assert options["device_id"] == "1"
    assert (encoder.numerics.device, encoder.numerics.tf32) == ("cuda:1", tf32)
    assert encoder._bound
    halved = replace_dtype(settings)
    assert OnnxEncoder(spec, "", locate(spec, settings), halved).numerics.dtype == "float16"


def replace_dtype(settings: Settings) -> Settings:
    return settings.model_copy(update={"dtype": "float16"})
