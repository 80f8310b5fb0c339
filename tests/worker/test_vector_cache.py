"""Equal texts take one pass: within a batch, across batches, and never at the cost of what is right."""

from __future__ import annotations

import gc
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import pytest

from ledger.ledger import Ledger
from ledger.steps import Taken
from registry.chunks import Chunk, chunk_id
from registry.codecs import Dense, Multi, Part, Sparse, Vectors, pack_chunks, pack_part, unpack_part
from registry.models import OutputKind, model
from registry.plan import make_plan
from registry.serving import served
from registry.settings import Settings, load_settings
from worker.embedder import EmbedWorker
from worker.encoders import fake
from worker.encoders.encode import encode
from worker.encoders.fake import FakeEncoder
from worker.vector_cache import VectorCache

KINDS: tuple[OutputKind, ...] = ("dense", "sparse", "multi")
PLENTY = 1 << 24
MODEL = "qdrant-minilm-onnx"


class Through:
    """Texts through a fake bge-m3 with long texts in windows; notes those that went."""

    def __init__(self, kinds: Sequence[OutputKind] = KINDS) -> None:
        settings = load_settings(fake_encoders=True)
        self.kinds = kinds
        self.encoder = FakeEncoder(served(model("bge-m3"), "", "split-and-pool"), "", settings)
        self.went: list[str] = []

    def __call__(self, texts: Sequence[str]) -> Part:
        self.went += texts
        return encode(self.encoder, texts, "document", self.kinds, device_lock=threading.Lock())


def assert_same(part: Part, direct: Part) -> None:
    """Bit for bit, in vectors, tokens, rejections and what is noted of each text."""
    mine, theirs = (unpack_part(pack_part(each)) for each in (part, direct))
    assert mine.vectors.keys() == theirs.vectors.keys()
    for kind, vectors in theirs.vectors.items():
        for name, array in vars(vectors).items():
            np.testing.assert_array_equal(getattr(mine.vectors[kind], name), array)
    np.testing.assert_array_equal(mine.tokens_seen, theirs.tokens_seen)
    np.testing.assert_array_equal(mine.tokens_kept, theirs.tokens_kept)
    assert mine.rejected == theirs.rejected
    for note in ("windows", "rows_cut", "backend", "dtype"):
        assert mine.notes.get(note) == theirs.notes.get(note)


LONG = "word " * 20_000
BATCH = ["a", LONG, "b" + fake.POISON_NAN, "a", "c", LONG, "b" + fake.POISON_NAN, "c", "c", "d"]


def test_equal_texts_of_a_batch_go_through_once_and_each_has_what_it_would_have_alone() -> None:
    through = Through()
    encoded = VectorCache(0).encode(BATCH, KINDS, {}, through)
    assert through.went == list(dict.fromkeys(BATCH)) == encoded.fresh
    assert encoded.part.notes["cached"] == 5
    assert set(encoded.part.rejected) == {2, 6}
    assert encoded.part.notes["windows"].keys() == {"1", "5"}
    assert_same(encoded.part, Through()(BATCH))


def test_a_later_batch_takes_what_is_at_hand_and_tries_again_what_was_rejected() -> None:
    through, cache = Through(), VectorCache(PLENTY)
    cache.encode(BATCH, KINDS, {}, through)
    through.went.clear()
    later = ["e", LONG, "d", "b" + fake.POISON_NAN, "a", "e"]
    encoded = cache.encode(later, KINDS, {}, through)
    assert through.went == ["e", "b" + fake.POISON_NAN]
    assert encoded.part.notes["cached"] == 4
    assert encoded.fresh_part.tokens_kept.tolist() == Through()(through.went).tokens_kept.tolist()
    assert_same(encoded.part, Through()(later))
    again = cache.encode(["a", "e", LONG], KINDS, {}, lambda texts: through(texts) if not texts else 1 / 0)
    assert_same(again.part, Through()(["a", "e", LONG]))


def test_what_was_made_for_other_outputs_or_under_other_goldens_is_not_used() -> None:
    through, cache = Through(["dense"]), VectorCache(PLENTY)
    cache.encode(["a"], ["dense"], {"dense": "one"}, through)
    cache.encode(["a"], ["dense"], {"dense": "other"}, through)
    through.kinds = KINDS
    assert_same(cache.encode(["a"], KINDS, {"dense": "one"}, through).part, Through()(["a"]))
    assert through.went == ["a"] * 3
    cache.encode(["a"], KINDS, {"dense": "one"}, through)
    assert len(through.went) == 3


