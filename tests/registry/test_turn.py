"""A device's turn: who is to go first is next, and nobody else waits for ever."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from registry.progress import MOST_IN_A_ROW, Turn


class Threads:
    """Threads that wait for a turn, and the order in which they get it."""

    def __init__(self, turn: Turn, eventually: Callable[..., Any]) -> None:
        self.turn = turn
        self.order: list[str] = []
        self._eventually = eventually
        self._threads: list[threading.Thread] = []

    def wait(self, name: str, way: AbstractContextManager[None]) -> None:
        """Have another wait `way`, until it does."""
        before = sum(self.turn._waiting.values())

        def work() -> None:
            with way:
                self.order.append(name)

        self._threads.append(threading.Thread(target=work, daemon=True))
        self._threads[-1].start()
        self._eventually(lambda: sum(self.turn._waiting.values()) == before + 1)

    def end(self) -> None:
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


@pytest.fixture
def threads(eventually: Callable[..., Any]) -> Iterator[Threads]:
    found = Threads(Turn(), eventually)
    yield found
    found.end()


def test_a_query_that_waits_goes_before_steps_that_have_waited_longer(threads: Threads) -> None:
    turn = threads.turn
    with turn:
        threads.wait("step", turn)
        threads.wait("step", turn)
        threads.wait("query", turn.first)
    threads.end()
    assert threads.order == ["query", "step", "step"]


def test_queries_without_end_let_a_step_in_now_and_then(threads: Threads) -> None:
    turn = threads.turn
    with turn:
        threads.wait("step", turn)
        for _ in range(2 * MOST_IN_A_ROW):
            threads.wait("query", turn.first)
    threads.end()
    assert threads.order.index("step") == MOST_IN_A_ROW
    assert len(threads.order) == 2 * MOST_IN_A_ROW + 1
