"""Windows and batches."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.batching import FIRST_WINDOW, LEAST_CHUNKS, SPREAD, cut_batches, windows
from producer.problem import Problem
from registry.chunks import Chunk, chunk_id
from registry.settings import Settings


def settings(**fields: int) -> Settings:
    return Settings(_env_file=None, **fields)


def chunk(number: int, size: int) -> Chunk:
    return Chunk(chunk_id(str(number)), "x" * size, {})


def test_a_window_closes_at_its_count_and_takes_problems_along():
    items = [chunk(0, 5), Problem("a", "why"), chunk(1, 5), chunk(2, 5), Problem("b", "why")]
    first, second = windows(items, settings(window_chunks=3))
    assert [len(first.chunks), len(first.problems)] == [2, 1]
    assert [len(second.chunks), len(second.problems)] == [1, 1]


def test_a_window_closes_before_its_bytes_payload_included():
    fat = [Chunk(chunk_id(str(i)), "x", {"k": "y" * 1000}) for i in range(4)]
    assert [len(w.chunks) for w in windows(fat, settings(window_bytes=2100))] == [2, 2]
    assert [len(w.chunks) for w in windows([chunk(0, 9000), chunk(1, 1)], settings(window_bytes=1024))] == [
        1,
        1,
    ]


def test_windows_grow_to_their_size():
    sizes = [len(w.chunks) for w in windows((chunk(i, 1) for i in range(3000)), settings(window_chunks=1000))]
    assert sizes == [FIRST_WINDOW, 2 * FIRST_WINDOW, 1000, 1000, 3000 - 3 * FIRST_WINDOW - 2000]


def test_windows_are_lazy():
    taken = []

    def items():
        for number in range(100):
            taken.append(number)
            yield chunk(number, 1)

    next(windows(items(), settings(window_chunks=10)))
    assert len(taken) == 10


def test_a_corpus_of_problems_is_bounded_and_none_is_lost():
    problems = (Problem(str(i), "why") for i in range(25))
    assert [len(w.problems) for w in windows(problems, settings(window_chunks=10))] == [10, 10, 5]


def test_a_chunk_over_the_bytes_of_a_batch_goes_alone():
    sizes = [5000, 10, 20, 3000]
    batches = list(cut_batches([chunk(i, s) for i, s in enumerate(sizes)], settings(batch_bytes=1024)))
    assert [[len(c.text) for c in batch] for batch in batches] == [[10, 20], [3000], [5000]]


def test_cost_is_bytes_not_characters():
    texts = [Chunk(chunk_id(str(i)), "字" * 200) for i in range(4)]
    assert [len(b) for b in cut_batches(texts, settings(batch_bytes=1200))] == [2, 2]


@given(
    sizes=st.lists(st.integers(1, 3000), max_size=60),
    count=st.integers(1, 20),
    limit=st.integers(1024, 8000),
    seed=st.integers(0, 5),
)
def test_batches_hold_every_chunk_once_within_their_limits_in_any_order(sizes, count, limit, seed):
    chunks = [chunk(number, size) for number, size in enumerate(sizes)]
    limits = settings(batch_chunks=count, batch_bytes=limit)
    batches = list(cut_batches(chunks, limits))
    flat = [c for batch in batches for c in batch]
    assert sorted(c.id for c in flat) == sorted(c.id for c in chunks)
    assert [len(c.text) for c in flat] == sorted(sizes)
    for batch in batches:
        assert 0 < len(batch) <= count
        assert len(batch) == 1 or sum(len(c.text) for c in batch) <= limit
    shuffled = random.Random(seed).sample(chunks, len(chunks))
    assert list(cut_batches(shuffled, limits)) == batches


def test_equal_texts_stand_together():
    texts = ["abc", "abd", "abc", "ab", "abd", "abc", "abe", "abd"]
    chunks = [Chunk(chunk_id(str(i)), text) for i, text in enumerate(texts)]
    for order in (chunks, chunks[::-1]):
        batches = list(cut_batches(order, settings(batch_chunks=4)))
        assert [[c.text for c in batch] for batch in batches] == [
            ["ab", "abc", "abc", "abc"],
            ["abd", "abd", "abd", "abe"],
        ]


def test_no_chunks_no_batches():
    assert list(cut_batches([], settings())) == []
    assert list(windows([], settings())) == []


@pytest.mark.parametrize("size", [1, 4, 5, 9])
def test_a_batch_closes_at_its_count(size):
    batches = list(cut_batches([chunk(i, 1) for i in range(size)], settings(batch_chunks=4)))
    assert [len(b) for b in batches] == [4] * (size // 4) + ([size % 4] if size % 4 else [])


@pytest.mark.parametrize(
    ("staged", "most"),
    [(1, LEAST_CHUNKS), (LEAST_CHUNKS * SPREAD, LEAST_CHUNKS), (100 * SPREAD, 100), (10**6, 256)],
)
def test_batches_grow_with_their_job(staged, most):
    chunks = [chunk(i, 1) for i in range(600)]
    assert len(next(cut_batches(chunks, settings(), staged=staged))) == most
    assert len(next(cut_batches(chunks, settings(batch_chunks=7), staged=staged))) == 7
