"""The aggregator and a store that others change, too: sleepers, vanished points, refusals, bad records."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.jobs import Job
from ledger.ledger import Ledger
from registry.chunks import Chunk, chunk_id
from registry.errors import StoreRefused, StoreUnavailable
from registry.frames import pack_chunks
from registry.plan import Plan, make_plan
from registry.settings import Settings
from store.base import Sourced, Store
from tests.qdrant_standin import Request, Standin
from worker import aggregator as module
from worker.aggregator import Aggregator
from worker.cli import doctor
from worker.embedder import EmbedWorker
from worker.numerics_record import recorded

CODE, MINI = "jina-code-embeddings-1.5b", "all-miniLM-l6"
PLAN: Plan = make_plan(primary=MINI, companions=[CODE], fake=True)
#: The same names in other spaces, as far as the code model is concerned.
NEXT: Plan = make_plan(primary=MINI, companions=[CODE], tasks={CODE: "qa"}, fake=True)
NAMES = [MINI, CODE]


class Line:
    """One embedding worker per model and any number of aggregators, moved by hand."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.settings, self.ledger = settings, ledger
        self.aggregators: list[Aggregator] = []

    def aggregator(self) -> Aggregator:
        """An aggregator of which only what a test asks for happens."""
        made = Aggregator(self.settings)
        self.aggregators.append(made)
        made.prepare()
        made.stopping.set()
        return made

    def embedded(self, job: Job, chunks: list[Chunk], kind: Any = "upsert", names: Any = NAMES) -> str:
        """A batch whose parts are all there."""
        number = self.ledger.jobs.get(job.id).next
        batch = f"{job.id}.{number}"
        self.ledger.steps.stage(
            job.id, job.plan, number, kind, names, len(chunks), pack_chunks(chunks), 10, 1 << 30
        )
        for model in job.plan.models_for(names) if kind != "payload" else ():
            worker = EmbedWorker(self.settings, model, job.plan.tasks.get(model, ""))
            worker.prepare()
            assert worker.edge.step(batch, f"embed.{model}", worker._work) == "embedded"
            worker.ledger.close()
        return batch

    def close(self) -> None:
        for made in self.aggregators:
            made.release()
            made.ledger.close()


def aggregate(one: Aggregator, batch: str) -> str:
    return one.edge.step(batch, "aggregate", one._work)


def store_of(one: Aggregator) -> Store:
    assert one.store is not None
    return one.store


def chunk(n: int, text: str = "") -> Chunk:
    return Chunk(chunk_id(str(n)), text or f"text {n}", {}, "src/a.py")


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[Standin]:
    with Standin(tmp_path / "standin") as server:
        yield server


@pytest.fixture
def line(settings: Settings, ledger: Ledger) -> Iterator[Line]:
    """With the embedded store."""
    made = Line(settings, ledger)
    yield made
    made.close()


@pytest.fixture
def shared(settings: Settings, ledger: Ledger, standin: Standin) -> Iterator[Line]:
    """With a server that several aggregators use; leases are short."""
    fields = {"qdrant_url": standin.url, "qdrant_grpc_port": standin.grpc_port, "lease_seconds": 1.0}
    made = Line(settings.model_copy(update=fields), ledger)
    yield made
    made.close()


