"""What stands around a reranker's pass: prompt, blocks, the fake one, and what the worker answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ledger.ledger import Ledger
from registry.errors import (
    EncodeError,
    InfrastructureError,
    Unanswered,
    UnknownModel,
    UsageError,
    V5Error,
    WeightsError,
)
from registry.frames import unpack_json
from registry.settings import Settings
from worker.reranker import MOST_CANDIDATES, RerankWorker
from worker.rerankers.base import Ranking
from worker.rerankers.blocks import cut, join
from worker.rerankers.factory import load_reranker, warm_up
from worker.rerankers.fake import FakeReranker
from worker.rerankers.prompt import render, strip

NAME = "jina-reranker-v3"
SPECIAL = ("<|rerank_token|>", "<|embed_token|>")


def test_the_prompt_shows_the_query_twice_and_ends_each_passage_with_its_mark() -> None:
    prompt = render("who?", ["a {b}", "c"], "<E>", "<R>")
    assert prompt.startswith("<|im_start|>system\nYou are a search relevance expert who can ")
    assert prompt.endswith(
        "I will provide you with 2 passages, each indicated by a numerical identifier. Rank the passages "
        'based on their relevance to query: who?\n<passage id="0">\na {b}<E>\n</passage>\n<passage id="1">\n'
        "c<E>\n</passage>\n<query>\nwho?<R>\n</query><|im_end|>\n<|im_start|>assistant\n<think>\n\n"
        "</think>\n\n"
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("<|embed_token|>a<|rerank_token|>", "a"),
        ("<|embed_<|rerank_token|>token|>", ""),
        ("<|rerank_<|embed_token|>token|>", ""),
        ("<|embed_<|embed_token|>token|>b", "b"),
        ("<|im_end|> stays", "<|im_end|> stays"),
    ],
)
def test_no_special_token_is_left_or_put_together(text: str, wanted: str) -> None:
    assert strip(text, SPECIAL) == wanted


def spans(lengths: list[int], query: int = 0, block: int = 125, limit: int = 100_000) -> list[int]:
    found = cut(lengths, query, block=block, max_tokens=limit, max_document_tokens=2048)
    assert [i for span in found for i in span] == list(range(len(lengths)))
    return [len(span) for span in found]


def test_blocks_end_at_their_size_or_where_another_document_may_not_fit() -> None:
    assert spans([]) == []
    assert spans([1] * 125) == [125]
    assert spans([1] * 126) == [125, 1]
    assert spans([1] * 7, block=3) == [3, 3, 1]
    # 3000 tokens less 2048 in reserve leave 952: the document that reaches it ends the block.
    assert spans([476] * 4, limit=3000) == [2, 2]
    assert spans([475] * 4, limit=3000) == [3, 1]
    assert spans([475] * 4, query=1, limit=3000) == [2, 2]
    assert spans([10] * 3, query=500, limit=3000) == [1, 1, 1]


def test_blocks_are_joined_by_their_best_candidates() -> None:
    queries = [np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)]
    documents = [np.array([[1.0, 0.0]], np.float32), np.array([[0.0, -1.0]], np.float32)]
    # The second block's best candidate is the query's opposite: its query vector counts for nothing.
    assert join(queries, documents).tolist() == [1.0, 0.0]
    assert join(queries[1:], documents[1:]).tolist() == [-1.0]


@pytest.fixture
def fake(settings: Settings) -> FakeReranker:
    found = load_reranker(NAME, settings)
    assert isinstance(found, FakeReranker)
    return found


def test_equal_scores_keep_the_order_given(fake: FakeReranker) -> None:
    found = fake.rank("a b", ["c", "b", "d", "a b", "b a x", "a"], 4)
    assert found.order == (3, 4, 1, 5, 0, 2)
    assert found.scores == (1.0, 1.0, 0.0, 0.0, -1.0, -1.0)
    assert found.blocks == (4, 2)


def test_an_embedding_model_does_not_rerank(settings: Settings) -> None:
    with pytest.raises(UnknownModel, match="embeds and does not rerank"):
        load_reranker("bge-m3", settings)
    with pytest.raises(UnknownModel, match="embeds and does not rerank"):
        RerankWorker(settings, "bge-m3")


@pytest.mark.parametrize(
    ("ranking", "match"),
    [
        (Ranking((3, 0, 1, 2), (0.9, float("nan"), 0.1, 0.0), (4,)), "scores that are none"),
        (Ranking((3, 0, 1, 2), (1.5, 0.2, 0.1, 0.0), (4,)), "scores that are none"),
        (Ranking((3, 0, 1, 2), (0.5, 0.5, 0.5, 0.5), (4,)), "the same score"),
        (Ranking((3, 3, 1, 2), (0.5, 0.4, 0.3, 0.2), (4,)), "orders 4 passages as"),
        (Ranking((0, 3, 1, 2), (0.5, 0.4, 0.3, 0.2), (4,)), "does not answer"),
    ],
)
def test_a_reranker_that_does_not_work_is_not_ready(
    fake: FakeReranker, monkeypatch: pytest.MonkeyPatch, ranking: Ranking, match: str
) -> None:
    assert warm_up(fake, trained=True) >= 0
    monkeypatch.setattr(fake, "rank", lambda *_: ranking)
    with pytest.raises(WeightsError, match=match):
        warm_up(fake, trained=True)


def test_a_reranker_that_changes_its_mind_is_not_ready(
    fake: FakeReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([(3, 0, 1, 2), (3, 1, 0, 2)])
    monkeypatch.setattr(fake, "rank", lambda *_: Ranking(next(answers), (0.5, 0.4, 0.3, 0.2), (4,)))
    with pytest.raises(WeightsError, match="the second time"):
        warm_up(fake, trained=True)


@pytest.fixture
def worker(settings: Settings, ledger: Ledger) -> Iterator[RerankWorker]:
    """A worker that is prepared but consumes nothing."""
    found = RerankWorker(settings, NAME)
    found.prepare()
    yield found
    found.ledger.close()


def test_the_worker_says_in_which_blocks_it_ranked(worker: RerankWorker) -> None:
    asked = {"query": "a b", "documents": ["a", "b c", "a b"], "block": 2}
    answer = unpack_json(worker._rank(asked, time.time() + 10))
    assert answer["ranking"] == [[2, 1.0], [0, 0.0], [1, 0.0]]
    assert (answer["block"], answer["blocks"]) == (2, [2, 1])
    assert answer["label"] == "jina-reranker-v3@fake-1/block-2"
    assert unpack_json(worker._rank({"query": "a", "documents": []}, time.time() + 10))["ranking"] == []
    assert worker.process.model == NAME
    assert worker.queues == ["rerank.jina-reranker-v3"]


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"query": " ", "documents": ["a"]}, "is empty"),
        ({"documents": ["a"]}, "is empty"),
        ({"query": "a", "documents": "a"}, "a list of texts"),
        ({"query": "a", "documents": ["a", None]}, "a list of texts"),
        ({"query": "a", "documents": ["a"] * (MOST_CANDIDATES + 1)}, "at most 1000"),
        ({"query": "a", "documents": ["a"], "block": "2"}, "not '2'"),
        ({"query": "a", "documents": ["a"], "block": True}, "not True"),
        ({"query": "a", "documents": ["a"], "block": 126}, "takes 1 to 125"),
        ({"query": "a", "documents": ["a"], "block": -1}, "takes 1 to 125"),
    ],
)
def test_a_request_that_cannot_be_is_refused(worker: RerankWorker, asked: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        worker._rank(asked, time.time() + 10)


def test_nothing_is_ranked_for_nobody(worker: RerankWorker) -> None:
    asked = {"query": "a", "documents": ["a"]}
    with pytest.raises(Unanswered, match="nobody waits"):
        worker._rank(asked, time.time() - 1)
    worker.stopping.set()
    with pytest.raises(InfrastructureError, match="stopping"):
        worker._rank(asked, time.time() + 10)


def test_too_little_memory_is_answered_with_what_helps(
    worker: RerankWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.reranker, "rank", _raising(MemoryError("no room")))
    asked = {"query": "a", "documents": ["a", "b"]}
    with pytest.raises(EncodeError, match=r"2 candidates in blocks of 125 .* cpu has; use smaller .*--block"):
        worker._rank(asked, time.time() + 10)
    with pytest.raises(EncodeError, match=r"in blocks of 1 .* use shorter candidates"):
        worker._rank({**asked, "block": 1}, time.time() + 10)


def _raising(error: Exception) -> Callable[..., Ranking]:
    def rank(*_: Any) -> Ranking:
        raise error

    return rank


@pytest.mark.parametrize(
    ("error", "answered", "ended"),
    [
        (MemoryError("no room"), EncodeError, False),
        (InfrastructureError("the device failed"), InfrastructureError, True),
    ],
)
def test_too_little_memory_is_answered_and_a_lost_device_ends_the_process(
    worker: RerankWorker,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    answered: type[V5Error],
    ended: bool,
) -> None:
    reasons: list[str] = []
    monkeypatch.setattr(worker, "give_up", reasons.append)
    monkeypatch.setattr(worker.reranker, "rank", _raising(error))
    with pytest.raises(answered, match="--block" if not ended else "device failed"):
        worker._rank({"query": "a", "documents": ["a"]}, time.time() + 10)
    assert bool(reasons) is ended
