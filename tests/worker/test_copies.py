"""Copies take the vectors of their text from the store: to the bit, in time, or are embedded after all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ledger import metrics
from ledger.jobs import Job
from ledger.ledger import Ledger
from registry.chunks import STORED, Chunk, Original, chunk_id
from registry.frames import pack_chunks
from registry.plan import Ensemble, Plan, make_plan
from registry.settings import Settings
from store.base import Sourced, SparseVector, Store, StoredPoint
from store.points import tokens_of
from tests.qdrant_standin import Standin
from worker import copies as module
from worker.aggregator import Aggregator
from worker.embedder import EmbedWorker
from worker.encoders import fake

CODE, MINI, BGE = "jina-code-embeddings-1.5b", "all-miniLM-l6", "bge-m3"
PLAN: Plan = make_plan(primary=MINI, fake=True)
#: Every sort of vector, some of them derived, sent as float16.
FULL: Plan = make_plan(
    primary=BGE,
    companions=[CODE],
    outputs={BGE: ["dense", "sparse", "multi"]},
    matryoshka={CODE: [256]},
    ensemble=Ensemble(members=(BGE, CODE)),
    transport="float16",
    fake=True,
)


class Line:
    """An aggregator, and workers that are made when there is something for them; moved by hand."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self.settings, self.ledger = settings, ledger
        self.one = Aggregator(settings)
        self.one.prepare()
        self.one.stopping.set()
        self.rung: list[tuple[str, str]] = []
        self.one.doorbell.ring = lambda *ring: self.rung.append(ring)  # type: ignore[method-assign,assignment]
        #: Texts through a model.
        self.passes = 0

    @property
    def store(self) -> Store:
        assert self.one.store is not None
        return self.one.store

    def job(self, plan: Plan = PLAN) -> Job:
        return self.ledger.jobs.open("c", plan, ["src"])[0]

    def stage(
        self, job: Job, chunks: Sequence[Chunk], kind: Any = "upsert", names: Sequence[str] = ()
    ) -> str:
        """The job's next batch: of copies, if the chunks name originals."""
        number = self.ledger.jobs.get(job.id).next
        names = list(names) or [vector.name for vector in job.plan.vectors()]
        after = [chunk.original.batch for chunk in chunks if chunk.original]
        what = (job.id, job.plan, number, kind, names, len(chunks), pack_chunks(chunks), 10, 1 << 30)
        self.ledger.steps.stage(*what, after=max(after) if after else None)
        return f"{job.id}.{number}"

    def embed(self, batch: str) -> None:
        """Whatever is to be done for its models."""
        taken = self.ledger.redis.hgetall(f"v5:batch:{batch}")
        for name in [key.decode() for key in taken if key.startswith(b"space:")]:
            model = name.removeprefix("space:")
            worker = EmbedWorker(self.settings, model)
            worker.prepare()
            assert worker.edge.step(batch, f"embed.{model}", worker._work) == "embedded"
            self.passes += int(worker._counters.totals()["chunks"])
            worker.ledger.close()

    def aggregate(self, batch: str) -> str:
        return self.one.edge.step(batch, "aggregate", self.one._work)

    def write(self, job: Job, chunks: Sequence[Chunk], **more: Any) -> str:
        """Embed and store a batch."""
        batch = self.stage(job, chunks, **more)
        self.embed(batch)
        assert self.aggregate(batch) == "written"
        return batch

    def get(self, *chunks: Chunk) -> list[StoredPoint]:
        return self.store.get("c", [chunk.id for chunk in chunks], True)

    def close(self) -> None:
        self.one.release()
        self.one.ledger.close()


@pytest.fixture
def line(settings: Settings, ledger: Ledger) -> Iterator[Line]:
    """With the embedded store."""
    made = Line(settings, ledger)
    yield made
    made.close()


@pytest.fixture(params=["edge", "grpc", "rest"])
def each_line(
    request: pytest.FixtureRequest, settings: Settings, ledger: Ledger, tmp_path: Path
) -> Iterator[Line]:
    """With each store in turn."""
    if request.param == "edge":
        yield from _closing(Line(settings, ledger))
        return
    with Standin(tmp_path / "standin") as server:
        fields = {
            "qdrant_url": server.url,
            "qdrant_grpc_port": server.grpc_port,
            "qdrant_grpc": request.param == "grpc",
        }
        yield from _closing(Line(settings.model_copy(update=fields), ledger))


def _closing(made: Line) -> Iterator[Line]:
    yield made
    made.close()


def chunk(n: int, text: str) -> Chunk:
    return Chunk(chunk_id(str(n)), text, {"n": n}, "src/a.py")


def copy_of(n: int, original: Chunk, batch: int = STORED, text: str = "") -> Chunk:
    return replace(chunk(n, text or original.text), original=Original(original.id, batch))


def equal(one: Any, other: Any) -> bool:
    """To the bit."""
    if isinstance(one, SparseVector):
        return np.array_equal(one.indices, other.indices) and np.array_equal(one.values, other.values)
    return np.array_equal(one, other)


