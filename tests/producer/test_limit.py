"""A submission to a fleet that does everything at once: what took the time, and how its batches grow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ledger.ledger import Ledger
from ledger.steps import PartRecord, Taken, space_mark
from producer import submission
from producer.batching import cut_batches
from producer.submission import Submission
from registry.chunks import Chunk, chunk_id
from registry.plan import Plan, make_plan
from registry.settings import Settings, load_settings

MODEL = "all-miniLM-l6"
CHUNKS, WINDOW, READ, COMPARED = 12, 4, 1.0, 2.0


@pytest.fixture
def plan() -> Plan:
    return make_plan(primary=MODEL, fake=True)


@pytest.fixture
def settings(data_dir: Any) -> Settings:
    return load_settings(data_dir=data_dir, batch_chunks=2, window_chunks=WINDOW)


class Scene:
    """A fleet that does everything at once, a corpus, and the clock that both move."""

    def __init__(self, settings: Settings, ledger: Ledger, plan: Plan, rings: int) -> None:
        self.settings, self.ledger, self.doorbell = settings, ledger, self
        self.sources, self.part = ["a.jsonl"], ""
        self.now = 0.0
        self._plan, self._rings = plan, rings

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def items(self) -> Any:
        for number in range(CHUNKS):
            self.now += READ
            yield Chunk(chunk_id(str(number)), f"text {number}")

    def open_collection(self, _name: str, plan: Plan) -> Any:
        return SimpleNamespace(plan=plan)

    def compare(self, _name: str, _names: Any, rows: Any) -> list[list[str]]:
        self.now += COMPARED
        return [["absent"]] * len(rows)

    def waiting(self, _queue: str) -> int:
        return self._rings

    def ring(self, batch: str, step: str) -> None:
        steps = self.ledger.steps
        taken = steps.take(batch, step)
        assert isinstance(taken, Taken)
        record = PartRecord(taken.token, 7, 0.1, "w")
        assert steps.record(taken, space_mark(self._plan, MODEL), record, b"vectors")
        last = steps.take(batch, "aggregate")
        assert isinstance(last, Taken)
        assert steps.close(last, 2, 0, 0, 0, []) is not None


@pytest.mark.parametrize(
    ("rings", "share"), [(0, READ * CHUNKS / (READ * CHUNKS + COMPARED * CHUNKS / WINDOW)), (1, 0.0)]
)
def test_the_producer_is_the_limit_while_it_reads_and_nothing_waits(
    settings: Settings, ledger: Ledger, plan: Plan, monkeypatch: pytest.MonkeyPatch, rings: int, share: float
) -> None:
    scene = Scene(settings, ledger, plan, rings)
    monkeypatch.setattr(submission, "time", scene)
    end = Submission(scene, scene, "c", plan).run()  # type: ignore[arg-type]
    assert end.done == CHUNKS
    assert end.producer_limited == pytest.approx(share, abs=0.001)


def test_batches_grow_with_what_was_staged(
    settings: Settings, ledger: Ledger, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def cut(chunks: Any, **limits: Any) -> Any:
        seen.append(limits["staged"])
        return cut_batches(chunks, **limits)

    scene = Scene(settings, ledger, plan, 0)
    monkeypatch.setattr(submission, "time", scene)
    monkeypatch.setattr(submission, "cut_batches", cut)
    Submission(scene, scene, "c", plan).run()  # type: ignore[arg-type]
    # Of each window those that are embedded, then those that copy.
    assert seen == [staged for staged in range(WINDOW, CHUNKS + 1, WINDOW) for _ in range(2)]
