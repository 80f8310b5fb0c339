"""bge-m3: XLM-RoBERTa from transformers, and upstream's two heads; three outputs from one pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import XLMRobertaConfig, XLMRobertaModel
from transformers.utils import logging as transformers_logging

from registry.codecs import Dense, Multi, Sparse, Vectors
from registry.errors import WeightsError
from registry.models import ModelSpec, OutputKind
from registry.settings import Settings
from worker.encoders.base import MicroBatch
from worker.encoders.pooling import Floats, unit
from worker.encoders.text import TextEncoder, check_vocabulary, text_tokenizer
from worker.encoders.tokens import Ids, Packed, Padded, Starts
from worker.encoders.torch_runtime import TorchRuntime
from worker.encoders.unpadded import model_inputs, useful
from worker.weights import Weights

#: Tokens of a micro-batch on a CPU: as for the others, a batch that leaves the cache is slower.
CPU_BUDGET = 1024
#: Tokens of a micro-batch on a GPU; a longer text goes alone.
CUDA_BUDGET = 16384
#: Tokens whose weights say nothing about a text: begin, end, padding, unknown.
UNWEIGHTED = ("<s>", "</s>", "<pad>", "<unk>")
#: Tensors of the checkpoint that none of the outputs needs.
_UNUSED = ("pooler.", "embeddings.position_ids")


class BgeM3Encoder(TextEncoder):
    """Dense, sparse and ColBERT vectors as the reference implementation gives them.

    Positions are counted from the ids, by the model itself where texts are padded: a `<pad>` that stands in a
    text has the padding's position there, as upstream.
    """

    def __init__(self, spec: ModelSpec, task: str, weights: Weights, settings: Settings) -> None:
        """Raises WeightsError naming the file or tensor that is not the model's; FleetError for a device that
        is not here."""
        self._runtime = TorchRuntime(spec, settings)
        self._runtime.leave_out_padding()
        config = _config(spec, weights.path)
        self._pad_id: int = config.pad_token_id
        tokenizer = text_tokenizer(spec, weights, self._pad_id, packed=self._runtime.packed)
        budget = self._runtime.budget("transformers", cpu=CPU_BUDGET, cuda=CUDA_BUDGET)
        super().__init__(spec, task, settings, tokenizer, budget)
        self._unweighted = np.array([tokenizer.id_of(token) for token in UNWEIGHTED])
        check_vocabulary(spec, weights.path, tokenizer.size, config.vocab_size)
        with self._runtime.loading(spec.name):
            self._model = _load_model(spec, weights.path, config, self._runtime)
            # The heads are small and stay in float32, so that they add nothing to half precision's error.
            width = spec.output("multi").dimension
            self._colbert = _load_head(spec, weights.path / "colbert_linear.pt", config.hidden_size, width)
            self._sparse = _load_head(spec, weights.path / "sparse_linear.pt", config.hidden_size, 1)
            self._colbert.to(self._runtime.device.name)
            self._sparse.to(self._runtime.device.name)
        self.layers = self._runtime.layers(self._model)
        self.numerics = self._runtime.numerics("transformers")

    def forward(self, batch: MicroBatch) -> Any:
        """Last hidden states `[b, t, h]` on the device; `[1, t, h]` of packed texts."""
        tokens: Padded | Packed = batch.tokens
        device = self._runtime.device.name
        with self._runtime.errors(), torch.inference_mode():
            if isinstance(tokens, Packed):
                counts = (tokens.flat_ids != self._pad_id).astype(np.int64)
                positions = self._pad_id + np.where(counts, 1 + tokens.counted(counts), 0)
                return self._model(**model_inputs(tokens, positions, device)).last_hidden_state
            ids, mask = torch.from_numpy(tokens.ids).to(device), torch.from_numpy(tokens.mask).to(device)
            return self._model(input_ids=ids, attention_mask=mask).last_hidden_state

    def finish(self, batch: MicroBatch, raw: Any, kinds: Sequence[OutputKind]) -> dict[OutputKind, Vectors]:
        """The outputs asked for, each from the same states."""
        make = {"dense": self._dense, "sparse": self._lexical, "multi": self._rows}
        tokens: Padded | Packed = batch.tokens
        with self._runtime.errors(), torch.inference_mode():
            states = useful(raw, tokens)
            return {kind: make[kind](states, tokens.starts, tokens.flat_ids) for kind in kinds}

    def free(self) -> None:
        """See Encoder.free."""
        self._runtime.release()

    def close(self) -> None:
        """Free the device's memory."""
        self.layers = None
        del self._model, self._colbert, self._sparse
        self._runtime.release()

    def _dense(self, states: Any, starts: Starts, ids: Ids) -> Vectors:  # noqa: ARG002
        """The state of `<s>`, L2."""
        return Dense(unit(_host(states[_index(starts[:-1], states)])))

    def _lexical(self, states: Any, starts: Starts, ids: Ids) -> Vectors:
        """relu of a weight for each token; of equal tokens the largest. A text may have none above zero."""
        weights = _host(self._sparse(states.float())[:, 0])
        each = [lexical(ids[a:b], weights[a:b], self._unweighted) for a, b in pairwise(starts.tolist())]
        offsets = np.cumsum([0, *(len(ids) for ids, _ in each)], dtype=np.int64)
        return Sparse(np.concatenate([i for i, _ in each]), np.concatenate([w for _, w in each]), offsets)

    def _rows(self, states: Any, starts: Starts, ids: Ids) -> Vectors:
        """One unit row for each token but `<s>`; `</s>` has one."""
        marked = states[_index(np.delete(np.arange(len(ids)), starts[:-1]), states)]
        rows = unit(_host(self._colbert(marked.float())))
        return Multi(rows, starts - np.arange(len(starts), dtype=np.int64))


