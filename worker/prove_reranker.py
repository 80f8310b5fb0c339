"""The proof of a reranker on this machine: real weights held against scores that somebody published."""

from __future__ import annotations

from registry.examples import SCORED, ScoredExample
from registry.models import ModelSpec
from registry.settings import Settings
from worker.prove import Finding, Proof, near
from worker.rerankers.base import Reranker
from worker.rerankers.factory import load_reranker, warm_up

#: A score may differ by this between two passes over the same candidates.
REPEAT_TOLERANCE = 1e-4


def prove_reranker(spec: ModelSpec, settings: Settings) -> tuple[Reranker, Proof]:
    """Load the model and hold it against what is known of it; the caller closes it.

    Raises as `worker.prove.prove`.
    """
    reranker = load_reranker(spec.name, settings)
    proof = Proof()
    warm_up(reranker, trained=not settings.fake_weights)
    said = "upstream's card shows an example, and no scores for it"
    proof.findings.append(Finding("scores on upstream's card", "not checked", said=said))
    example = SCORED.get(spec.name)
    if example is not None:
        proof.findings += _scores(reranker, example)
    return reranker, proof


def _scores(reranker: Reranker, example: ScoredExample) -> list[Finding]:
    first, again = (reranker.rank(example.query, example.documents, 0) for _ in range(2))
    scores = dict(zip(first.order, first.scores, strict=True))
    findings = [
        near(f"score of passage {i + 1}", scores[i], expected, example.tolerance, example.source)
        for i, expected in enumerate(example.scores)
    ]
    repeated = dict(zip(again.order, again.scores, strict=True))
    drift = max(abs(repeated[i] - scores[i]) for i in scores)
    return [
        *findings,
        Finding(
            "the same scores twice",
            "ok" if drift <= REPEAT_TOLERANCE else "wrong",
            drift,
            None,
            REPEAT_TOLERANCE,
            "largest difference",
        ),
    ]
