"""jina-reranker-v3: a Qwen3 decoder reads query and candidates at once; states at two tokens are compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn
from transformers import Qwen3Model
from transformers.utils import logging as transformers_logging

from registry.errors import EncodeError, WeightsError
from registry.models import ModelSpec
from registry.settings import Settings
from registry.spaces import FAKE_REVISION
from worker.encoders.layers import Layers
from worker.encoders.text import check_vocabulary
from worker.encoders.torch_runtime import TorchRuntime
from worker.rerankers.base import Ranking, block_size, reranking
from worker.rerankers.blocks import FloatArray, cut, join
from worker.rerankers.prompt import render
from worker.rerankers.tokens import Ids, PromptTokenizer
from worker.tensors import shards, stored
from worker.weights import Weights

#: Names of the projector's tensors in the checkpoint start with this; all others are the decoder's.
_PROJECTOR = "projector."


class _Decoder(Qwen3Model):  # type: ignore[misc]
    """transformers' own Qwen3 without a language head, from a checkpoint that holds the projector, too."""

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^projector\."]


class JinaRerankerV3:
    """Listwise: one causal pass over the prompt of a block, then cosines of projected states.

    A pass holds one prompt, so nothing is padded and there is no mask but the causal one.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, settings: Settings) -> None:
        """Raises WeightsError naming the tensor or token that is not the model's; FleetError for a device
        that is not here."""
        self.spec = spec
        self.revision = FAKE_REVISION if settings.fake_weights else spec.revision
        self._limits = reranking(spec)
        self._tokenizer = PromptTokenizer(spec, weights.path, own_ids=settings.fake_weights)
        self._runtime = TorchRuntime(spec, settings)
        self._decoder = _load_decoder(spec, weights.path, self._runtime)
        self._projector = _load_projector(spec, weights.path, self._runtime)
        rows = self._decoder.get_input_embeddings().num_embeddings
        check_vocabulary(spec, weights.path, self._tokenizer.size, rows)
        self.layers: Layers | None = self._runtime.layers(self._decoder)
        self.numerics = self._runtime.numerics("transformers")

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        block: int,
        between: Callable[[], None] = lambda: None,
    ) -> Ranking:
        """Order the documents by relevance; see `Reranker.rank`."""
        block = block_size(self.spec, block)
        limits = self._limits
        fitted_query = self._tokenizer.fit(query, limits.max_query_tokens)
        fitted = [self._tokenizer.fit(document, limits.max_document_tokens) for document in documents]
        spans = cut(
            [document.tokens for document in fitted],
            fitted_query.tokens,
            block=block,
            max_tokens=self._tokenizer.max_tokens,
            max_document_tokens=limits.max_document_tokens,
        )
        if not spans:
            return Ranking((), (), ())
        queries, candidates, tokens = [], [], 0
        for span in spans:
            between()
            ids = self._encode(fitted_query.text, [fitted[position].text for position in span])
            query_vector, vectors = self._pass(ids, len(span))
            queries.append(query_vector)
            candidates.append(vectors)
            tokens += len(ids)
        scores = join(queries, candidates)
        broken = np.flatnonzero(~np.isfinite(scores))
        if len(broken):
            raise EncodeError(f"{self.spec.name} gives candidate {broken[0]} no finite score")
        order = np.argsort(-scores, kind="stable")
        return Ranking(
            order=tuple(order.tolist()),
            scores=tuple(scores[order].tolist()),
            blocks=tuple(len(span) for span in spans),
            truncated=tuple(position for position, document in enumerate(fitted) if document.cut),
            query_truncated=fitted_query.cut,
            tokens=tokens,
        )

    def close(self) -> None:
        """Free the device's memory."""
        self.layers = None
        del self._decoder, self._projector
        self._runtime.release()

    def _encode(self, query: str, documents: Sequence[str]) -> Ids:
        tokenizer = self._tokenizer
        return tokenizer.encode(render(query, documents, tokenizer.embed_token, tokenizer.rerank_token))

    def _pass(self, ids: Ids, count: int) -> tuple[FloatArray, FloatArray]:
        """Projected states of the query `[d]` and of the passages `[count, d]`, float32."""
        marks = self._marks(ids, count)
        with self._runtime.errors(), torch.inference_mode():
            states = self._states(ids)
            vectors: FloatArray = self._projector(states[marks]).float().cpu().numpy()
        return vectors[0], vectors[1:]

    def _marks(self, ids: Ids, count: int) -> Ids:
        """Where the prompt's special tokens stand: the query's, then the passages' `[1 + count]`."""
        query = np.flatnonzero(ids == self._tokenizer.rerank_id)
        passages = np.flatnonzero(ids == self._tokenizer.embed_id)
        if len(query) != 1 or len(passages) != count:
            raise EncodeError(
                f"a prompt of {count} passages marks {len(passages)} of them and {len(query)} queries"
            )
        return np.concatenate([query, passages])

    def _states(self, ids: Ids) -> torch.Tensor:
        """The last layer's states after its norm, `[t, hidden]`, on the device."""
        row = torch.from_numpy(ids)[None].to(self._runtime.device.name)
        states: torch.Tensor = self._decoder(input_ids=row, use_cache=False).last_hidden_state[0]
        return states


def _load_decoder(spec: ModelSpec, snapshot: Path, runtime: TorchRuntime) -> Any:
    """The decoder, every tensor of it from the checkpoint; nothing of the checkpoint's code is run."""
    transformers_logging.disable_progress_bar()
    try:
        with runtime.loading(spec.name):
            decoder, found = _Decoder.from_pretrained(
                str(snapshot),
                dtype=runtime.dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
            decoder = decoder.to(runtime.device.name).eval()
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise WeightsError(f"{spec.name}: {snapshot} cannot be loaded: {error}") from error
    for what, names in (("lacks", found["missing_keys"]), ("has the foreign", found["unexpected_keys"])):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise WeightsError(
                f"{spec.name}: {snapshot} {what} tensors {some} ({len(names)} in all); take the weights of "
                f"{spec.hub_id}@{spec.revision}"
            )
    return decoder


def _load_projector(spec: ModelSpec, snapshot: Path, runtime: TorchRuntime) -> nn.Sequential:
    """Linear, ReLU, Linear, without biases."""
    wide, middle, narrow = reranking(spec).projector
    wanted = {"0.weight": (middle, wide), "2.weight": (narrow, middle)}
    try:
        found = {
            one.name.removeprefix(_PROJECTOR): one.read()
            for one in stored(shards(spec, snapshot))
            if one.name.startswith(_PROJECTOR)
        }
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise WeightsError(f"{spec.name}: {snapshot} cannot be loaded: {error}") from error
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != wanted:
        raise WeightsError(f"{spec.name}: the projector of {snapshot} has tensors {shapes}, not {wanted}")
    with torch.device("meta"):
        projector = nn.Sequential(
            nn.Linear(wide, middle, bias=False), nn.ReLU(), nn.Linear(middle, narrow, bias=False)
        )
    projector.load_state_dict(found, assign=True)
    with runtime.loading(spec.name):
        return projector.to(runtime.device.name, runtime.dtype).eval()