class Asleep:
    """An aggregator that stops right before its write, when it has looked at everything, until woken."""

    def __init__(self, one: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
        self._one = one
        self._stopped, self._woken = threading.Event(), threading.Event()
        write = one._write
        self.outcome = ""

        def stop(*arguments: Any) -> Any:
            self._stopped.set()
            assert self._woken.wait(60)
            return write(*arguments)

        monkeypatch.setattr(one, "_write", stop)

    def start(self, batch: str) -> None:
        """Returns when it sleeps."""

        def run() -> None:
            self.outcome = aggregate(self._one, batch)

        self._thread = threading.Thread(target=run)
        self._thread.start()
        assert self._stopped.wait(60)

    def wake(self) -> str:
        self._woken.set()
        self._thread.join(60)
        return self.outcome


@pytest.mark.parametrize("then", ["indexed again", "migrated"])
def test_a_sleeper_wakes_to_newer_points_and_changes_nothing(
    shared: Line, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any], then: str
) -> None:
    sleeper, awake = shared.aggregator(), shared.aggregator()
    # Given a batch on its way to the store by an aggregator that stops before it writes
    job, _ = ledger.jobs.open("c", PLAN, ["src"])
    batch = shared.embedded(job, [chunk(1, "old"), chunk(2, "same")])
    asleep = Asleep(sleeper, monkeypatch)
    asleep.start(batch)
    # When its lease runs out, another writes and closes it, and a later job writes, too
    eventually(lambda: aggregate(awake, batch) == "written")
    assert ledger.jobs.seal(job.id) == "done"
    newer, _ = ledger.jobs.open("c", NEXT if then == "migrated" else PLAN, ["src"])
    if then == "migrated":
        while not store_of(awake).migrate("c", NEXT, newer.started):
            pass
    assert aggregate(awake, shared.embedded(newer, [chunk(1, "new")])) == "written"
    asked = [chunk(1).id, chunk(2).id]
    before = store_of(awake).get("c", asked, True)
    # Then nothing of what the first does when it wakes is seen
    asleep.wake()
    after = store_of(awake).get("c", asked, True)
    assert [(p.id, p.payload, p.vectors.keys()) for p in after] == [
        (p.id, p.payload, p.vectors.keys()) for p in before
    ]
    assert (after[0].payload["text"], after[0].payload["v5"]["job"]) == ("new", newer.id)
    assert after[1].vectors.keys() == ({MINI} if then == "migrated" else {MINI, CODE})
    assert [ledger.jobs.get(one.id).done for one in (job, newer)] == [2, 1]


@pytest.mark.parametrize("kind", ["update", "payload"])
def test_points_that_vanished_before_their_update_are_lost_not_done(
    line: Line, ledger: Ledger, kind: Any
) -> None:
    one = line.aggregator()
    job, _ = ledger.jobs.open("c", PLAN, ["src"])
    chunks = [chunk(n) for n in range(3)]
    assert aggregate(one, line.embedded(job, chunks, names=[MINI])) == "written"
    # Asked for what they lack; then one is removed.
    batch = line.embedded(job, chunks, kind, [CODE] if kind == "update" else [])
    started = ledger.jobs.get(job.id).started
    assert store_of(one).delete("c", [Sourced(chunks[1].id, "src/a.py")], started) == 1
    assert aggregate(one, batch) == "written"
    seen = ledger.jobs.get(job.id)
    assert (seen.done, seen.lost, seen.dead, seen.open_batches) == (3 + 2, 1, 0, 0)
    # The producer looks again, and finds it absent.
    assert aggregate(one, line.embedded(job, [chunks[1]])) == "written"
    standing = store_of(one).standing("c", [c.id for c in chunks])
    assert standing.keys() == {c.id for c in chunks}
    assert standing[chunks[1].id].vectors == {MINI, CODE}


def test_a_collection_that_others_changed_is_looked_at_again(
    shared: Line, ledger: Ledger, standin: Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = shared.aggregator(), shared.aggregator()
    job, _ = ledger.jobs.open("c", PLAN, ["src"])
    assert aggregate(one, shared.embedded(job, [chunk(1)])) == "written"
    # Within a moment it is not looked at: a batch costs no request for it.
    standin.requests.clear()
    assert aggregate(one, shared.embedded(job, [chunk(2)])) == "written"
    assert "Collections.Get" not in {request.operation for request in standin.requests}
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.0)

    # Removed, and made anew for the same plan: what is noted with a collection is noted with this one, too.
    client = other.store._connection.client  # type: ignore[union-attr]
    assert client.delete_collection("c")
    store_of(other).open("c", PLAN)
    assert aggregate(one, shared.embedded(job, [chunk(3)])) == "written"
    assert recorded(store_of(other).notes("c")).keys() == {MINI, CODE}

    # Made anew for another space: nothing of the former one gets in.
    batch = shared.embedded(job, [chunk(4)])
    assert client.delete_collection("c")
    store_of(other).open("c", NEXT)
    assert aggregate(one, batch) == "wrong space"
    assert store_of(other).describe("c").points == 0