def assert_copied(line: Line, copy: Chunk, original: Chunk) -> None:
    mine, theirs = line.get(copy, original)
    assert mine.vectors.keys() == theirs.vectors.keys()
    assert all(equal(mine.vectors[name], theirs.vectors[name]) for name in theirs.vectors)
    assert mine.payload["v5"]["tokens"] == theirs.payload["v5"]["tokens"]
    assert (mine.payload["n"], mine.payload["text"]) == (copy.payload["n"], copy.text)
    assert mine.payload["v5"]["payload_hash"] == copy.payload_hash


def test_copies_have_every_vector_of_their_text_to_the_bit(each_line: Line, ledger: Ledger) -> None:
    line, job = each_line, each_line.job(FULL)
    originals = [chunk(n, f"text {n} " + "word " * n) for n in range(12)]
    line.write(job, originals)
    assert line.passes == 24
    copies = [copy_of(100 + n, originals[n % 12], 0) for n in range(30)]
    batch = line.stage(job, copies)
    assert line.aggregate(batch) == "written"
    for n, copy in enumerate(copies):
        assert_copied(line, copy, originals[n % 12])
    seen = ledger.jobs.get(job.id)
    assert (seen.done, seen.dead, seen.lost, seen.open_batches) == (42, 0, 0, 0)
    stored = [
        (p.payload, model) for p in line.get(*originals, *copies) for model in p.payload["v5"]["tokens"]
    ]
    assert seen.tokens_seen == sum(tokens_of(payload, model)[0] for payload, model in stored)
    # Counted, and no vector of theirs was in Redis.
    assert {(w.model, w.chunks, w.cached) for w in seen.work if w.worker.startswith("aggregator")} == {
        (BGE, 30, 30),
        (CODE, 30, 30),
    }
    line.one.refresh()
    ledger.alive.announce(line.one.process)
    assert 'kind="aggregator",model=""} 30\n' in metrics.metrics(ledger)
    assert not ledger.redis.keys("v5:blob:*")
    assert line.passes == 24


def test_what_an_update_lacks_is_copied_and_the_rest_stays(line: Line) -> None:
    both = make_plan(primary=MINI, companions=[CODE], fake=True)
    job = line.job(both)
    original, standing = chunk(1, "text"), chunk(2, "text")
    line.write(job, [original])
    line.write(job, [standing], names=[MINI])
    before = line.get(standing)[0].vectors[MINI]
    batch = line.stage(job, [copy_of(2, original, 0)], "update", [CODE])
    assert line.aggregate(batch) == "written"
    assert_copied(line, copy_of(2, original), original)
    assert equal(line.get(standing)[0].vectors[MINI], before)
    assert line.passes == 3


def test_copies_wait_for_their_original_and_are_rung_when_it_stands(line: Line, ledger: Ledger) -> None:
    job, first, second = line.job(), chunk(1, "a"), chunk(2, "b")
    batches = [line.stage(job, [each]) for each in (first, second)]
    copies = [copy_of(3, first, 0), copy_of(4, second, 1)]
    waiting = line.stage(job, copies)
    # A ring that came too early.
    assert line.aggregate(waiting) == "incomplete"
    for batch in reversed(batches):
        assert line.rung == []
        line.embed(batch)
        assert line.aggregate(batch) == "written"
        if batch == batches[1]:
            assert line.rung.pop() == (waiting, "aggregate")
            assert line.aggregate(waiting) == "incomplete"
    assert line.rung == [(waiting, "aggregate")]
    assert line.aggregate(waiting) == "written"
    assert_copied(line, copies[0], first)
    assert_copied(line, copies[1], second)
    assert (line.passes, ledger.jobs.get(job.id).open_batches) == (2, 0)


@pytest.mark.parametrize("how", ["deleted", "changed", "lacking", "bare", "uncounted", "unknown", "dropped"])
def test_where_an_original_does_not_stand_as_it_was_named_the_copies_are_embedded(
    line: Line, ledger: Ledger, how: str
) -> None:
    both = make_plan(primary=MINI, companions=[CODE], fake=True)
    job, original, other = line.job(both), chunk(1, "text"), chunk(2, "other")
    names = [MINI] if how == "lacking" else [MINI, CODE]
    if how == "dropped":
        line.write(job, [other])
        ledger.jobs.drop(line.stage(job, [original]))
    else:
        line.write(job, [original, other], names=names)
    line.passes = 0
    started = job.started
    if how == "deleted":
        assert line.store.delete("c", [Sourced(original.id, original.source)], started) == 1
    elif how == "changed":
        newer = chunk(1, "another text")
        line.write(job, [newer])
        line.passes = 0
    elif how == "uncounted":
        (point,) = line.get(original)
        about = {key: value for key, value in point.payload["v5"].items() if key != "tokens"}
        line.store.upsert("c", [replace(point, payload={**point.payload, "v5": about})], started)  # type: ignore[list-item]
    elif how == "bare":
        (point,) = line.get(original)
        line.store.upsert("c", [replace(point, vectors={MINI: point.vectors[MINI]})], started)  # type: ignore[list-item]
    copies = [copy_of(3, original, 0), copy_of(4, other, 0)]
    if how == "unknown":
        copies[0] = replace(copies[0], original=None)
    batch = line.stage(job, copies)
    assert line.aggregate(batch) == "incomplete"
    assert line.rung == [(batch, f"embed.{model}") for model in both.models]
    assert ledger.jobs.get(job.id).lost == (how == "dropped")
    line.embed(batch)
    assert line.aggregate(batch) == "written"
    assert line.passes == 4
    assert [point.payload["text"] for point in line.get(*copies)] == ["text", "other"]
    assert all(point.vectors.keys() == {MINI, CODE} for point in line.get(*copies))
    seen = ledger.jobs.get(job.id)
    assert (seen.open_batches, seen.dead, ledger.reserved()) == (0, 0, 0)


