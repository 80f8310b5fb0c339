"""The sentence-transformers encoder: the checkpoint's own modules, our tokens, our packing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers.utils import logging as transformers_logging

from registry.codecs import Dense, Vectors
from registry.errors import WeightsError
from registry.models import ModelSpec, OutputKind
from registry.settings import Settings
from worker.encoders.base import MicroBatch
from worker.encoders.pooling import unit
from worker.encoders.text import TextEncoder, check_vocabulary, text_tokenizer
from worker.encoders.tokens import Packed, Padded
from worker.encoders.torch_runtime import TorchRuntime
from worker.encoders.unpadded import model_inputs
from worker.tensors import header, shards
from worker.weights import Weights

#: Tokens of a micro-batch on a CPU: as for ONNX, a batch that leaves the cache is slower.
CPU_BUDGET = 1024
#: Tokens of a micro-batch on a GPU; a longer text goes alone. 1.5 B parameters want about 2 GB for it.
CUDA_BUDGET = 16384

_POOLING = {"mean": "mean", "cls": "cls", "last-token": "lasttoken"}


class SentenceTransformerEncoder(TextEncoder):
    """A checkpoint of Transformer, Pooling and perhaps Normalize.

    Its `preprocess` is not used: that guesses from a text whether it is a picture's path or an address. Here
    a text is only text, tokenised as tokenizer.json says. The library's own tokenizer is not used either: for
    Qwen2 it takes only the vocabulary from that file, and builds the rest as it thinks fit.
    """

    def __init__(self, spec: ModelSpec, task: str, weights: Weights, settings: Settings) -> None:
        self._runtime = TorchRuntime(spec, settings)
        self._runtime.leave_out_padding()
        self._model = _load(spec, weights, self._runtime)
        pad_id = self._model.tokenizer.pad_token_id or 0
        tokenizer = text_tokenizer(spec, weights, pad_id, packed=self._runtime.packed)
        super().__init__(
            spec,
            task,
            settings,
            tokenizer,
            self._runtime.budget("sentence-transformers", cpu=CPU_BUDGET, cuda=CUDA_BUDGET),
        )
        _check(spec, self._model, self._task)
        transformer = self._model[0].auto_model
        _check_tensors(spec, weights, transformer)
        rows = transformer.get_input_embeddings().num_embeddings
        check_vocabulary(spec, weights.path, tokenizer.size, rows)
        self.layers = self._runtime.layers(transformer)
        self.numerics = self._runtime.numerics("sentence-transformers")

    def forward(self, batch: MicroBatch) -> Any:
        """The checkpoint's modules, pooling included: `[b, d]` on the device."""
        tokens: Padded | Packed = batch.tokens
        device = self._runtime.device.name
        with self._runtime.errors(), torch.inference_mode():
            if isinstance(tokens, Packed):
                # The library's pooling, too, goes by where each text begins, where it is told.
                features = model_inputs(tokens, tokens.positions, device)
            else:
                features = {
                    "input_ids": torch.from_numpy(tokens.ids).to(device),
                    "attention_mask": torch.from_numpy(tokens.mask).to(device),
                }
            return self._model(features)["sentence_embedding"]

    def finish(
        self,
        batch: MicroBatch,  # noqa: ARG002
        raw: Any,
        kinds: Sequence[OutputKind],  # noqa: ARG002
    ) -> dict[OutputKind, Vectors]:
        """To the host, to float32, then L2: after a bfloat16 pass only float32 makes a norm of 1."""
        with self._runtime.errors():
            values = raw.float().cpu().numpy()
        return {"dense": Dense(unit(values))}

    def free(self) -> None:
        """See Encoder.free."""
        self._runtime.release()

    def close(self) -> None:
        """Free the device's memory."""
        self.layers = None
        del self._model
        self._runtime.release()


def _load(spec: ModelSpec, weights: Weights, runtime: TorchRuntime) -> Any:
    transformers_logging.disable_progress_bar()
    try:
        with runtime.loading(spec.name):
            loaded = SentenceTransformer(
                str(weights.path),
                device=runtime.device.name,
                local_files_only=True,
                model_kwargs={
                    "dtype": runtime.dtype,
                    "use_safetensors": True,
                    "attn_implementation": runtime.attention,
                },
            )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise WeightsError(f"{spec.name}: {weights.path} cannot be loaded: {error}") from error
    return loaded.eval()


def _check_tensors(spec: ModelSpec, weights: Weights, transformer: Any) -> None:
    """Raise WeightsError if the files lack a tensor of the transformer: the library fills it with random
    numbers, and says so in a log only."""
    prefix = f"{transformer.base_model_prefix}."
    there = {name.removeprefix(prefix) for file in shards(spec, weights.path) for name in header(spec, file)}
    lacking = sorted(transformer.state_dict().keys() - there)
    if lacking:
        raise WeightsError(
            f"{spec.name}: {weights.path} lacks {len(lacking)} tensors of the model, {lacking[0]} for one; "
            f"take the snapshot {spec.hub_id}@{spec.revision}"
        )


def _check(spec: ModelSpec, loaded: Any, task: str) -> None:
    """Raise WeightsError, naming both sides, where the checkpoint contradicts the registry."""
    wrong = []
    foreign = [type(m).__name__ for m in loaded if not isinstance(m, Transformer | Pooling | Normalize)]
    if foreign:
        wrong.append(f"it goes through {', '.join(foreign)}")
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
