"""Which number format a torch model runs in, on machines this one is not."""

from __future__ import annotations

import contextlib
import re

import pytest
import torch

from registry.errors import DeviceFailed, FleetError, UsageError
from registry.models import model
from registry.settings import load_settings
from worker.encoders.torch_runtime import TorchRuntime

QWEN, BGE = "jina-code-embeddings-1.5b", "bge-m3"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One CUDA device with bfloat16, as far as it is only asked about."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda _index: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    # Global state of the library, put back afterwards.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    return monkeypatch


@pytest.fixture(autouse=True)
def _precision() -> object:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_a_gpu_computes_in_the_models_own_format_unless_told(gpu: pytest.MonkeyPatch) -> None:
    assert TorchRuntime(model(QWEN), load_settings()).dtype_name == "bfloat16"
    assert TorchRuntime(model(BGE), load_settings()).dtype_name == "float16"
    assert TorchRuntime(model(BGE), load_settings(dtype="float32")).dtype_name == "float32"
    assert TorchRuntime(model(QWEN), load_settings(device="cpu")).dtype_name == "float32"


def test_a_gpu_without_bfloat16_computes_in_float32_and_says_what_may_be_tried(
    gpu: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gpu.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert TorchRuntime(model(QWEN), load_settings()).dtype_name == "float32"
    assert "has no bfloat16; computing in float32. V5_DTYPE=float16" in caplog.text
    assert TorchRuntime(model(QWEN), load_settings(dtype="float16")).dtype_name == "float16"
    with pytest.raises(FleetError, match="cuda:0 has no bfloat16"):
        TorchRuntime(model(QWEN), load_settings(dtype="bfloat16"))


def test_a_cpu_computes_in_float32_only() -> None:
    with pytest.raises(UsageError, match="V5_DTYPE=bfloat16 is for GPUs"):
        TorchRuntime(model(QWEN), load_settings(device="cpu", dtype="bfloat16"))


def test_tf32_is_off_unless_allowed_and_recorded_where_it_counts(gpu: pytest.MonkeyPatch) -> None:
    plain = TorchRuntime(model(BGE), load_settings(dtype="float32"))
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    assert not plain.numerics("transformers").tf32
    allowed = TorchRuntime(model(BGE), load_settings(dtype="float32", tf32=True))
    assert torch.get_float32_matmul_precision() == "high"
    assert torch.backends.cudnn.allow_tf32
    assert allowed.numerics("transformers").tf32
    with allowed.exact():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "high"
    # Products of float16 are not rounded to TF32.
    assert not TorchRuntime(model(BGE), load_settings(tf32=True)).numerics("transformers").tf32
    # A CPU's products are not rounded either, nor is it said that they are.
    on_cpu = TorchRuntime(model(BGE), load_settings(device="cpu", tf32=True))
    assert not on_cpu.numerics("transformers").tf32
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", MemoryError),
        ("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate", MemoryError),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", MemoryError),
        ("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported", MemoryError),
        ("std::bad_alloc", MemoryError),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", DeviceFailed),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", DeviceFailed),
        ("CUDA driver error: device not ready", DeviceFailed),
        ("The size of tensor a (3) must match the size of tensor b (4)", RuntimeError),
    ],
)
def test_errors_that_torch_has_no_type_for_are_told_apart_by_their_words(
    said: str, meant: type[Exception]
) -> None:
    runtime = TorchRuntime(model(BGE), load_settings(device="cpu"))
    with pytest.raises(Exception, match=re.escape(said)) as caught, runtime.errors():
        raise RuntimeError(said)
    assert type(caught.value) is meant