@pytest.mark.parametrize("kind", ["upsert", "update"])
def test_what_qdrant_refuses_for_good_ends_alone_with_its_words(
    shared: Line, ledger: Ledger, standin: Standin, kind: Any
) -> None:
    one = shared.aggregator()
    job, _ = ledger.jobs.open("c", PLAN, ["src"])
    chunks = [chunk(n, "bad" if n == 2 else "") for n in range(5)]
    if kind == "update":
        assert aggregate(one, shared.embedded(job, chunks, names=[MINI])) == "written"

    def holds_it(request: Request) -> bool:
        body = str(request.message)
        return request.writes and request.operation.startswith("Points.") and chunks[2].id in body

    words = "Wrong input: Vector dimension error: expected dim: 384, got 383"
    standin.fail(400, words, next=holds_it)
    assert (
        aggregate(one, shared.embedded(job, chunks, kind, [CODE] if kind == "update" else NAMES)) == "written"
    )
    standin.mend()
    (letter,) = ledger.jobs.dead(job.id)
    assert (letter.id, letter.stage, letter.text) == (chunks[2].id, "store", "bad")
    assert words in letter.reason
    seen = ledger.jobs.get(job.id)
    assert (seen.done, seen.lost, seen.dead) == ((9, 0, 1) if kind == "update" else (4, 0, 1))
    standing = store_of(one).standing("c", [c.id for c in chunks])
    assert sum(CODE in found.vectors for found in standing.values()) == 4


def test_one_bad_collection_keeps_no_other_from_being_indexed(
    line: Line, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    one = line.aggregator()
    for name in ("bad", "good", "odd"):
        store_of(one).open(name, PLAN)
    settled, indexed = set(), set()

    def only(seen: set[str]) -> Callable[..., Any]:
        def work(collection: str, *_: Any) -> None:
            if collection == "bad":
                raise StoreRefused("its record cannot be understood")
            if collection == "odd":
                raise ValueError("nobody thought of that")
            seen.add(collection)

        return work

    assert set(store_of(one).collections()) == {"bad", "good", "odd"}
    monkeypatch.setattr(store_of(one), "collections", lambda: ["bad", "odd", "good"])
    monkeypatch.setattr(store_of(one), "maintain", only(indexed))
    monkeypatch.setattr(one._goldens(), "settle", only(settled))
    monkeypatch.setattr(module, "MAINTAIN_EVERY", 0.05)
    one.stopping.clear()
    thread = threading.Thread(target=one._maintain, daemon=True)
    thread.start()
    eventually(lambda: "good" in settled)
    eventually(lambda: "good" in indexed)
    one.stopping.set()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize("how", ["done", "cancelled", "left", "lost"])
def test_indexing_goes_on_once_nobody_works_on_the_job_that_put_it_off(
    shared: Line, ledger: Ledger, how: str
) -> None:
    one = shared.aggregator()
    store = store_of(one)
    store.open("c", PLAN)
    former = store._find("c").index_state().threshold  # type: ignore[attr-defined]
    job, _ = ledger.jobs.open("c", PLAN, ["src"])
    ledger.jobs.hold(job.id, "producer:1")

    def loads() -> bool:
        one._settle_bulk(store, "c")
        on = bool(store.indexing("c", begin=False).loads)
        threshold = store._find("c").index_state().threshold  # type: ignore[attr-defined]
        assert threshold == (0 if on else former)
        return on

    store.begin_bulk("c", job.id, 1)
    assert loads()
    _, told = doctor._store(one.settings)
    assert told.what == "collection c"
    assert job.id in told.said
    batch = shared.embedded(job, [chunk(1)])
    ledger.jobs.let_go(job.id, "producer:1")
    # What the producer staged before it died is still on its way.
    assert loads()
    if how == "left":
        assert aggregate(one, batch) == "written"
    elif how == "done":
        ledger.jobs.hold(job.id, "producer:1")
        assert aggregate(one, batch) == "written"
        assert loads()
        assert ledger.jobs.seal(job.id) == "done"
    elif how == "cancelled":
        ledger.jobs.cancel(job.id)
    else:
        ledger.redis.flushall()
    assert not loads()
    assert len(doctor._store(one.settings)) == 1


def test_doctor_tells_of_a_bulk_load_beside_the_aggregator_that_has_the_store(line: Line) -> None:
    one = line.aggregator()
    store_of(one).open("c", PLAN)
    assert len(doctor._store(one.settings)) == 1
    store_of(one).begin_bulk("c", "the-job", 1)
    _, told = doctor._store(one.settings)
    assert (told.what, "the-job" in told.said) == ("collection c", True)


def test_aggregators_take_turns_at_a_migration(shared: Line) -> None:
    one, other = shared.aggregator(), shared.aggregator()
    with one._one_migration("c"), other._one_migration("d"):
        second = other._one_migration("c")
        with pytest.raises(StoreUnavailable, match="another aggregator is migrating collection 'c'"):
            second.__enter__()
    with other._one_migration("c"):
        pass
