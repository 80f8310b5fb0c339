"""One chunk at a time: what runs, in which order, beside whom, and what the ledger knows meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from ledger.alive import Process
from ledger.ledger import Ledger
from ledger.steps import Refused, Taken
from registry.chunks import Chunk, chunk_id
from registry.codecs import Dense, Multi, Part, Sparse, unpack_part
from registry.errors import DeviceFailed, LedgerUnavailable
from registry.frames import pack_chunks, pack_json, unpack_json
from registry.messages import Request
from registry.models import model
from registry.plan import Plan, make_plan
from registry.serving import served
from registry.settings import Settings
from worker.answers import Answers
from worker.edge import Abandoned
from worker.embedder import EmbedWorker
from worker.encoders import fake
from worker.encoders.base import MicroBatch
from worker.encoders.encode import Singly, Stopped, encode
from worker.encoders.fake import FakeEncoder
from worker.encoders.loop import PROBE
from worker.isolation import MOST_STRIKES, Gate

MODEL = "qdrant-minilm-onnx"
STEP = f"embed.{MODEL}"
COUNT = 6


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


# The gate.


def test_many_share_the_gate_and_one_alone_has_it_to_itself(eventually: Callable[..., Any]) -> None:
    gate, inside, leave = Gate(), [], threading.Event()

    def share() -> None:
        with gate.shared():
            inside.append("shared")
            leave.wait(20)

    def alone() -> None:
        with gate.alone():
            inside.append("alone")

    sharing = [in_thread(share) for _ in range(2)]
    eventually(lambda: inside == ["shared"] * 2)
    one = in_thread(alone)
    eventually(lambda: len(gate._waiting) == 1)
    late = in_thread(share)
    eventually(lambda: len(gate._waiting) == 2)
    assert inside == ["shared"] * 2, "who comes after one that waits to be alone does not overtake it"
    leave.set()
    for thread in [*sharing, one, late]:
        thread.join(20)
    assert inside == ["shared", "shared", "alone", "shared"]


def test_neither_chunks_nor_queries_nor_batches_keep_each_other_waiting_for_ever(
    eventually: Callable[..., Any],
) -> None:
    gate, over = Gate(), threading.Event()
    done = dict.fromkeys(["chunk", "other chunk", "query", "batch"], 0)

    def repeat(name: str, way: Callable[[], Any]) -> Callable[[], None]:
        def work() -> None:
            while not over.is_set():
                with way():
                    done[name] += 1

        return work

    def batch() -> None:
        with gate.shared():
            while not over.is_set():
                done["batch"] += 1
                gate.step_aside()

    threads = [in_thread(repeat(name, gate.alone)) for name in ("chunk", "other chunk")]
    threads += [in_thread(repeat("query", gate.shared)), in_thread(batch)]
    eventually(lambda: min(done.values()) > 20, 60, f"everybody's turn: {done}")
    over.set()
    for thread in threads:
        thread.join(20)


# The texts.


def test_singly_gives_what_the_whole_batch_gives_bit_for_bit(settings: Settings) -> None:
    texts = [f"def f{i}(): return {i}" + " " * (i * 37 % 900) for i in range(40)]
    texts[7] += "word " * 20_000
    texts[11] += fake.POISON_NAN
    texts[12] += fake.POISON_RAISE
    kinds = ("dense", "sparse", "multi")
    encoder = FakeEncoder(served(model("bge-m3"), "", "split-and-pool"), "", settings)
    lock = threading.Lock()
    together = encode(encoder, texts, "document", kinds, device_lock=lock)
    order = [*range(39, 20, -1), *range(21)]
    entered: list[int] = []

    @contextmanager
    def around(row: int) -> Iterator[None]:
        entered.append(row)
        yield

    singly = encode(encoder, texts, "document", kinds, device_lock=lock, singly=Singly(order, around, {}))
    assert entered == order
    assert_same(singly, together)
    assert singly.rejected == together.rejected
    assert set(singly.rejected) == {11, 12}
    assert singly.notes["windows"] == together.notes["windows"] != {}
    assert singly.notes["backend"] == "fake"


def test_a_refused_text_is_not_run_and_leaves_an_empty_place(settings: Settings) -> None:
    encoder = FakeEncoder(model("bge-m3"), "", settings)
    kinds = ("dense", "sparse", "multi")
    lock = threading.Lock()
    whole = encode(encoder, ["a", "b"], "document", kinds, device_lock=lock)
    texts = ["a", fake.POISON_KILL, "b"]
    refusing = Singly([0, 2], lambda _row: nullcontext(), {1: "refused"})
    part = encode(encoder, texts, "document", kinds, device_lock=lock, singly=refusing)
    assert part.rejected == {1: "refused"}
    assert_same(part, whole, [0, 2])
    assert not part.vectors["dense"].values[1].any()
    assert part.tokens_seen[1] == part.tokens_kept[1] == 0
    only = Singly([], lambda _row: nullcontext(), {0: "refused"})
    alone = encode(encoder, [fake.POISON_KILL], "document", kinds, device_lock=lock, singly=only)
    assert alone.rejected == {0: "refused"}


def assert_same(part: Part, whole: Part, rows: Sequence[int] = ()) -> None:
    """Text `rows[i]` of the part (all, in order) has what text i of the whole has."""
    rows = rows or range(len(whole))
    assert part.tokens_seen[list(rows)].tolist() == whole.tokens_seen.tolist()
    assert part.tokens_kept[list(rows)].tolist() == whole.tokens_kept.tolist()
    for kind, vectors in whole.vectors.items():
        mine = part.vectors[kind]
        for i, row in enumerate(rows):
            if isinstance(vectors, Dense):
                assert isinstance(mine, Dense)
                pairs = [(mine.values[row], vectors.values[i])]
            elif isinstance(vectors, Sparse):
                assert isinstance(mine, Sparse)
                pairs = list(zip(mine.row(row), vectors.row(i), strict=True))
            else:
                assert isinstance(mine, Multi)
                pairs = [(mine.row(row), vectors.row(i))]
            for got, want in pairs:
                np.testing.assert_array_equal(got, want)


# A worker.


class Watching(FakeEncoder):
    """Notes each text that runs, and what the ledger has named then."""

    def __init__(self, ledger: Ledger, settings: Settings) -> None:
        super().__init__(model(MODEL), "", settings)
        self.ledger = ledger
        self.batch = ""
        self.ran: list[tuple[str, int | None]] = []
        self.during: Callable[[str], object] = lambda _text: None
        self._texts: dict[bytes, str] = {}

    def prepare(self, texts: Sequence[str], side: Any) -> Any:
        prepared = super().prepare(texts, side)
        for batch in prepared.micro_batches:
            self._texts[batch.tokens.seeds.tobytes()] = "+".join(texts[row] for row in batch.rows)
        return prepared

    def forward(self, batch: MicroBatch) -> Any:
        text = self._texts[batch.tokens.seeds.tobytes()]
        named = self.ledger.redis.hget(f"v5:batch:{self.batch}", f"named:{STEP}")
        self.ran.append((text, None if named is None else int(named)))
        self.during(text)
        return super().forward(batch)


@dataclass
class Scene:
    """A worker in this process, and a batch of COUNT chunks."""

    worker: EmbedWorker
    encoder: Watching
    ledger: Ledger
    batch: str

    def run(self) -> str:
        self.encoder.ran.clear()
        return self.worker._embed(batch=self.batch, step=STEP)

    def vanish(self, chunk: int | None = None) -> Taken:
        """Somebody takes the step, perhaps names a chunk, and is not heard of again."""
        taken = self.take()
        if chunk is not None:
            self.ledger.steps.name(taken, chunk)
        self.runs_out()
        return taken

    def take(self) -> Taken:
        taken = self.ledger.steps.take(self.batch, STEP)
        assert isinstance(taken, Taken), taken
        return taken

    def runs_out(self) -> None:
        self.ledger.redis.zadd(f"v5:steps:{STEP}", {self.batch: 1})

    def part(self) -> Part:
        taken = self.ledger.steps.take(self.batch, "aggregate")
        assert isinstance(taken, Taken), taken
        return unpack_part(self.ledger.redis.get(taken.part_key(MODEL)))

    def fields(self) -> set[str]:
        return {name.decode() for name in self.ledger.redis.hkeys(f"v5:batch:{self.batch}")}


_REASON = "it ended its worker 2 times, alone (it was killed, crashed or hung, or the device failed)"


@pytest.fixture
def plan() -> Plan:
    return make_plan(primary=MODEL, fake=True)


@pytest.fixture
def scene(ledger: Ledger, settings: Settings, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    encoder = Watching(ledger, settings)
    monkeypatch.setattr("worker.embedder.load_encoder", lambda *_, **__: encoder)
    worker = EmbedWorker(settings, MODEL)
    worker.prepare()
    monkeypatch.setattr(worker.edge, "_give_up", lambda _reason: None)
    job, _ = ledger.jobs.open("c", plan, ["src"])
    blob = pack_chunks([Chunk(chunk_id(str(i)), f"text {i}") for i in range(COUNT)])
    ledger.steps.stage(job.id, plan, 0, "upsert", [MODEL], COUNT, blob, 10, 1 << 30)
    encoder.batch = f"{job.id}.0"
    yield Scene(worker, encoder, ledger, f"{job.id}.0")
    worker.ledger.close()


def test_after_a_vanished_attempt_each_chunk_runs_alone_and_named(scene: Scene, settings: Settings) -> None:
    scene.vanish()
    assert scene.run() == "embedded"
    assert scene.encoder.ran == [(PROBE, None), *((f"text {i}", i) for i in range(COUNT))]
    texts = [f"text {i}" for i in range(COUNT)]
    whole = encode(
        FakeEncoder(model(MODEL), "", settings), texts, "document", ["dense"], device_lock=threading.Lock()
    )
    assert_same(scene.part(), whole)
    assert f"named:{STEP}" not in scene.fields()


def test_an_ordinary_attempt_names_nothing(scene: Scene) -> None:
    assert scene.run() == "embedded"
    assert scene.encoder.ran == [("+".join(f"text {i}" for i in range(COUNT)), None)]


def test_suspected_chunks_go_first_behind_a_probe_and_one_with_enough_strikes_not_at_all(
    scene: Scene,
) -> None:
    for chunk in [4, 3, *[5] * MOST_STRIKES]:
        scene.vanish(chunk)
    assert scene.run() == "embedded"
    probe = (PROBE, None)
    suspected = [probe, ("text 3", 3), probe, ("text 4", 4)]
    assert scene.encoder.ran == [*suspected, *((f"text {i}", i) for i in range(3))]
    assert scene.part().rejected == {5: _REASON}


def test_a_broken_device_is_not_held_against_the_chunk_that_would_come_next(scene: Scene) -> None:
    scene.vanish(2)

    def broken(text: str) -> None:
        if text == PROBE:
            raise ValueError("every pass fails")

    scene.encoder.during = broken
    assert scene.run() == "device failed"
    assert {named for _, named in scene.encoder.ran} == {None}
    scene.encoder.during = lambda _text: None
    scene.runs_out()
    taken = scene.take()
    assert taken.strikes == {2: 1}


def test_a_text_that_makes_the_device_fail_ends_like_one_that_kills(scene: Scene) -> None:
    def failing(text: str) -> None:
        if "text 2" in text:
            raise DeviceFailed("CUDA error: device-side assert")

    scene.encoder.during = failing
    for _ in range(1 + MOST_STRIKES):
        assert scene.run() == "device failed"
        scene.runs_out()
    assert scene.run() == "embedded"
    assert list(scene.part().rejected) == [2]


def test_a_stop_between_two_chunks_leaves_no_name_and_no_strike(scene: Scene) -> None:
    scene.vanish()
    scene.encoder.during = lambda text: text == "text 2" and scene.worker.stopping.set()
    scene.worker.doorbell.ring = lambda *_: True  # type: ignore[method-assign]
    assert scene.run() == "given back"
    assert scene.encoder.ran[-1] == ("text 2", 2)
    assert f"named:{STEP}" not in scene.fields()
    assert scene.take().strikes == {}


def test_who_finds_another_at_it_leaves_it_to_him_and_has_no_strike(scene: Scene) -> None:
    scene.vanish()
    others: list[Taken] = []

    def sleep_through_the_lease(text: str) -> None:
        if text == "text 1":
            scene.runs_out()
            others.append(scene.take())

    scene.encoder.during = sleep_through_the_lease
    assert scene.run() == "abandoned"
    assert others[0].strikes == {1: 1}, "as long as nothing was heard of him"
    assert scene.encoder.ran[-1][0] == "text 1"
    scene.ledger.steps.defer(others[0], 0.0)
    assert scene.take().strikes == {}


def test_a_chunk_slower_than_the_lease_keeps_it(
    ledger: Ledger, settings: Settings, plan: Plan, monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    short = settings.model_copy(update={"lease_seconds": 1.0})
    monkeypatch.setattr(ledger.steps, "_lease_ms", 1000)
    worker = EmbedWorker(short, MODEL)
    worker.prepare()
    scene.worker = worker
    scene.vanish()
    refused: list[object] = []

    def slow(text: str) -> None:
        if text == "text 0":
            time.sleep(2.5)  # the point is to outlast the lease
            refused.append(scene.ledger.steps.take(scene.batch, STEP))

    scene.encoder.during = slow
    assert scene.run() == "embedded"
    assert refused == [Refused("live")]
    worker.ledger.close()


def test_what_could_not_be_said_while_the_ledger_was_away_is_said_before_the_next_step(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.vanish()
    steps = scene.worker.ledger.steps
    name, defer = steps.name, steps.defer

    def away(*_: Any) -> Any:
        raise LedgerUnavailable("away")

    def goes_away(text: str) -> None:
        if text == "text 1":
            monkeypatch.setattr(steps, "name", away)
            monkeypatch.setattr(steps, "defer", away)

    scene.encoder.during = goes_away
    assert scene.run() == "deferred"
    scene.runs_out()
    assert scene.run() == "deferred", "it is still away"
    scene.runs_out()
    scene.encoder.during = lambda _text: None
    monkeypatch.setattr(steps, "name", name)
    monkeypatch.setattr(steps, "defer", defer)
    ran: list[Taken] = []
    work = scene.worker._work
    monkeypatch.setattr(scene.worker, "_work", lambda taken: ran.append(taken) or work(taken))
    assert scene.run() == "embedded"
    assert ran[0].strikes == {}


def test_nothing_else_of_the_process_runs_while_a_chunk_is_named(
    scene: Scene, eventually: Callable[..., Any]
) -> None:
    """A batch in one thread, queries in another, beside a batch that goes singly: had one of them ended the
    process, the named chunk would be blamed."""
    scene.vanish()
    mine = {f"text {i}" for i in range(COUNT)}
    at_it: dict[int, str] = {}
    beside: list[tuple[str, str]] = []
    between: list[str] = []

    def note(what: str, texts: str) -> None:
        me = threading.get_ident()
        at_it[me] = texts
        for other, theirs in list(at_it.items()):
            if other != me and (texts in mine or theirs in mine):
                beside.append((texts, theirs))
        time.sleep(0.002)
        del at_it[me]
        if what == "forward":
            between.append(texts)

    prepare = scene.encoder.prepare

    def noted(texts: Sequence[str], side: Any) -> Any:
        note("prepare", texts[0])
        return prepare(texts, side)

    scene.encoder.prepare = noted  # type: ignore[method-assign]
    scene.encoder.during = lambda text: note("forward", text)
    over = threading.Event()
    worker = scene.worker
    encoder = scene.encoder

    def one_long_batch() -> None:
        # Each of its texts is a micro-batch of its own.
        texts = ["other " * 3000 + str(i) for i in range(2000)]
        with contextlib.suppress(Abandoned, Stopped):
            worker._part(scene_taken, encoder, texts, ["dense"])

    def queries() -> None:
        while not over.is_set():
            worker._embed_texts({"texts": ["query"]})

    scene_taken = Taken(**{**scene.take().__dict__, "vanished": False})
    scene.runs_out()
    threads = [in_thread(one_long_batch), in_thread(queries)]
    eventually(lambda: {"query"} < set(between))
    outcome = scene.run()
    over.set()
    worker.stopping.set()
    for thread in threads:
        thread.join(30)
    assert outcome == "embedded"
    assert not beside
    passes = [text if text in mine else "query" if text == "query" else "batch" for text in between]
    chunks = [i for i, text in enumerate(passes) if text in mine]
    assert len(chunks) == COUNT
    within = passes[chunks[0] : chunks[-1]]
    assert {"query", "batch"} <= set(within), "queries and batches get their turns between two chunks"


# Requests.


class Killed(BaseException):
    """The process ended."""


def test_a_query_that_ends_its_processes_is_refused_after_the_second(ledger: Ledger) -> None:
    request = Request(id="0" * 32, deadline=time.time() + 60)
    ledger.requests.ask(request.id, pack_json({"texts": ["poison"]}), 60)

    def kill(_asked: Any) -> bytes:
        raise Killed

    for pid in (1, 2):
        with pytest.raises(Killed):
            Answers(ledger, Process("worker", "w", pid=pid)).give(request.model_dump(), kill)
    assert Answers(ledger, Process("worker", "w", pid=3)).give(request.model_dump(), kill) == "answered"
    blob = ledger.requests.wait(request.id, 1)
    assert blob is not None
    answer = unpack_json(blob)
    assert (answer["error"], answer["again"]) == ("UsageError", False)
    assert "ended the 2 processes" in answer["message"]
    # Requests to the store are not counted: no text of theirs runs.
    store = Answers(ledger)
    for _ in range(3):
        with pytest.raises(Killed):
            store.give(request.model_dump(), kill)
