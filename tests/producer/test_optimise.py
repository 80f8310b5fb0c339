"""Waiting for indexes: not fooled by a moment of green, told how far it is, ended by a failure."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from producer.cli import optimise
from producer.cli.optimise import wait_until_indexed
from producer.fleet import Indexing
from registry.errors import StoreUnavailable


def state(status: str, indexed: int = 0, loads: tuple[str, ...] = (), failure: str = "") -> Indexing:
    return Indexing(status, failure, indexed, 500_000, [{"job": job, "since": 864_000_000} for job in loads])


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(optimise.time, "monotonic", made.monotonic)
    monkeypatch.setattr(optimise.time, "sleep", made.sleep)
    return made


def fleet(*answers: Indexing | Exception, patience: float = 60.0) -> Any:
    """Gives these answers, the last one for ever."""
    left = list(answers)

    def indexing(_collection: str) -> Indexing:
        answer = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return SimpleNamespace(indexing=indexing, settings=SimpleNamespace(patience_seconds=patience), left=left)


@pytest.mark.usefixtures("clock")
def test_a_moment_of_green_is_not_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    built = state("green", 500_000)
    loading, away = state("green", loads=("a", "b")), StoreUnavailable("Qdrant is away")
    answers = [loading] * 3 + [state("green")] * 2 + [state("yellow", 120_000)] * 3 + [away, built]
    asked = fleet(*answers)
    assert wait_until_indexed(asked, "c", as_json=False) == built
    assert asked.left == [built]
    said = capsys.readouterr().err
    assert "in bulk mode since 1970-01-1" in said
    assert "for a, b" in said
    assert "indexing: 120,000 of 500,000 vectors" in said


@pytest.mark.usefixtures("clock")
def test_programs_get_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    wait_until_indexed(fleet(*[state("yellow", n) for n in range(8)], state("green", 9)), "c", as_json=True)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(line["event"], line["collection"], line["vectors"]) for line in lines} == {
        ("indexing", "c", 500_000)
    }
    assert [line["indexed"] for line in lines][:3] == [0, 2, 4]


@pytest.mark.usefixtures("clock")
def test_a_failure_ends_the_wait_and_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    found = wait_until_indexed(fleet(state("yellow"), state("red", failure="disk full")), "c", as_json=False)
    assert found.status == "red"
    said = capsys.readouterr().err
    assert "disk full" in said
    assert "`v5 optimise -c c`" in said


def test_a_store_that_stays_away_is_waited_for_only_so_long(clock: Clock) -> None:
    with pytest.raises(StoreUnavailable, match="is away"):
        wait_until_indexed(fleet(state("yellow"), StoreUnavailable("Qdrant is away")), "c", as_json=False)
    assert clock.now - 100 == pytest.approx(60, abs=2)
