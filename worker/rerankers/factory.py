"""One way to get a reranker, and to know that it works."""

from __future__ import annotations

import importlib
import math
import time
from dataclasses import replace

from registry.errors import FleetError, WeightsError
from registry.models import reranker
from registry.settings import Settings
from worker.rerankers.base import Ranking, Reranker
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
#: How far scores may lie from those of the same weights without being wrong: more than bfloat16 rounds.
_TOLERANCE = 0.02


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


def compile_if_faster(reranker: Reranker) -> None:
    """Compile the model's layers where settings say so; noted in its numerics.

    To be called before anything else uses it. Raises as `Layers.settle`, and as Reranker.rank.
    """
    if reranker.layers is not None and reranker.layers.settle(_RerankerTrial(reranker)):
        reranker.numerics = replace(reranker.numerics, compiled=True)


class _RerankerTrial:
    """See `worker.encoders.layers.Trial`. A pass holds one prompt, so shapes differ in its length only."""

    def __init__(self, reranker: Reranker) -> None:
        self._reranker = reranker

    def shapes(self) -> None:
        """Prompts of two lengths."""
        for passages in (_PASSAGES[:1], _PASSAGES):
            self._reranker.rank(_QUESTION, passages, 0)

    def load(self) -> None:
        """A prompt about as long as those of a search."""
        self._reranker.rank(_QUESTION, _PASSAGES[2:3] * 10, 0)

    def answer(self) -> Ranking:
        """Scores of a few passages."""
        return self._reranker.rank(_QUESTION, _PASSAGES, 0)

    def problem(self, eager: Ranking, compiled: Ranking) -> str:
        """What does not agree of their scores."""
        scores = [dict(zip(one.order, one.scores, strict=True)) for one in (eager, compiled)]
        off = max(abs(scores[0][i] - scores[1][i]) for i in scores[0])
        # Written so that NaN is a problem.
        return "" if off <= _TOLERANCE else f"its scores are off by up to {off:.3g}"
