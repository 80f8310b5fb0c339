"""One way to get an encoder, and to know that it works."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Sequence
from typing import Any

from registry.codecs import Dense
from registry.errors import FleetError, GoldenMismatch, InfrastructureError, WeightsError
from registry.models import Backend, ModelSpec, OutputKind, embedder
from registry.serving import served
from registry.settings import Settings
from registry.spaces import space_of
from worker.encoders.base import Encoder
from worker.encoders.encode import encode
from worker.encoders.fake import FakeEncoder
from worker.encoders.goldens import agreement, measure
from worker.encoders.loop import NO_MEMORY
from worker.encoders.minilm_goldens import shipped
from worker.weights import locate

#: The longest text of a warm-up. Tokens. The models' own limit may be 32768, which takes a CPU minutes.
WARM_UP_TOKENS = {"cpu": 512, "cuda": 8192}
#: Module and class of a backend's encoder; `transformers` has one for each of its models.
_BACKENDS: dict[Backend, tuple[str, str]] = {
    "onnxruntime": ("worker.encoders.onnx", "OnnxEncoder"),
    "sentence-transformers": ("worker.encoders.sentence_transformer", "SentenceTransformerEncoder"),
}
_MODELS: dict[str, tuple[str, str]] = {
    "bge-m3": ("worker.encoders.bge_m3", "BgeM3Encoder"),
    "jina-embeddings-v4": ("worker.encoders.jina_v4", "JinaV4Encoder"),
}


def load_encoder(
    model: str,
    task: str,
    settings: Settings,
    kinds: Sequence[OutputKind],
    *,
    variant: str = "",
    truncation: str = "cut",
) -> Encoder:
    """The model, loaded on its device, ready to be warmed up.

    Raises UnknownModel or PlanError (a name, an output, a task or a variant that the registry does not have),
    WeightsError, FleetError (its libraries are not installed, or no such device).
    """
    spec = served(embedder(model), variant, truncation)
    for kind in kinds:
        space_of(spec, kind, task)
    if settings.fake_encoders:
        return FakeEncoder(spec, task, settings)
    encoder_class = _encoder_class(spec)
    encoder: Encoder = encoder_class(spec, task, locate(spec, settings), settings)
    return encoder


def _encoder_class(spec: ModelSpec) -> Any:
    module, name = _MODELS.get(spec.name) or _BACKENDS[spec.backend]
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise FleetError(
            f"{spec.name} needs {spec.backend}, which is not installed ({error}); "
            "install the extra [cpu] or [gpu]"
        ) from error


def warm_up(encoder: Encoder, kinds: Sequence[OutputKind]) -> float:
    """Run short and long texts through the encoder and check what comes out; returns seconds.

    Shapes, finiteness and norms are checked as ever; beyond that, two texts must differ, and where golden
    vectors come with this program the encoder must give them. Raises WeightsError if not, InfrastructureError
    if the device fails or has too little memory for a long text.
    """
    begun = time.perf_counter()
    kind_of_device = encoder.numerics.device.partition(":")[0]
    longest = min(WARM_UP_TOKENS[kind_of_device], encoder.space(kinds[0]).max_tokens)
    texts = ["def add(a, b): return a + b", "the cat sat on the mat"]
    # The prompt and the special tokens must fit, too: where long texts are refused, this one must not be.
    texts.append("the " * max(1, longest - 32))
    part = encode(encoder, texts, "document", kinds, device_lock=threading.Lock())
    if part.rejected:
        why = next(iter(part.rejected.values()))
        if why.startswith(NO_MEMORY):
            raise InfrastructureError(
                f"{encoder.model} on {encoder.numerics.device} has no memory for a text of {longest} tokens, "
                f"and starts when it has ({why}); free some, or choose another device with V5_DEVICE"
            )
        raise WeightsError(f"{encoder.model} fails its warm-up: {why}")
    dense = part.vectors.get("dense")
    if isinstance(dense, Dense):
        if float(dense.values[0] @ dense.values[1]) > 0.999:
            raise WeightsError(f"{encoder.model} gives two different texts the same vector")
        golden = shipped(encoder.space("dense"))
        if golden is not None:
            found = agreement(golden, measure(encoder, ["dense"])["dense"])
            if found.problem:
                raise GoldenMismatch(
                    f"{encoder.model} on {encoder.numerics.device}: {found.problem}; these are not the "
                    "weights that the registry names, or this machine computes wrongly"
                )
    return time.perf_counter() - begun
