"""jina-embeddings-v4 for texts: one vector and one row per token, from one pass."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import normalize

from registry.codecs import Dense, FloatArray, Multi, Vectors
from registry.models import ModelSpec, OutputKind
from registry.settings import Settings
from worker.encoders.base import MicroBatch
from worker.encoders.jina_v4_model import load
from worker.encoders.text import TextEncoder, check_vocabulary, text_tokenizer
from worker.encoders.tokens import Packed, Padded, Starts
from worker.encoders.torch_runtime import TorchRuntime
from worker.encoders.unpadded import model_inputs, useful
from worker.weights import Weights

#: Tokens of a micro-batch on a CPU: a batch that leaves the cache is slower.
CPU_BUDGET = 1024
#: Tokens of a micro-batch on a GPU; a longer text goes alone. They want about 2 GB beside the model.
CUDA_BUDGET = 16384


class JinaV4Encoder(TextEncoder):
    """Dense: the mean of a text's states after the final norm. Multi: each state projected, prefix included.

    Upstream tokenises prefix and text plainly: no chat template, no token before or after, cut at the end.
    So does this encoder. It differs on purpose in one thing: a text is only ever text. Upstream's wrapper for
    sentence-transformers fetches a text that begins with `http` and opens one that names a file; its model
    takes `<|vision_start|>` inside a text for the begin of a picture and pools that picture only. Here all of
    these are ordinary tokens at positions 0, 1, 2, …, and the mean is over all of them.

    Attention is causal and padding, where there is any, stands on the right, so no token ever sees padding,
    whatever its id: the pass needs no mask, and takes torch's fused attention. Only pooling and rows need to
    know where a text ends.
    """

    def __init__(self, spec: ModelSpec, task: str, weights: Weights, settings: Settings) -> None:
        """Load it with the task's adapter; raises as `load`, and PlanError for a task it does not have."""
        runtime = TorchRuntime(spec, settings)
        runtime.leave_out_padding()
        tokenizer = text_tokenizer(spec, weights, packed=runtime.packed)
        super().__init__(
            spec, task, settings, tokenizer, runtime.budget("transformers", cpu=CPU_BUDGET, cuda=CUDA_BUDGET)
        )
        self._runtime = runtime
        self._model = load(spec, self._task, weights.path, runtime)
        check_vocabulary(spec, weights.path, tokenizer.size, self._model.text.embed_tokens.num_embeddings)
        self.layers = runtime.layers(self._model.text)
        self.numerics = runtime.numerics("transformers")

    def forward(self, batch: MicroBatch) -> torch.Tensor:
        """The states after the final norm, `[b, t, 2048]` on the device; those of padding mean nothing.
        `[1, t, 2048]` of packed texts."""
        tokens: Padded | Packed = batch.tokens
        device = self._runtime.device.name
        with self._runtime.errors(), torch.inference_mode():
            if isinstance(tokens, Packed):
                inputs = model_inputs(tokens, tokens.positions, device)
            else:
                inputs = {"input_ids": torch.from_numpy(tokens.ids).to(device)}
            states: torch.Tensor = self._model.text(**inputs, use_cache=False).last_hidden_state
            return states

    def finish(
        self, batch: MicroBatch, raw: torch.Tensor, kinds: Sequence[OutputKind]
    ) -> dict[OutputKind, Vectors]:
        """Pool and project what is asked for; sums and norms in float32 whatever the pass computed in."""
        tokens: Padded | Packed = batch.tokens
        made: dict[OutputKind, Vectors] = {}
        with self._runtime.errors(), torch.inference_mode():
            states = useful(raw, tokens)
            if "dense" in kinds:
                made["dense"] = Dense(_mean(states, tokens.starts))
            if "multi" in kinds:
                rows = normalize(self._model.projector(states).float(), dim=-1).cpu().numpy()
                made["multi"] = Multi(rows, tokens.starts.astype(np.int64))
        return made

    def free(self) -> None:
        """See Encoder.free."""
        self._runtime.release()

    def close(self) -> None:
        """Free the device's memory."""
        self.layers = None
        del self._model
        self._runtime.release()


def _mean(states: torch.Tensor, starts: Starts) -> FloatArray:
    """Unit means `[b, h]` of each text's states."""
    lengths = torch.from_numpy(np.diff(starts).astype(np.int64)).to(states.device)
    summed = torch.segment_reduce(states.float(), "sum", lengths=lengths, unsafe=True)
    means: FloatArray = normalize(summed, dim=-1).cpu().numpy()
    return means