def test_what_no_model_took_of_an_original_is_not_tried_with_its_copies(line: Line, ledger: Ledger) -> None:
    job, bad, good = line.job(), chunk(1, "x" + fake.POISON_NAN), chunk(2, "good")
    line.write(job, [bad, good])
    copies = [copy_of(3, bad, 0), copy_of(4, good, 0), copy_of(5, bad, 0)]
    assert line.aggregate(line.stage(job, copies)) == "written"
    letters = {letter.id: letter for letter in ledger.jobs.dead(job.id)}
    assert letters.keys() == {bad.id, copies[0].id, copies[2].id}
    letter = letters[copies[2].id]
    assert letter.reason.startswith(letters[bad.id].reason)
    assert (bad.id in letter.reason, letter.stage, letter.text) == (True, "embed", bad.text)
    assert_copied(line, copies[1], good)
    assert line.passes == 2
    # A letter for another cause says nothing of the text.
    ledger.jobs.forgive(job.id, [bad.id])
    ledger.jobs.bury(job.id, [replace(letters[bad.id], stage="store")])
    batch = line.stage(job, [copy_of(6, bad, 0)])
    assert line.aggregate(batch) == "incomplete"
    line.embed(batch)
    assert line.aggregate(batch) == "written"
    assert ledger.jobs.get(job.id).dead == 4


def test_a_text_is_read_once_however_many_copies_it_has(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    job, originals = line.job(), [chunk(n, f"text {n}") for n in range(5)]
    line.write(job, originals)
    asked: list[int] = []
    real = line.store.get

    def get(collection: str, ids: Sequence[str], names: Any) -> Any:
        asked.append(len(ids))
        return real(collection, ids, names)

    monkeypatch.setattr(line.store, "get", get)
    monkeypatch.setattr(module, "_POINTS", 3)
    copies = [copy_of(100 + n, originals[n % 5], 0) for n in range(40)]
    assert line.aggregate(line.stage(job, copies)) == "written"
    assert asked == [3, 2]
    monkeypatch.undo()
    for n, copy in enumerate(copies):
        assert_copied(line, copy, originals[n % 5])


def test_a_sleeper_puts_no_copy_over_what_is_newer_and_a_second_attempt_changes_nothing(
    line: Line, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, original = line.job(), chunk(1, "text")
    line.write(job, [original])
    copies = [copy_of(2, original, 0), copy_of(3, original, 0)]
    batch = line.stage(job, copies)
    before: list[StoredPoint] = []

    def upsert(*what: Any) -> None:
        """Of one who slept right before it while others did the same, and then wrote something newer."""
        monkeypatch.undo()
        ledger.redis.zadd("v5:steps:aggregate", {batch: 1})
        assert line.aggregate(batch) == "written"
        newer = replace(line.get(copies[0])[0], payload={"text": "new", "v5": {"started": job.started + 1}})
        line.store.upsert("c", [newer], job.started + 1)  # type: ignore[list-item]
        before.extend(line.get(*copies))
        line.store.upsert(*what)

    monkeypatch.setattr(line.store, "upsert", upsert)
    assert line.aggregate(batch) == "written"
    after = line.get(*copies)
    assert [point.payload["text"] for point in after] == ["new", "text"]
    assert [point.payload for point in after] == [point.payload for point in before]
    assert ledger.jobs.get(job.id).done == 3


def test_a_long_copys_cut_rows_are_counted(line: Line, ledger: Ledger, monkeypatch: Any) -> None:
    plan = make_plan(primary=BGE, outputs={BGE: ["multi"]}, fake=True)
    job, original = line.job(plan), chunk(1, "word " * 50)
    line.write(job, [original])
    rows = len(line.get(original)[0].vectors["bge-m3-colbert"])  # type: ignore[arg-type]
    monkeypatch.setattr(module, "most_rows", lambda _width: rows)
    assert line.aggregate(line.stage(job, [copy_of(2, original, 0)])) == "written"
    assert ledger.jobs.get(job.id).truncated == 1
