"""One way to get a reranker, and to know that it works."""

from __future__ import annotations

import importlib
import math
import time

from registry.errors import FleetError, WeightsError
from registry.models import reranker
from registry.settings import Settings
from worker.rerankers.base import Reranker
from worker.rerankers.fake import FakeReranker
from worker.weights import locate

#: Module and class of each reranker.
_CLASSES = {"jina-reranker-v3": ("worker.rerankers.jina_v3", "JinaRerankerV3")}
#: A question, passages that are no answer, and last the one that is.
_QUESTION = "What is the capital of France?"
_PASSAGES = (
    "Bananas are rich in potassium and ripen faster beside apples.",
    "def add(a, b):\n    return a + b",
    "word " * 400,
    "Paris is the capital and the largest city of France.",
)


def load_reranker(model: str, settings: Settings) -> Reranker:
    """The model, loaded on its device, ready to be warmed up.

    Raises UnknownModel (not a reranker), WeightsError, FleetError (not served here, or no such device).
    """
    spec = reranker(model)
    if settings.fake_encoders:
        return FakeReranker(spec, settings)
    module, name = _CLASSES[spec.name]
    try:
        reranker_class = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise FleetError(
            f"{spec.name} needs torch and transformers, which are not installed ({error}); "
            "install the extra [cpu] or [gpu]"
        ) from error
    found: Reranker = reranker_class(spec, locate(spec, settings), settings)
    return found


def warm_up(reranker: Reranker, *, trained: bool) -> float:
    """Rank a few passages and check what comes out; returns seconds.

    Scores must be finite, in [-1, 1] and differ; a `trained` model must find the answer among them, and one
    of any weights must say the same twice. Raises WeightsError if not, InfrastructureError if the device
    fails.
    """
    begun = time.perf_counter()
    first = reranker.rank(_QUESTION, _PASSAGES, 0)
    if sorted(first.order) != list(range(len(_PASSAGES))):
        raise WeightsError(f"{reranker.spec.name} orders {len(_PASSAGES)} passages as {first.order}")
    if not all(math.isfinite(score) and -1.0 <= score <= 1.0 for score in first.scores):
        raise WeightsError(f"{reranker.spec.name} gives scores that are none: {first.scores}")
    if first.scores[0] - first.scores[-1] < 1e-4:
        raise WeightsError(f"{reranker.spec.name} gives different passages the same score")
    if trained and first.order[0] != len(_PASSAGES) - 1:
        raise WeightsError(
            f"{reranker.spec.name} ranks a passage that does not answer over one that does; these are not "
            "the weights that the registry names"
        )
    if reranker.rank(_QUESTION, _PASSAGES, 0).order != first.order:
        raise WeightsError(f"{reranker.spec.name} orders the same passages differently the second time")
    return time.perf_counter() - begun
