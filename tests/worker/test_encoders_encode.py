"""The loop: order, progress, stopping, the lock, and failures that end with the texts they belong to."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from registry.codecs import Dense, Multi, Sparse, pack_part, unpack_part
from registry.errors import InfrastructureError
from registry.models import EMBEDDERS, MAX_MULTIVECTOR_VALUES, model
from registry.settings import load_settings
from worker.encoders import fake
from worker.encoders.base import MicroBatch, Prepared
from worker.encoders.encode import Stopped, encode
from worker.encoders.factory import load_encoder, warm_up
from worker.encoders.fake import FakeEncoder
from worker.encoders.loop import PROBE


def make(name: str = "bge-m3", **settings: Any) -> FakeEncoder:
    return FakeEncoder(model(name), "", load_settings(fake_encoders=True, **settings))


def texts(count: int) -> list[str]:
    return [f"def f{i}(): return {i}" + " " * (i * 37 % 900) for i in range(count)]


def run(encoder: Any, given: Sequence[str], kinds: Any = ("dense",), **options: Any) -> Any:
    return encode(encoder, given, "document", kinds, device_lock=threading.Lock(), **options)


@pytest.mark.parametrize("name", EMBEDDERS)
def test_every_embedder_has_a_fake_with_all_its_outputs(name: str) -> None:
    settings = load_settings(fake_encoders=True)
    kinds = [output.kind for output in model(name).outputs]
    encoder = load_encoder(name, "", settings, kinds)
    part = run(encoder, texts(20), kinds)
    assert warm_up(encoder, kinds) >= 0
    assert set(part.vectors) == set(kinds)
    assert part.rejected == {}
    # The codec's own checks hold for it.
    assert unpack_part(pack_part(part)).vectors.keys() == part.vectors.keys()
    assert all(encoder.space(kind).revision == "fake-1" for kind in kinds)


def test_the_order_is_the_callers_and_a_vector_depends_on_its_text_alone() -> None:
    encoder, given = make(), texts(200)
    kinds = ["dense", "sparse", "multi"]
    together = run(encoder, given, kinds)
    for i in (0, 7, 199):
        alone = run(encoder, [given[i]], kinds)
        np.testing.assert_array_equal(together.vectors["dense"].values[i], alone.vectors["dense"].values[0])
        for kind in ("sparse", "multi"):
            np.testing.assert_array_equal(together.vectors[kind].row(i), alone.vectors[kind].row(0))


def test_fakes_differ_by_model_output_and_task() -> None:
    settings = load_settings(fake_encoders=True)
    name = "jina-embeddings-v4"
    vectors = [
        run(FakeEncoder(model(name), task, settings), ["a"]).vectors["dense"].values[0]
        for task in ("retrieval", "code")
    ]
    vectors.append(run(make("bge-m3"), ["a"]).vectors["dense"].values[0])
    vectors.append(run(make("bge-m3"), ["a"], ["multi"]).vectors["multi"].values[0])
    heads = {tuple(np.round(v[:4], 5).tolist()) for v in vectors}
    assert len(heads) == 4


@pytest.mark.parametrize("kind", ["dense", "sparse", "multi"])
@pytest.mark.parametrize("poison", [fake.POISON_RAISE, fake.POISON_NAN, fake.POISON_SHAPE, fake.POISON_OOM])
def test_bisection_rejects_the_poisons_and_nothing_else(poison: str, kind: Any) -> None:
    given = texts(70)
    bad = {3, 4, 33, 69}
    clean = run(make(), given, [kind])
    for i in bad:
        given[i] += poison
    part = run(make(), given, [kind])
    assert set(part.rejected) == bad
    assert all(part.rejected.values())
    for i in range(70):
        got, want = part.vectors[kind], clean.vectors[kind]
        if isinstance(got, Dense):
            assert not got.values[i].any() if i in bad else (got.values[i] == want.values[i]).all()
        else:
            assert isinstance(got, Sparse | Multi)
            rows = got.row(i)[1] if isinstance(got, Sparse) else got.row(i)
            rows_wanted = want.row(i)[1] if isinstance(got, Sparse) else want.row(i)
            np.testing.assert_array_equal(rows, rows_wanted[: 0 if i in bad else None])


def test_a_text_that_cannot_be_tokenised_is_rejected_alone() -> None:
    part = run(make(), ["a", "b \ud800", "c"])
    assert set(part.rejected) == {1}
    assert part.tokens_seen[1] == 0


def test_an_only_text_that_fails_is_rejected_while_the_probe_passes() -> None:
    assert set(run(make(), ["x" + fake.POISON_OOM]).rejected) == {0}


class Broken(FakeEncoder):
    """Fails on every text, the probe included."""

    def forward(self, batch: MicroBatch) -> Any:
        raise MemoryError("the host has none left")


class Lost(FakeEncoder):
    """Its device is gone."""

    calls = 0

    def forward(self, batch: MicroBatch) -> Any:
        self.calls += 1
        raise InfrastructureError("the device is gone")


def test_a_failure_on_every_text_is_not_held_against_the_texts() -> None:
    encoder = Broken(model("bge-m3"), "", load_settings())
    with pytest.raises(InfrastructureError, match="known good"):
        run(encoder, texts(5))


def test_infrastructure_leaves_at_once() -> None:
    encoder = Lost(model("bge-m3"), "", load_settings())
    with pytest.raises(InfrastructureError, match="gone"):
        run(encoder, texts(50))
    assert encoder.calls == 1


def test_no_texts_make_an_empty_part() -> None:
    part = run(make(), [], ["dense", "sparse", "multi"])
    assert len(part) == 0
    assert unpack_part(pack_part(part)).vectors["dense"].values.shape == (0, 1024)


def test_progress_is_told_after_each_micro_batch_and_may_end_the_call() -> None:
    encoder, given = make(), texts(300)
    expected = len(encoder.prepare(given, "document").micro_batches)
    calls: list[int] = []
    run(encoder, given, on_progress=lambda: calls.append(1))
    assert len(calls) == expected > 3

    def lost() -> None:
        raise LookupError("the lease is lost")

    with pytest.raises(LookupError):
        run(encoder, given, on_progress=lost)


def test_should_stop_stops_between_micro_batches() -> None:
    done: list[int] = []
    with pytest.raises(Stopped):
        run(make(), texts(300), on_progress=lambda: done.append(1), should_stop=lambda: len(done) >= 2)
    assert len(done) == 2


class Watching(FakeEncoder):
    """Notes at each step whether the lock is held."""

    def __init__(self, lock: threading.Lock) -> None:
        super().__init__(model("bge-m3"), "", load_settings())
        self.lock = lock
        self.held: dict[str, set[bool]] = {"prepare": set(), "forward": set(), "finish": set()}

    def prepare(self, *arguments: Any) -> Any:
        self.held["prepare"].add(self.lock.locked())
        return super().prepare(*arguments)

    def forward(self, batch: MicroBatch) -> Any:
        self.held["forward"].add(self.lock.locked())
        return super().forward(batch)

    def finish(self, *arguments: Any) -> Any:
        self.held["finish"].add(self.lock.locked())
        return super().finish(*arguments)


def test_the_lock_is_held_for_forward_only() -> None:
    lock = threading.Lock()
    encoder = Watching(lock)
    given = [*texts(100), "x" + fake.POISON_RAISE]
    encode(encoder, given, "document", ["dense"], device_lock=lock)
    assert encoder.held == {"prepare": {False}, "forward": {True}, "finish": {False}}
    assert not lock.locked()


def test_the_probe_is_a_text_of_its_own() -> None:
    assert fake.POISON not in PROBE


class Rows:
    """A FakeEncoder whose multi-vectors have as many rows as their text has words."""

    def __init__(self) -> None:
        self._encoder = make()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def prepare(self, given: Sequence[str], side: str) -> Any:
        """One micro-batch; the tokens are the texts themselves."""
        counts = np.array([len(text.split()) for text in given], np.int32)
        return Prepared([MicroBatch(tuple(range(len(given))), given, 1, 1, 1)], counts, counts)

    def forward(self, batch: MicroBatch) -> Any:
        """The texts again."""
        return batch.tokens

    def finish(self, batch: MicroBatch, raw: Any, kinds: Any) -> Any:
        """Rows that point along the axis of their number."""
        counts = [len(text.split()) for text in raw]
        axes = np.concatenate([np.arange(count) % 1024 for count in counts])
        return {"multi": Multi(np.eye(1024, dtype=np.float32)[axes], np.cumsum([0, *counts], dtype=np.int64))}


def test_rows_past_the_stores_ceiling_are_cut_counted_and_said(caplog: pytest.LogCaptureFixture) -> None:
    lengths = [3, 1023, 1024, 1, 1030]
    part = run(Rows(), ["word " * n for n in lengths], ["multi"])
    multi = part.vectors["multi"]
    assert [len(multi.row(i)) for i in range(5)] == [3, 1023, 1023, 1, 1023]
    assert all(multi.row(i).size < MAX_MULTIVECTOR_VALUES for i in range(5))
    # The first rows stay.
    assert multi.row(4).argmax(axis=1).tolist() == list(range(1023))
    assert part.notes["rows_cut"] == {"2": 1, "4": 7}
    assert "2 multi-vectors" in caplog.text
    assert unpack_part(pack_part(part)).notes["rows_cut"] == {"2": 1, "4": 7}
    assert "rows_cut" not in run(Rows(), ["word"] * 3, ["multi"]).notes
