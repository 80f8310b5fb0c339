"""Redis forgets everything, or its last seconds, at any moment of a submission: all is stored, none embedded
again that was."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ledger.ledger import Ledger
from ledger.reconciler import Reconciler
from ledger.steps import PartRecord, Taken, space_mark
from producer import fleet as producer_fleet
from producer import submission
from producer.corpus import open_corpus
from producer.fleet import Fleet
from producer.submission import Progress, Submission, Summary
from registry.errors import BlobLost
from registry.names import QUEUE_AGGREGATE
from registry.plan import Plan
from registry.settings import Settings

CHUNKS, BATCH, WINDOW = 160, 8, 64


class InProcessFleet:
    """Does the fleet's moves in a thread, with the ledger's own steps; the collection is a dictionary."""

    def __init__(self, settings: Settings, ledger: Ledger, plan: Plan) -> None:
        self.settings, self.ledger, self.doorbell = settings, ledger, self
        self._plan = plan
        self._rings: queue.Queue[tuple[str, str]] = queue.Queue()
        self.stored: dict[str, str] = {}
        self.embedded: Counter[tuple[str, str]] = Counter()
        #: When the jobs started that had vectors removed; one call is not enough for all of them.
        self.migrated: list[int] = []
        #: Called with what is about to happen: `compare`, `staged`, `seal`, `migrate`.
        self.before: Callable[[str], None] = lambda _what: None
        #: Whoever holds it keeps the fleet from working.
        self.working = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(20)

    def open_collection(self, _name: str, plan: Plan) -> Any:
        return SimpleNamespace(plan=plan)

    def compare(self, _name: str, _names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[Any]]:
        self.before("compare")
        return [["same" if self.stored.get(row[0]) == row[1] else "absent"] for row in rows]

    def migrate(self, _name: str, _plan: Plan, started: int) -> bool:
        self.before("migrate")
        self.migrated.append(started)
        return len(self.migrated) > 1

    def lacking(self, _name: str, _names: Sequence[str]) -> dict[str, int]:
        return {}

    def ring(self, batch: str, step: str) -> None:
        self._rings.put((batch, step))
        if step == f"embed.{self._plan.models[-1]}":
            self.before("staged")

    def waiting(self, _queue: str) -> int:
        return self._rings.qsize()

    def _serve(self) -> None:
        reconciler = Reconciler(self.ledger, lambda *ring: self._rings.put(ring), lambda _queue: 0)
        while not self._ended.is_set():
            with self.working:
                try:
                    self._work(*self._rings.get(timeout=0.01))
                except queue.Empty:
                    reconciler.round()
            # A lock is not fair by itself.
            time.sleep(0.001)

    def _work(self, batch: str, step: str) -> None:
        taken = self.ledger.steps.take(batch, step)
        if not isinstance(taken, Taken):
            return
        try:
            chunks = self.ledger.steps.chunks(taken)
        except BlobLost:
            self.ledger.jobs.drop(batch)
            return
        if step == QUEUE_AGGREGATE:
            self.stored |= {chunk.id: chunk.content_hash for chunk in chunks}
            self.ledger.steps.close(taken, len(chunks), 0, 0, 0, [])
            return
        model = step.removeprefix("embed.")
        self.embedded.update((chunk.id, model) for chunk in chunks)
        part = PartRecord(taken.token, 7, 0.1, "w")
        if self.ledger.steps.record(taken, space_mark(taken.plan, model), part, b"vectors"):
            self._rings.put((batch, QUEUE_AGGREGATE))


@pytest.fixture
def fleet(
    settings: Settings, ledger: Ledger, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> Iterator[InProcessFleet]:
    monkeypatch.setattr(submission, "LOOK", 0.02)
    update = {"batch_chunks": BATCH, "window_chunks": WINDOW, "reconcile_seconds": 0.05}
    made = InProcessFleet(settings.model_copy(update=update), ledger, plan)
    seal = ledger.jobs.seal

    def sealing(job: str) -> Any:
        made.before("seal")
        return seal(job)

    monkeypatch.setattr(ledger.jobs, "seal", sealing)
    yield made
    made.stop()


@pytest.fixture
def submit(fleet: InProcessFleet, plan: Plan, tmp_path: Path) -> Callable[..., Summary]:
    path = tmp_path / "corpus.jsonl"
    rows = (json.dumps({"id": f"c{i}", "text": f"text number {i} " + "word " * i}) for i in range(CHUNKS))
    path.write_text("\n".join(rows))
    corpus = open_corpus([path], root=None, settings=fleet.settings)
    return lambda **options: Submission(fleet, corpus, "c", plan, **options).run()  # type: ignore[arg-type]


def check(fleet: InProcessFleet, end: Summary, stored_then: set[str]) -> None:
    """Everything is there; what was there when Redis forgot was embedded once."""
    assert (end.state, end.chunks, end.dead) == ("done", CHUNKS, 0)
    assert len(fleet.stored) == CHUNKS
    again = {chunk for (chunk, _model), count in fleet.embedded.items() if count > 1}
    assert not again & stored_then
    assert fleet.ledger.reserved() == 0
    assert not fleet.ledger.redis.keys("v5:batch:*")


@pytest.mark.parametrize(
    ("what", "which"),
    [("compare", 1), ("compare", 2), ("staged", 3), ("staged", CHUNKS // BATCH), ("seal", 1)],
)
def test_everything_is_forgotten(
    fleet: InProcessFleet, submit: Callable[[], Summary], what: str, which: int, eventually: Any
) -> None:
    seen: Counter[str] = Counter()
    stored_then: set[str] = set()

    def forget(happens: str) -> None:
        seen[happens] += 1
        if happens == what and seen[happens] == which:
            # Something is stored by then, if anything was staged.
            eventually(lambda: fleet.stored or not seen["staged"])
            stored_then.update(fleet.stored)
            fleet.ledger.redis.flushall()

    fleet.before = forget
    end = submit()
    assert seen[what] >= which
    assert bool(stored_then) == (what != "compare" or which > 1)
    check(fleet, end, stored_then)


def test_the_last_batches_of_a_job_are_forgotten(
    fleet: InProcessFleet, submit: Callable[[], Summary]
) -> None:
    """A server that lost its last second: the job stands, and knows nothing of what was staged then."""
    redis = fleet.ledger.redis
    kept: dict[bytes, bytes] = {}
    stored_then: set[str] = set()
    staged = 0

    def rewind(happens: str) -> None:
        nonlocal staged
        staged += happens == "staged"
        if happens != "staged":
            return
        if staged == CHUNKS // BATCH - 3:
            fleet.working.acquire()
            kept.update({key: redis.dump(key) for key in redis.keys("*")})
        elif staged == CHUNKS // BATCH:
            stored_then.update(fleet.stored)
            redis.flushall()
            for key, value in kept.items():
                redis.restore(key, 0, value)
            fleet.working.release()

    fleet.before = rewind
    end = submit()
    assert staged > CHUNKS // BATCH
    check(fleet, end, stored_then)


def test_everything_is_forgotten_while_an_earlier_run_is_waited_for(
    fleet: InProcessFleet, submit: Callable[..., Summary]
) -> None:
    fleet.working.acquire()

    def end(_happens: str) -> None:
        raise KeyboardInterrupt

    waiting = True

    def forget(progress: Progress) -> None:
        nonlocal waiting
        if waiting and progress.adopted:
            waiting = False
            fleet.ledger.redis.flushall()
            fleet.working.release()

    fleet.before = end
    with pytest.raises(KeyboardInterrupt):
        submit()
    fleet.before = lambda _happens: None
    check(fleet, submit(report=forget), set())
    assert not waiting


def test_everything_is_forgotten_in_a_migration(
    fleet: InProcessFleet, submit: Callable[..., Summary]
) -> None:
    def forget(happens: str) -> None:
        if happens == "migrate" and not fleet.migrated:
            fleet.ledger.redis.flushall()

    fleet.before = forget
    check(fleet, submit(migrate=True), set())
    assert len(fleet.migrated) == 2


def test_what_is_staged_after_a_migration_is_newer_than_any_that_came_in_between(
    fleet: InProcessFleet, submit: Callable[..., Summary]
) -> None:
    """Another job of the same plan may have raised the start from which a vector counts."""
    others: list[int] = []

    def meanwhile(happens: str) -> None:
        if happens == "migrate":
            time.sleep(0.002)
            seconds, micro = fleet.ledger.redis.time()
            others.append(seconds * 1000 + micro // 1000)

    fleet.before = meanwhile
    end = submit(migrate=True)
    assert fleet.ledger.jobs.get(end.job).started >= others[-1] > fleet.migrated[-1]


def test_a_request_whose_arguments_were_lost_is_made_again(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer_fleet, "REPEAT", 0.2)
    asking = Fleet(settings)
    pending = asking.ask("v5.store.describe", "store", {"collection": "c"})
    ledger.redis.flushall()

    def answer() -> None:
        while ledger.requests.arguments(pending.id) is None:
            pass
        ledger.requests.answer(pending.id, b"answer")

    thread = threading.Thread(target=answer)
    thread.start()
    assert asking.answer(pending) == b"answer"
    thread.join()
    asking.close()