def test_rows_that_were_cut_are_said_of_every_equal_text() -> None:
    def through(texts: Sequence[str]) -> Part:
        rows = Multi(np.ones((len(texts), 4), np.float32), np.arange(len(texts) + 1))
        counts = np.ones(len(texts), np.int32)
        return Part({"multi": rows}, counts, counts, notes={"rows_cut": {"1": 7}})

    cache = VectorCache(PLENTY)
    for cut in (["2", "3"], ["0", "1"]):
        part = cache.encode(
            ["x", "x", "y", "y"] if cut[0] == "2" else ["y", "y"], ["multi"], {}, through
        ).part
        assert part.notes["rows_cut"] == dict.fromkeys(cut, 7)


def test_its_memory_is_bounded_and_the_text_used_longest_ago_goes() -> None:
    limit = 400_000
    through, cache = Through(["dense"]), VectorCache(limit)

    def batch(number: int) -> list[str]:
        return ["kept", *(f"{number} {i}" for i in range(20))]

    # What the encoder and numpy take once and for all.
    VectorCache(0).encode(batch(0), ["dense"], {}, through)
    tracemalloc.start()
    for number in range(20):
        cache.encode(batch(number), ["dense"], {}, through)
        through.went.clear()
        assert 0 < cache.size <= limit
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert limit / 2 < taken < limit
    encoded = cache.encode(["kept", *batch(19), *batch(0)], ["dense"], {}, through)
    assert encoded.fresh == batch(0)[1:]
    assert cache.encode(["kept"] * 2, ["dense"], {}, through).fresh == []


@pytest.mark.parametrize("kinds", [("dense",), KINDS])
def test_small_vectors_are_counted_with_all_that_they_take(kinds: Sequence[OutputKind]) -> None:
    def through(texts: Sequence[str]) -> Part:
        n = len(texts)
        counts, offsets, values = (
            np.arange(n, dtype=np.int32) + 1000,
            np.arange(n + 1),
            np.ones(n, np.float32),
        )
        every: dict[OutputKind, Vectors] = {
            "dense": Dense(values[:, None]),
            "sparse": Sparse(np.ones(n, np.int64), values, offsets),
            "multi": Multi(values[:, None], offsets),
        }
        return Part({kind: every[kind] for kind in kinds}, counts, counts)

    cache = VectorCache(PLENTY)
    texts = [str(i) for i in range(5000)]
    tracemalloc.start()
    cache.encode(texts, kinds, {}, through)
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 0.7 * cache.size < taken < cache.size


def test_an_entry_larger_than_all_of_it_is_not_kept_and_drives_out_none() -> None:
    through, cache = Through(["dense"]), VectorCache(6000)
    cache.encode(["a"], ["dense"], {}, through)
    through.kinds = KINDS
    for _ in range(2):
        cache.encode(["a"], KINDS, {}, through)
    through.kinds = ["dense"]
    cache.encode(["a"], ["dense"], {}, through)
    assert through.went == ["a"] * 3


def test_threads_share_it() -> None:
    cache, direct = VectorCache(200_000), Through()
    texts = [f"text {i % 60}" for i in range(200)]
    wanted = direct(texts)
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        order = np.random.default_rng(seed)
        through = Through()
        try:
            for _ in range(30):
                some = order.integers(0, 200, 40)
                part = cache.encode([texts[i] for i in some], KINDS, {}, through).part
                np.testing.assert_array_equal(
                    part.vectors["dense"].values, wanted.vectors["dense"].values[some]
                )
                assert part.tokens_kept.tolist() == wanted.tokens_kept[some].tolist()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert cache.size == sum(row.size for row in cache._rows.values()) <= 200_000


def test_the_real_model_gives_a_text_at_hand_what_it_would_give_it_now(onnx_encoder: Any) -> None:
    def through(texts: Sequence[str]) -> Part:
        return encode(onnx_encoder, texts, "document", ["dense"], device_lock=threading.Lock())

    texts = [f"def f{i}(value):\n    return value + {i}\n" * (1 + i % 7) for i in range(24)]
    cache = VectorCache(PLENTY)
    for start in (0, 8, 16):
        cache.encode(texts[start : start + 8], ["dense"], {}, through)
    part = cache.encode(texts, ["dense"], {}, through).part
    assert part.notes["cached"] == 24
    np.testing.assert_allclose(
        part.vectors["dense"].values, through(texts).vectors["dense"].values, atol=2e-6
    )


# A worker.


