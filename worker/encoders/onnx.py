"""The ONNX encoder: onnxruntime, the tokenizers library, numpy; no torch in the process."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from registry.codecs import Dense, Vectors
from registry.errors import DeviceFailed, FleetError, UsageError, WeightsError
from registry.models import ModelSpec, OutputKind
from registry.settings import Settings
from worker.encoders.base import MicroBatch, Numerics
from worker.encoders.budget import Budget, budget_of
from worker.encoders.device import Device, choose_device, hardware, thread_count
from worker.encoders.pooling import masked_mean, unit
from worker.encoders.text import TextEncoder, text_tokenizer
from worker.encoders.tokens import Padded
from worker.onnx_export import exported
from worker.onnx_variants import formed
from worker.weights import Weights

#: Padded tokens of a micro-batch on a CPU. For real functions on two cores the CPU time is the same from 256
#: to 1024; 2048 takes 8 % more, 4096 20 to 30 %, 16384 60 %: the states leave the cache, and padding grows.
CPU_BUDGET = 768
#: Padded tokens of a micro-batch on a GPU, which wants many; 64 texts of full length take about 0.3 GB.
CUDA_BUDGET = 16384

#: int8 takes one text at a time: its activations are scaled by the largest of the micro-batch, so that a
#: vector would depend on its text's neighbours (cosine 0.99 between two batches). It is no slower.
INT8_BUDGET = 1

#: CUDA devices a machine may have; which of them there are is onnxruntime's to say.
MAX_CUDA_DEVICES = 64

_CUDA = "CUDAExecutionProvider"
_MEND_CUDA = "is the device there, does the driver fit? Reinstall the [gpu] extra, or set V5_DEVICE=cpu"


class OnnxEncoder(TextEncoder):
    """A BERT-like graph with mean pooling, as the registry's onnxruntime entries have."""

    def __init__(self, spec: ModelSpec, task: str, weights: Weights, settings: Settings) -> None:
        refuse_two_runtimes()
        self._session, self._device, dtype = _start(spec, weights, settings)
        self._inputs = {i.name for i in self._session.get_inputs()}
        _check_graph(spec, self._session)
        #: Outputs stay on the device until `finish`, which does not hold it.
        self._bound = self._device.kind == "cuda"
        budget = _budget(spec, settings, self._device, dtype)
        super().__init__(spec, task, settings, text_tokenizer(spec, weights), budget)
        self.numerics = Numerics(
            backend="onnxruntime",
            device=self._device.name,
            dtype=dtype,
            tf32=settings.tf32 and self._device.kind == "cuda" and dtype == "float32",
            quantization="int8-dynamic" if spec.variant == "int8" else "",
            fallback=self._device.fallback,
            versions={"onnxruntime": onnxruntime.__version__},
        )

    def forward(self, batch: MicroBatch) -> Any:
        """Last hidden states `[b, t, h]` float32; an OrtValue on the device where outputs are bound."""
        tokens: Padded = batch.tokens
        feed = self._feed(tokens)
        try:
            return self._run_bound(feed) if self._bound else self._session.run(None, feed)[0]
        except Exception as error:
            raise _translated(error) from error

    def free(self) -> None:
        """See Encoder.free. The arena keeps what it ever took, also for a pass that failed; only the end of
        a pass gives it back, so there is one of a single token."""
        options = onnxruntime.RunOptions()
        options.add_run_config_entry(
            "memory.enable_memory_arena_shrinkage",
            f"{'cpu' if self._device.kind == 'cpu' else 'gpu'}:{self._device.index}",
        )
        one = np.ones((1, 1), np.int64)
        try:
            self._session.run(None, self._feed(Padded(one, one)), options)
        except Exception as error:
            if not isinstance(_translated(error), MemoryError):
                raise _translated(error) from error

    def _feed(self, tokens: Padded) -> dict[str, npt.NDArray[np.int64]]:
        feed = {
            "input_ids": tokens.ids,
            "attention_mask": tokens.mask,
            "token_type_ids": np.zeros_like(tokens.ids),
        }
        return {name: array for name, array in feed.items() if name in self._inputs}

    def _run_bound(self, feed: dict[str, npt.NDArray[np.int64]]) -> Any:
        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, array)
        output = self._session.get_outputs()[0].name
        binding.bind_output(output, self._device.kind, self._device.index)
        self._session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def finish(
        self,
        batch: MicroBatch,
        raw: Any,
        kinds: Sequence[OutputKind],  # noqa: ARG002
    ) -> dict[OutputKind, Vectors]:
        """Mean over the mask, then L2."""
        tokens: Padded = batch.tokens
        try:
            states = raw if isinstance(raw, np.ndarray) else raw.numpy()
        except Exception as error:
            raise _translated(error) from error
        return {"dense": Dense(unit(masked_mean(states, tokens.mask)))}

    def close(self) -> None:
        """Free the session's memory."""
        del self._session


def refuse_two_runtimes() -> None:
    """Raise FleetError if onnxruntime and onnxruntime-gpu are both installed.

    Both write the same module, so which one runs is decided by the order of installation.
    """
    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    if len(found) > 1:
        raise FleetError(
            f"{' and '.join(found)} are both installed and overwrite each other; uninstall both "
            "(pip uninstall onnxruntime onnxruntime-gpu), then install the extra [cpu] or [gpu]"
        )


