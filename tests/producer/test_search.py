"""Reranked search as a library call: what it asks of the fleet, and what it refuses before it asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.alive import Process
from ledger.ledger import Ledger
from producer.fleet import Fleet, Order
from producer.search import search_with_reranking
from registry.errors import FleetError, UsageError
from registry.plan import Plan
from registry.settings import Settings, load_settings


class OneCollection(Fleet):
    """A fleet whose store holds these texts and whose reranker puts the longest text first."""

    def __init__(self, settings: Settings, plan: Plan, texts: tuple[str | None, ...]) -> None:
        super().__init__(settings)
        self.standing, self.texts = plan, texts
        self.asked: list[Any] = []

    def plan(self, name: str) -> Plan:
        return self.standing

    def embed_query(self, *_: Any) -> dict[str, bytes]:
        return {}

    def search(self, _name: str, vectors: Any, _parts: Any, limit: int) -> list[dict[str, Any]]:
        self.asked.append((list(vectors), limit))
        payloads = [{} if text is None else {"text": text} for text in self.texts[:limit]]
        return [{"id": f"p{i}", "score": 1.0 - i / 10, "payload": p} for i, p in enumerate(payloads)]

    def rerank(self, query: str, documents: Any, block: int = 0, model: str = "") -> Order:
        self.asked.append((query, list(documents), block, model))
        order = sorted(range(len(documents)), key=lambda i: -len(documents[i]))
        ranking = tuple((position, 0.5 - rank / 10) for rank, position in enumerate(order))
        return Order(model, "label", block, (len(order),), ranking, (), False)


@pytest.fixture
def settings(data_dir: Path) -> Settings:
    """As for a fleet: the producer's own tests have no data directory."""
    return load_settings(data_dir=data_dir, fake_encoders=True)


@pytest.fixture
def make(settings: Settings, ledger: Ledger, plan: Plan) -> Iterator[Any]:
    made: list[Fleet] = []

    def _make(*texts: str | None, alive: bool = True) -> OneCollection:
        if alive:
            ledger.alive.announce(Process(kind="worker", name="r", model="jina-reranker-v3"))
        made.append(OneCollection(settings, plan, texts))
        return made[-1]  # type: ignore[return-value]

    yield _make
    for fleet in made:
        fleet.close()


def test_the_best_of_the_candidates_with_both_ranks(make: Any, plan: Plan) -> None:
    fleet = make("aa", "a", "aaaa", "aaa")
    found = search_with_reranking(fleet, "c", "q", 2, 4, block=3)
    assert [(hit.rank, hit.first_rank, hit.hit.id) for hit in found.hits] == [(1, 3, "p2"), (2, 4, "p3")]
    assert [hit.relevance_score for hit in found.hits] == [0.5, 0.4]
    assert found.hits[0].hit.score == pytest.approx(0.8)
    assert found.candidates == 4
    assert fleet.asked == [
        (["qdrant-minilm-onnx", "all-miniLM-l6"], 4),
        ("q", ["aa", "a", "aaaa", "aaa"], 3, "jina-reranker-v3"),
    ]


def test_the_defaults_are_twenty_of_a_hundred(make: Any) -> None:
    fleet = make(*("a" * n for n in range(1, 131)))
    found = search_with_reranking(fleet, "c", "q")
    assert (len(found.hits), found.candidates) == (20, 100)
    assert found.hits[0].first_rank == 100


def test_nothing_found_is_not_reranked(make: Any) -> None:
    fleet = make()
    assert search_with_reranking(fleet, "c", "q").order is None
    assert len(fleet.asked) == 1


@pytest.mark.parametrize("silent", [None, ""])
def test_a_candidate_without_text_is_named(make: Any, silent: str | None) -> None:
    with pytest.raises(UsageError, match=r"candidate p1 of collection 'c' has no text \(1 of 3"):
        search_with_reranking(make("a", silent, "b"), "c", "q")


def test_no_reranker_is_said_before_anything_is_asked(make: Any) -> None:
    fleet = make("a", alive=False)
    with pytest.raises(FleetError, match="start one with `v5 worker jina-reranker-v3`"):
        search_with_reranking(fleet, "c", "q")
    assert fleet.asked == []


def test_more_results_than_candidates_cannot_be(make: Any) -> None:
    with pytest.raises(UsageError, match="30 results cannot be chosen from 20"):
        search_with_reranking(make("a"), "c", "q", 30, 20)
