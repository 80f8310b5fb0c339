"""The sentence-transformers encoder: the checkpoint's own modules, our tokens, our packing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.utils import logging as transformers_logging

from registry.codecs import Dense, Vectors
from registry.errors import InfrastructureError, WeightsError
from registry.models import ModelSpec, OutputKind
from registry.settings import Settings
from registry.spaces import VectorSpace, space_of
from worker.encoders.base import MicroBatch, Numerics, Prepared, Side
from worker.encoders.device import Device, choose_device, thread_count
from worker.encoders.pooling import unit
from worker.encoders.tokens import Padded, TextTokenizer
from worker.weights import Weights

logger = logging.getLogger(__name__)

#: Padded tokens of a micro-batch on a CPU: as for ONNX, a batch that leaves the cache is slower.
CPU_BUDGET = 1024
#: Padded tokens of a micro-batch on a GPU; a longer text goes alone. 1.5 B parameters want about 2 GB for it.
CUDA_BUDGET = 16384

_POOLING = {"mean": "mean", "cls": "cls", "last-token": "lasttoken"}


class SentenceTransformerEncoder:
    """A checkpoint of Transformer, Pooling and perhaps Normalize.

    Its `preprocess` is not used: that guesses from a text whether it is a picture's path or an address. Here
    a text is only text, tokenised by the checkpoint's tokenizer.
    """

    def __init__(self, spec: ModelSpec, task: str, weights: Weights, settings: Settings) -> None:
        device = choose_device(settings, torch.cuda.device_count(), _no_cuda())
        if device.kind == "cpu":
            torch.set_num_threads(thread_count(settings))
        dtype = _dtype(spec, device)
        # TF32 rounds to 10 bits, which would move vectors away from those a CPU makes.
        torch.set_float32_matmul_precision("highest")
        self.model = spec.name
        self._spec = spec
        self._task = space_of(spec, "dense", task).task
        self._prompt = spec.prompts[self._task]
        self._device = device
        self._model = _load(spec, weights, device, dtype)
        _check(spec, self._model, self._task)
        hf = self._model.tokenizer
        self._tokenizer = TextTokenizer(
            hf.backend_tokenizer,
            spec.max_tokens,
            pad_id=hf.pad_token_id or 0,
            padding_side=spec.padding_side,
        )
        self._budget = CPU_BUDGET if device.kind == "cpu" else CUDA_BUDGET
        self.numerics = Numerics(
            backend="sentence-transformers",
            device=device.name,
            dtype=str(dtype).removeprefix("torch."),
            fallback=device.fallback,
            versions={
                "torch": torch.__version__,
                "sentence-transformers": sentence_transformers.__version__,
            },
        )

    def space(self, kind: OutputKind) -> VectorSpace:
        """The space of its dense output."""
        return space_of(self._spec, kind, self._task)

    def prepare(self, texts: Sequence[str], side: Side) -> Prepared:
        """Prefix, tokenise, cut, pack."""
        prefix = self._prompt.query if side == "query" else self._prompt.document
        return self._tokenizer.prepare([prefix + t for t in texts] if prefix else texts, self._budget)

    def forward(self, batch: MicroBatch) -> Any:
        """The checkpoint's modules, pooling included: `[b, d]` on the device."""
        tokens: Padded = batch.tokens
        try:
            with torch.inference_mode():
                features = {
                    "input_ids": torch.from_numpy(tokens.ids).to(self._device.name),
                    "attention_mask": torch.from_numpy(tokens.mask).to(self._device.name),
                }
                return self._model(features)["sentence_embedding"]
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            raise _translated(error) from error

    def finish(
        self,
        batch: MicroBatch,  # noqa: ARG002
        raw: Any,
        kinds: Sequence[OutputKind],  # noqa: ARG002
    ) -> dict[OutputKind, Vectors]:
        """To the host, to float32, then L2: after a bfloat16 pass only float32 makes a norm of 1."""
        try:
            values = raw.float().cpu().numpy()
        except (torch.OutOfMemoryError, torch.AcceleratorError) as error:
            raise _translated(error) from error
        return {"dense": Dense(unit(values))}

    def close(self) -> None:
        """Free the device's memory."""
        del self._model
        if self._device.kind == "cuda":
            torch.cuda.empty_cache()


def _no_cuda() -> str:
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return "torch finds none"


def _dtype(spec: ModelSpec, device: Device) -> torch.dtype:
    """float32 on a CPU; on a GPU what the registry says, if the GPU computes in it.

    float16 is no substitute for bfloat16: activations of models trained in bfloat16 overflow it.
    """
    if device.kind == "cpu":
        return torch.float32
    wanted: torch.dtype = getattr(torch, spec.gpu_dtype)
    with torch.cuda.device(device.index):
        if wanted is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
            logger.warning("%s: %s has no bfloat16; computing in float32", spec.name, device.name)
            return torch.float32
    return wanted


def _load(spec: ModelSpec, weights: Weights, device: Device, dtype: torch.dtype) -> Any:
    transformers_logging.disable_progress_bar()
    try:
        loaded = SentenceTransformer(
            str(weights.path),
            device=device.name,
            local_files_only=True,
            model_kwargs={"dtype": dtype, "use_safetensors": True},
        )
    except torch.OutOfMemoryError as error:
        raise InfrastructureError(f"{spec.name} does not fit into the memory of {device.name}") from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise WeightsError(f"{spec.name}: {weights.path} cannot be loaded: {error}") from error
    loaded.max_seq_length = spec.max_tokens
    return loaded.eval()


def _check(spec: ModelSpec, loaded: Any, task: str) -> None:
    """Raise WeightsError, naming both sides, where the checkpoint contradicts the registry."""
    wrong = []
    poolings = [module for module in loaded if isinstance(module, Pooling)]
    modes = [p.pooling_mode for p in poolings]
    if modes != [_POOLING.get(spec.pooling)]:
        wrong.append(f"its pooling is {modes}, not {spec.pooling}")
    if not all(p.include_prompt for p in poolings):
        wrong.append("it leaves the prompt out of its pooling")
    dimension = loaded.get_embedding_dimension()
    if dimension != spec.dimension:
        wrong.append(f"its dimension is {dimension}, not {spec.dimension}")
    if spec.normalised_by_model and not any(isinstance(module, Normalize) for module in loaded):
        wrong.append("it does not end in a normalisation")
    prompt = spec.prompts[task]
    for name, ours in ((f"{task}_query", prompt.query), (f"{task}_document", prompt.document)):
        theirs = loaded.prompts.get(name, ours)
        if task and theirs != ours:
            wrong.append(f"its prompt {name} is {theirs!r}, not {ours!r}")
    if wrong:
        raise WeightsError(f"the checkpoint is not the {spec.name} of the registry: {'; '.join(wrong)}")


def _translated(error: Exception) -> Exception:
    """A MemoryError can be a text's own size; any other error of the device says nothing about the texts."""
    if isinstance(error, torch.OutOfMemoryError):
        return MemoryError(str(error))
    return InfrastructureError(f"the device failed: {error}")
