"""One way to get an encoder, and to know that it works."""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from registry.codecs import Dense
from registry.errors import FleetError, WeightsError
from registry.models import MODELS, Backend, ModelSpec, OutputKind, embedder
from registry.settings import Settings
from registry.spaces import space_of
from worker.encoders.base import Encoder
from worker.encoders.encode import encode
from worker.encoders.fake import FakeEncoder
from worker.encoders.goldens import GOLDEN_TOLERANCE, GOLDENS
from worker.weights import locate

#: The longest text of a warm-up. Tokens. The models' own limit may be 32768, which takes a CPU minutes.
WARM_UP_TOKENS = {"cpu": 512, "cuda": 8192}
#: Module and class of each backend that this version serves.
_BACKENDS: dict[Backend, tuple[str, str]] = {
    "onnxruntime": ("worker.encoders.onnx", "OnnxEncoder"),
    "sentence-transformers": ("worker.encoders.sentence_transformer", "SentenceTransformerEncoder"),
}


def load_encoder(model: str, task: str, settings: Settings, kinds: Sequence[OutputKind]) -> Encoder:
    """The model, loaded on its device, ready to be warmed up.

    Raises UnknownModel or PlanError (a name, an output or a task that the registry does not have),
    WeightsError, FleetError (not served here, or no such device).
    """
    spec = embedder(model)
    for kind in kinds:
        space_of(spec, kind, task)
    if settings.fake_encoders:
        return FakeEncoder(spec, task, settings)
    encoder_class = _encoder_class(spec)
    encoder: Encoder = encoder_class(spec, task, locate(spec, settings), settings)
    return encoder


def _encoder_class(spec: ModelSpec) -> Any:
    if spec.backend not in _BACKENDS:
        served = ", ".join(s.name for s in MODELS.values() if s.backend in _BACKENDS)
        raise FleetError(f"this version does not serve {spec.name} yet; it serves {served}")
    module, name = _BACKENDS[spec.backend]
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
    vectors are known the encoder must give them. Raises WeightsError if not, InfrastructureError if the
    device fails.
    """
    begun = time.perf_counter()
    kind_of_device = encoder.numerics.device.partition(":")[0]
    golden = GOLDENS.get(encoder.model)
    texts = ["def add(a, b): return a + b", "the cat sat on the mat", golden.text if golden else "probe"]
    texts.append("word " * min(WARM_UP_TOKENS[kind_of_device], encoder.space(kinds[0]).max_tokens))
    part = encode(encoder, texts, "document", kinds, device_lock=threading.Lock())
    if part.rejected:
        raise WeightsError(f"{encoder.model} fails its warm-up: {next(iter(part.rejected.values()))}")
    dense = part.vectors.get("dense")
    if isinstance(dense, Dense):
        if float(dense.values[0] @ dense.values[1]) > 0.999:
            raise WeightsError(f"{encoder.model} gives two different texts the same vector")
        if golden is not None and encoder.numerics.backend != "fake":
            difference = float(np.abs(dense.values[2, : len(golden.head)] - golden.head).max())
            if not difference <= GOLDEN_TOLERANCE:
                raise WeightsError(
                    f"{encoder.model} is off its golden vector by {difference:.3g}; these are not the "
                    "weights that the registry names"
                )
    return time.perf_counter() - begun
