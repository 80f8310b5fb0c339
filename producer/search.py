"""Searching a collection: candidates by vectors, and their order by a reranker."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

from producer.fleet import Fleet, Order
from registry.errors import PlanError, UsageError
from registry.models import DEFAULT_RERANKER
from registry.plan import Plan

#: Candidates that a reranker sees, and results that are kept of them, where nobody says otherwise.
CANDIDATES = 100
TOP = 20


@dataclass(frozen=True)
class Hit:
    """A point that was found; `text` is empty where its payload has none."""

    id: str
    score: float
    path: str | None
    start_line: int | None
    text: str


@dataclass(frozen=True)
class RerankedHit:
    """A hit, its place among the results and among the candidates (both from 1)."""

    rank: int
    relevance_score: float
    first_rank: int
    hit: Hit


@dataclass(frozen=True)
class Reranked:
    """The best of the candidates, in the reranker's order."""

    hits: tuple[RerankedHit, ...]
    candidates: int
    #: How the reranker came to its order; None where there was nothing to order.
    order: Order | None


def find(fleet: Fleet, collection: str, query: str, using: Sequence[str], limit: int) -> list[Hit]:
    """The best hits by the named vectors (default: all, fused), best first."""
    plan = fleet.plan(collection)
    names = list(using) or default_names(plan)
    vectors = {name: plan.vector(name).fingerprint for name in names}
    blobs = fleet.embed_query(plan, plan.models_for(names), query)
    parts = {model: base64.b64encode(blob).decode() for model, blob in blobs.items()}
    return [
        Hit(
            id=hit["id"],
            score=hit["score"],
            path=hit["payload"].get("path"),
            start_line=hit["payload"].get("start_line"),
            text=str(hit["payload"].get("text") or ""),
        )
        for hit in fleet.search(collection, vectors, parts, limit)
    ]


def search_with_reranking(
    fleet: Fleet,
    collection: str,
    query: str,
    top_k: int = TOP,
    initial_candidates: int = CANDIDATES,
    *,
    using: Sequence[str] = (),
    block: int = 0,
    model: str = DEFAULT_RERANKER,
) -> Reranked:
    """The best `top_k` of the first `initial_candidates` hits, as the reranker orders them.

    `block` is the number of candidates of one pass (0: the model's own). Raises FleetError if no such
    reranker is alive, UsageError if a candidate has no text.
    """
    if top_k > initial_candidates:
        raise UsageError(f"{top_k} results cannot be chosen from {initial_candidates} candidates")
    fleet.require_reranker(model)
    hits = find(fleet, collection, query, using, initial_candidates)
    if not hits:
        return Reranked((), 0, None)
    silent = [hit.id for hit in hits if not hit.text]
    if silent:
        raise UsageError(
            f"candidate {silent[0]} of collection {collection!r} has no text ({len(silent)} of {len(hits)} "
            "have none), and a reranker reads texts; search without --rerank, or submit the corpus again"
        )
    order = fleet.rerank(query, [hit.text for hit in hits], block, model)
    best = tuple(
        RerankedHit(rank, score, position + 1, hits[position])
        for rank, (position, score) in enumerate(order.ranking[:top_k], 1)
    )
    return Reranked(best, len(hits), order)


def default_names(plan: Plan) -> list[str]:
    """Every vector that says something of its own: no prefixes of another, no per-token vectors (these are
    for rescoring), and the ensemble in place of nothing."""
    names = [v.name for v in plan.vectors() if v.derived != "matryoshka" and v.kind != "multi"]
    if not names:
        names = [v.name for v in plan.vectors()]
    if not names:
        raise PlanError("the collection's plan has no vectors")
    return names
