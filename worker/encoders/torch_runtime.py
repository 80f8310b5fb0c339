"""What every model that runs on torch needs: a device, a dtype, threads, errors told apart."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch

from registry.errors import DeviceFailed, FleetError, InfrastructureError, UsageError
from registry.models import ModelSpec
from registry.settings import Settings
from worker.encoders.base import Numerics
from worker.encoders.budget import Budget, budget_of
from worker.encoders.device import Device, choose_device, hardware, thread_count
from worker.encoders.layers import FILE, Layers
from worker.encoders.learned import Learned, subject
from worker.encoders.unpadded import EACH, PADDED, attention_for, problem_of

logger = logging.getLogger(__name__)

#: What torch's allocator on the host, the driver, CUDA's libraries and C++ say; torch gives these no types.
_NO_MEMORY = (
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "bad_alloc",
)
_LOST = ("CUDA error", "CUDA driver error", "CUBLAS_STATUS", "CUDNN_STATUS", "CUSOLVER_STATUS")


class TorchRuntime:
    """One model's device and dtype, with torch set up for it.

    The dtype is float32 on a CPU; on a GPU what settings or else the registry say, if the GPU computes in it.
    float16 is no substitute for bfloat16 unless it is asked for: activations of models trained in bfloat16
    may overflow it, which the checks at a worker's start then show.
    """

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        """Raises UsageError or FleetError where settings ask for a device or a dtype that is not here."""
        self._spec, self._settings = spec, settings
        self.device: Device = choose_device(settings, torch.cuda.device_count(), _no_cuda())
        self.dtype: torch.dtype = _dtype(spec, self.device, settings.dtype)
        if self.device.kind == "cpu":
            torch.set_num_threads(thread_count(settings))
        # TF32 rounds to 10 bits, which moves vectors away from those a CPU makes.
        allowed = settings.tf32 and self.device.kind == "cuda"
        torch.set_float32_matmul_precision("high" if allowed else "highest")
        torch.backends.cudnn.allow_tf32 = allowed
        self._tf32 = allowed and self.dtype is torch.float32
        #: What the model is to compute attention with, by the name that transformers knows it by.
        self.attention = PADDED

    @property
    def dtype_name(self) -> str:
        """`float32`, `bfloat16`, …"""
        return str(self.dtype).removeprefix("torch.")

    @property
    def packed(self) -> bool:
        """Whether texts go through without padding."""
        return self.attention != PADDED

    def leave_out_padding(self) -> None:
        """Choose `attention` for a model that can do without padding: what settings and the device allow,
        once it has been tried on the device. What fails there is said, and texts are padded.

        Raises InfrastructureError if the device itself failed, or has no memory.
        """
        capability = (0, 0)
        if self.device.kind == "cuda":
            capability = torch.cuda.get_device_capability(self.device.index)
        wanted = attention_for(self._settings.attention, self.device.kind, capability, self.dtype)
        if wanted != PADDED and (problem := self._problem_of(wanted)):
            logger.warning(
                "%s on %s: attention without padding (%s) is of no use: %s; texts are padded instead",
                self._spec.name, self.device.name, wanted, problem,
            )  # fmt: skip
            return
        self.attention = wanted

    def _problem_of(self, attention: str) -> str:
        try:
            with self.loading(self._spec.name):
                return problem_of(
                    attention, self._spec.architecture, device=self.device.name, dtype=self.dtype
                )
        except DeviceFailed as error:
            # The only failure of a device that leaves it as it was.
            if "no kernel image" in str(error):
                return str(error)
            raise DeviceFailed(f"{error}; V5_ATTENTION=padded does without what was tried here") from error
        except InfrastructureError:
            raise
        except Exception as error:  # torch and its kernels raise what they like
            return f"{type(error).__name__}: {error}"

    def budget(self, backend: str, *, cpu: int, cuda: int) -> Budget:
        """Tokens of a micro-batch, padding included: the numbers are the encoder's own for each kind of
        device. What is learned of texts with padding says nothing about texts without."""
        return budget_of(
            self._spec,
            self._settings,
            cpu if self.device.kind == "cpu" else cuda,
            hardware=hardware(self.device),
            dtype=self.dtype_name,
            backend=f"{backend} unpadded" if self.packed else backend,
        )

    def layers(self, model: torch.nn.Module) -> Layers:
        """What torch.compile may take of a model that computes attention as `attention` says."""
        settings = self._settings
        here = hardware(self.device)
        name = subject(self._spec, settings, dtype=self.dtype_name, how=self.attention, hardware=here)
        return Layers(
            model,
            # On a CPU it gains less than a tenth, and a large model would be on trial for minutes.
            mode="off" if settings.compile == "auto" and self.device.kind == "cpu" else settings.compile,
            name=f"{name}, torch {torch.__version__}",
            learned=Learned(settings.data_dir / FILE),
            cache=settings.cache_dir / "compiled",
            obstacle="attention takes its texts one at a time" if self.attention == EACH else "",
        )

    def numerics(self, backend: str) -> Numerics:
        """The record of how its numbers come about; `backend` is also the name of a distribution."""
        return Numerics(
            backend=backend,
            device=self.device.name,
            dtype=self.dtype_name,
            tf32=self._tf32,
            attention=self.attention if self.packed else "",
            fallback=self.device.fallback,
            versions={"torch": torch.__version__, backend: version(backend)},
        )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Give the device's errors their meaning.

        Raises MemoryError for too little memory, which can be a text's own size, and DeviceFailed for
        any other failure of the device, which says nothing about the texts.
        """
        try:
            yield
        except RuntimeError as error:  # the root of torch's own
            said = str(error)
            if isinstance(error, torch.OutOfMemoryError) or any(words in said for words in _NO_MEMORY):
                raise MemoryError(said) from error
            if isinstance(error, torch.AcceleratorError) or any(words in said for words in _LOST):
                raise DeviceFailed(f"the device failed: {said}") from error
            raise

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Products of float32 without TF32 in here, whatever settings allow: for what is computed once."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    @contextmanager
    def loading(self, model: str) -> Iterator[None]:
        """As `errors`, while the model is loaded: no text is at fault if it does not fit."""
        try:
            with self.errors():
                yield
        except MemoryError as error:
            raise InfrastructureError(
                f"{model} does not fit into the memory of {self.device.name}"
            ) from error

    def release(self) -> None:
        """Give back the device's memory that no tensor holds any more. Raises as `errors`."""
        if self.device.kind == "cuda":
            with self.errors():
                torch.cuda.empty_cache()


def _no_cuda() -> str:
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return "torch finds none"


def _dtype(spec: ModelSpec, device: Device, asked: str) -> torch.dtype:
    if device.kind == "cpu":
        if asked not in ("", "float32"):
            raise UsageError(
                f"V5_DTYPE={asked} is for GPUs, and {spec.name} runs on a CPU; leave it out: a CPU computes "
                "in float32"
            )
        return torch.float32
    wanted: torch.dtype = getattr(torch, asked or spec.gpu_dtype)
    with torch.cuda.device(device.index):
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    if wanted is not torch.bfloat16 or has_bfloat16:
        return wanted
    if asked:
        raise FleetError(f"V5_DTYPE=bfloat16: {device.name} has no bfloat16; leave it out or say float16")
    logger.warning(
        "%s: %s has no bfloat16; computing in float32. V5_DTYPE=float16 is faster, and the worker starts "
        "with it if its vectors hold: they are checked before it serves",
        spec.name,
        device.name,
    )
    return torch.float32