class Counting(FakeEncoder):
    """Notes the texts that are tokenised for a pass."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(model(MODEL), "", settings)
        self.went: list[str] = []

    def prepare(self, texts: Sequence[str], side: Any) -> Any:
        self.went += texts
        return super().prepare(texts, side)


class Resigned(BaseException):
    """A worker ended its process."""


class Scene:
    """A worker in this process, and its batches."""

    def __init__(self, ledger: Ledger, settings: Settings, encoder: Counting, worker: EmbedWorker) -> None:
        self.ledger, self.settings, self.encoder, self.worker = ledger, settings, encoder, worker
        self.plan = make_plan(primary=MODEL, fake=True)
        self.job = ledger.jobs.open("c", self.plan, ["src"])[0].id
        self.staged = 0

    def stage(self, texts: Sequence[str]) -> str:
        chunks = [Chunk(chunk_id(f"{self.staged} {i}"), text) for i, text in enumerate(texts)]
        blob = pack_chunks(chunks)
        self.ledger.steps.stage(
            self.job, self.plan, self.staged, "upsert", [MODEL], len(texts), blob, 10, 1 << 30
        )
        self.staged += 1
        return f"{self.job}.{self.staged - 1}"

    def run(self, batch: str) -> str:
        self.encoder.went.clear()
        return self.worker._embed(batch=batch, step=f"embed.{MODEL}")

    def part(self, batch: str) -> Part:
        taken = self.ledger.steps.take(batch, "aggregate")
        assert isinstance(taken, Taken), taken
        return unpack_part(self.ledger.redis.get(taken.part_key(MODEL)))


@pytest.fixture
def make_scene(
    ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Scene]]:
    made: list[Scene] = []

    def make(**changed: Any) -> Scene:
        mine = settings.model_copy(update=changed)
        encoder = Counting(mine)
        monkeypatch.setattr("worker.embedder.load_encoder", lambda *_, **__: encoder)
        worker = EmbedWorker(mine, MODEL)
        worker.prepare()

        def resign(reason: str) -> NoReturn:
            raise Resigned(reason)

        monkeypatch.setattr(worker, "resign", resign)
        made.append(Scene(ledger, mine, encoder, worker))
        return made[-1]

    yield make
    for scene in made:
        scene.worker.ledger.close()


def test_a_worker_embeds_a_text_once_and_its_rate_is_of_what_it_embedded(
    make_scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene()
    counted: list[tuple[list[str], int]] = []
    monkeypatch.setattr(
        scene.worker._pace, "finished", lambda texts, part: counted.append((list(texts), len(part)))
    )
    first, second = scene.stage(["a", "b", "a"]), scene.stage(["b", "c", "a", "b"])
    assert scene.run(first) == "embedded"
    assert scene.encoder.went == ["a", "b"]
    assert scene.run(second) == "embedded"
    assert scene.encoder.went == ["c"]
    assert counted == [(["a", "b"], 2), (["c"], 1)]
    for batch, texts, cached in ((first, ["a", "b", "a"], 1), (second, ["b", "c", "a", "b"], 3)):
        part = scene.part(batch)
        direct = encode(
            FakeEncoder(model(MODEL), "", scene.settings),
            texts,
            "document",
            ["dense"],
            device_lock=threading.Lock(),
        )
        assert_same(part, direct)
        assert part.notes["cached"] == cached
        assert part.notes["goldens"]


def test_after_a_vanished_attempt_every_chunk_runs_whatever_is_at_hand(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene()
    assert scene.run(scene.stage(["a", "b"])) == "embedded"
    batch = scene.stage(["a", "b", "a"])
    assert isinstance(scene.ledger.steps.take(batch, f"embed.{MODEL}"), Taken)
    scene.ledger.redis.zadd(f"v5:steps:embed.{MODEL}", {batch: 1})
    assert scene.run(batch) == "embedded"
    assert [text for text in scene.encoder.went if text in ("a", "b")] == ["a", "b", "a"]
    assert len(scene.part(batch)) == 3


def test_an_encoder_found_wrong_records_nothing_that_is_at_hand_either(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene(golden_batches=3)
    assert scene.run(scene.stage(["a"])) == "embedded"
    assert scene.run(scene.stage([fake.POISON_DRIFT])) == "embedded"
    at_hand = scene.stage(["a"])
    for _ in range(2):
        with pytest.raises(Resigned):
            scene.run(at_hand)
        scene.ledger.redis.zadd(f"v5:steps:embed.{MODEL}", {at_hand: 1})
    assert "a" not in scene.encoder.went
    fields = scene.ledger.redis.hkeys(f"v5:batch:{at_hand}")
    assert not [name for name in fields if name.startswith(b"part:")]