def lexical(
    ids: npt.NDArray[np.int64], weights: Floats, unweighted: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Distinct token ids, ascending, and the largest weight of each `[t]`; none of `unweighted`, none ≤ 0."""
    # Written so that NaN stays, and is refused by whoever checks the vectors.
    counts = ~(weights <= 0) & ~np.isin(ids, unweighted)
    distinct, where = np.unique(ids[counts], return_inverse=True)
    largest = np.zeros(len(distinct), np.float32)
    np.maximum.at(largest, where, weights[counts])
    return distinct, largest


def _index(positions: npt.NDArray[Any], states: Any) -> Any:
    return torch.from_numpy(positions).to(states.device)


def _host(values: Any) -> Floats:
    """To float32 on the host."""
    found: Floats = values.float().cpu().numpy()
    return found


def _config(spec: ModelSpec, path: Path) -> Any:
    try:
        return XLMRobertaConfig.from_json_file(str(path / "config.json"))
    except Exception as error:  # the library checks fields with errors of its own
        raise WeightsError(f"{spec.name}: {path / 'config.json'} cannot be read: {error}") from error


def _load_model(spec: ModelSpec, path: Path, config: Any, runtime: TorchRuntime) -> Any:
    """The encoder in the runtime's dtype, on its device."""
    transformers_logging.disable_progress_bar()
    try:
        model, report = XLMRobertaModel.from_pretrained(
            str(path),
            config=config,
            dtype=runtime.dtype,
            attn_implementation=runtime.attention,
            local_files_only=True,
            use_safetensors=False,
            weights_only=True,
            # Reported below by name, as what is missing or unknown is.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:  # the libraries' errors share no root
        raise WeightsError(f"{spec.name}: {path} cannot be loaded: {error}") from error
    # The library would fill what is missing with random numbers, and say so in a log only.
    reshaped = {entry[0] for entry in report["mismatched_keys"]}
    found = {*report["missing_keys"], *report["unexpected_keys"], *reshaped}
    wrong = sorted(name for name in found if not name.startswith(_UNUSED))
    if wrong:
        raise WeightsError(
            f"{spec.name}: the tensors of {path / 'pytorch_model.bin'} are not the model's: {len(wrong)} are "
            f"missing, of another shape or unknown, {wrong[0]} for one; take the snapshot "
            f"{spec.hub_id}@{spec.revision}"
        )
    # No output uses the pooler; it is loaded as it stands in the file, and left out of every pass.
    model.pooler = None
    return model.to(runtime.device.name).eval()


def _load_head(spec: ModelSpec, file: Path, inputs: int, outputs: int) -> nn.Linear:
    head = nn.Linear(inputs, outputs)
    try:
        head.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # as above
        raise WeightsError(
            f"{spec.name}: {file} is not a linear layer from {inputs} to {outputs}: {error}; take the "
            f"snapshot {spec.hub_id}@{spec.revision}"
        ) from error
    return head.float().eval()
