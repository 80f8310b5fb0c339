"""A worker's pace: over all its threads, of the time in which there is work."""

from __future__ import annotations

import numpy as np
import pytest

from ledger.rates import Rate
from registry.codecs import Part
from registry.errors import LedgerFull
from worker.pace import HALF_LIFE, NOTE_EVERY, Pace


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def part(tokens: int, seen: int = 0) -> Part:
    return Part({}, np.array([seen or tokens], np.int32), np.array([tokens], np.int32))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def noted() -> list[Rate]:
    return []


def test_time_without_work_does_not_count(clock, noted):
    pace = Pace(noted.append, clock)
    for _ in range(3):
        with pace.working():
            clock.now += 2.0
        pace.finished(["four"], part(100))
        clock.now += 1000.0
    assert [rate.tokens_per_second for rate in noted] == [50.0] * 3
    assert [rate.chunks_per_second for rate in noted] == [0.5] * 3


def test_batches_side_by_side_share_the_time(clock, noted):
    pace = Pace(noted.append, clock)
    with pace.working():
        clock.now += 5.0
        with pace.working():
            clock.now += 5.0
        pace.finished(["a"], part(100))
        clock.now += 5.0
    pace.finished(["b"], part(200))
    assert noted[0].tokens_per_second == 10.0
    assert noted[-1].tokens_per_second == pytest.approx(300 / 15, rel=0.05)


def test_the_newest_work_weighs_most(clock, noted):
    pace = Pace(noted.append, clock)
    for tokens in (1000, 3000):
        with pace.working():
            clock.now += HALF_LIFE
        pace.finished(["a"], part(tokens))
    assert noted[-1].tokens_per_second == pytest.approx(
        (1000 / 2 + 3000) / (HALF_LIFE / 2 + HALF_LIFE), rel=0.01
    )


def test_bytes_are_counted_per_token_before_truncation(clock, noted):
    pace = Pace(noted.append, clock)
    with pace.working():
        clock.now += 1.0
    pace.finished(["é" * 500], part(256, seen=400))
    assert noted[0].bytes_per_token == 2.5
    assert noted[0].tokens_per_second == 256.0


def test_a_rate_is_passed_on_now_and_then_only(clock, noted):
    pace = Pace(noted.append, clock)
    for _ in range(20):
        with pace.working():
            clock.now += NOTE_EVERY / 10
        pace.finished(["a"], part(10))
    assert len(noted) == 2


def test_a_full_redis_costs_the_rate_and_not_the_batch(clock):
    said = []

    def refuse(rate: Rate) -> None:
        said.append(rate)
        raise LedgerFull("full")

    pace = Pace(refuse, clock)
    with pace.working():
        clock.now += 1.0
    pace.finished(["a"], part(10))
    assert len(said) == 1


def test_a_failed_batch_is_time_without_tokens(clock, noted):
    pace = Pace(noted.append, clock)

    def fail() -> None:
        with pace.working():
            clock.now += 1.0
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fail()
    with pace.working():
        clock.now += 1.0
    pace.finished(["a"], part(10))
    assert noted[0].tokens_per_second == 5.0