def _start(spec: ModelSpec, weights: Weights, settings: Settings) -> tuple[Any, Device, str]:
    """A session on the device that settings ask for, and its dtype; unasked, on the CPU where CUDA does not
    start."""

    def opened(device: Device) -> tuple[Any, Device, str]:
        graph, dtype = _graph(spec, weights, settings, device)
        return _open(graph, device, settings), device, dtype

    if spec.variant == "int8":
        if settings.device not in ("", "cpu"):
            raise UsageError(
                f"V5_DEVICE={settings.device}: {spec.name} as int8 is for CPUs, as onnxruntime has no CUDA "
                "kernels for it; say cpu, or leave the variant out"
            )
        return opened(Device("cpu"))
    built_with_cuda = _CUDA in onnxruntime.get_available_providers()
    if not built_with_cuda or settings.device == "cpu":
        return opened(choose_device(settings, 0, "this onnxruntime is built without CUDA"))
    # The CUDA libraries come from torch's wheels; without this call they are not found.
    onnxruntime.preload_dlls()
    # How many devices there are shows only when a session is opened on one.
    device = choose_device(settings, MAX_CUDA_DEVICES, "")
    try:
        return opened(device)
    except FleetError as error:
        if settings.device:
            raise
        return opened(choose_device(settings, 0, str(error)))


def _graph(spec: ModelSpec, weights: Weights, settings: Settings, device: Device) -> tuple[Path, str]:
    """The graph to run on a device, and its dtype. Raises UsageError for a dtype that is of no use there."""
    dtype = settings.dtype or "float32"
    if spec.variant == "int8":
        if settings.dtype:
            raise UsageError(
                f"V5_DTYPE={settings.dtype}: {spec.name} is served as int8; leave one of them out"
            )
        return formed("int8", spec, weights, settings.cache_dir), "float32"
    if dtype == "bfloat16":
        raise UsageError(f"V5_DTYPE=bfloat16: {spec.name} runs in float32 or, on a GPU, in float16")
    if dtype == "float16":
        if device.kind == "cpu":
            raise UsageError(
                f"V5_DTYPE=float16: a CPU takes 1.4 times as long for {spec.name} in it as in float32; "
                "leave it out, or serve `--variant int8`"
            )
        return formed("float16", spec, weights, settings.cache_dir), dtype
    return weights.onnx or exported(spec, weights, settings.cache_dir), dtype


def _budget(spec: ModelSpec, settings: Settings, device: Device, dtype: str) -> Budget:
    if spec.variant == "int8":
        return Budget(INT8_BUDGET)
    tokens = CPU_BUDGET if device.kind == "cpu" else CUDA_BUDGET
    return budget_of(spec, settings, tokens, hardware=hardware(device), dtype=dtype, backend="onnxruntime")


def _open(graph: Path, device: Device, settings: Settings) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = thread_count(settings)
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores from the tokenizer and from the other workers, but for
    # as long as waking them would take. Small blocks, so that a thread whose core is taken leaves less to
    # wait for. Together 3 to 5 % faster than neither, in as much CPU time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
    options.add_session_config_entry("session.dynamic_block_base", "4")
    # Attention's smallest weights may be denormals, which a CPU takes many times longer for.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    # A pattern is kept for each shape of input, and ours are nearly all different.
    options.enable_mem_pattern = False
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.kind == "cuda":
        cuda = {
            "device_id": str(device.index),
            # TF32 rounds to 10 bits, which moves vectors away from those a CPU makes.
            "use_tf32": str(int(settings.tf32)),
            "arena_extend_strategy": "kSameAsRequested",
        }
        providers.insert(0, (_CUDA, cuda))
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no root
        if device.kind == "cuda":
            raise FleetError(f"onnxruntime did not start on {device.name} ({error}); {_MEND_CUDA}") from error
        raise WeightsError(f"onnxruntime cannot load {graph}: {error}") from error
    if device.kind == "cuda" and _CUDA not in session.get_providers():
        # The library falls back by itself; that would be a GPU worker on a CPU, unseen.
        raise FleetError(f"onnxruntime did not start on {device.name}; {_MEND_CUDA}")
    return session


def _check_graph(spec: ModelSpec, session: Any) -> None:
    """Raise WeightsError if the graph's inputs or width are not the model's."""
    unknown = {i.name for i in session.get_inputs()} - {"input_ids", "attention_mask", "token_type_ids"}
    width = session.get_outputs()[0].shape[-1]
    if unknown:
        raise WeightsError(f"{spec.name}: its graph wants {', '.join(sorted(unknown))}, which nobody gives")
    if isinstance(width, int) and width != spec.dimension:
        raise WeightsError(f"{spec.name}: its graph yields {width} values a token, not {spec.dimension}")


def _translated(error: Exception) -> Exception:
    """What an error of onnxruntime means; it has no types for this, only words."""
    said = str(error)
    if any(words in said for words in ("Failed to allocate", "out of memory", "ALLOC_FAILED", "bad_alloc")):
        return MemoryError(said)
    if any(words in said for words in ("CUDA failure", "CUDNN failure", "CUBLAS failure", "CUDA error")):
        return DeviceFailed(f"the device failed: {said}")
    return error
