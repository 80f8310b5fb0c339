"""The gate: the first of a space records, the others must agree; no batch passes once one is wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from ledger.ledger import Ledger
from registry.codecs import Dense
from registry.errors import GoldenMismatch, LedgerUnavailable
from registry.models import OutputKind, model
from registry.settings import load_settings
from worker.encoders.encode import encode
from worker.encoders.fake import POISON_DRIFT, FakeEncoder
from worker.encoders.goldens import measure, pack_golden
from worker.golden_gate import GoldenGate

KINDS: tuple[OutputKind, ...] = ("dense", "sparse", "multi")


def encoder() -> FakeEncoder:
    return FakeEncoder(model("bge-m3"), "", load_settings(fake_encoders=True))


def drifted() -> FakeEncoder:
    found = encoder()
    drift(found)
    return found


def drift(some: FakeEncoder) -> None:
    encode(some, [POISON_DRIFT], "document", ["dense"], device_lock=threading.Lock())


@pytest.fixture
def gate(ledger: Ledger) -> Callable[..., GoldenGate]:
    def make(some: Any, every: int = 1, kinds: Sequence[OutputKind] = KINDS) -> GoldenGate:
        return GoldenGate(some, kinds, ledger.goldens, threading.Lock(), every)

    return make


def test_the_first_records_and_its_equals_pass(ledger: Ledger, gate: Callable[..., GoldenGate]) -> None:
    first, second = gate(encoder()), gate(encoder())
    first.enter()
    standing = {kind: ledger.goldens.get(encoder().space(kind).fingerprint) for kind in KINDS}
    assert all(standing.values())
    second.enter()
    assert first.passed() == second.passed()
    assert set(first.passed()) == set(KINDS)
    assert {kind: ledger.goldens.get(encoder().space(kind).fingerprint) for kind in KINDS} == standing


def test_others_do_not_enter_and_are_told_why(ledger: Ledger, gate: Callable[..., GoldenGate]) -> None:
    gate(encoder()).enter()
    wrong = gate(drifted())
    with pytest.raises(GoldenMismatch, match=r"bge-m3 on cpu, dense space .*cosine .*v5 models prove bge-m3"):
        wrong.enter()
    assert wrong.passed() == {}
    with pytest.raises(GoldenMismatch):
        wrong.leave()


def test_one_output_that_is_wrong_is_enough(ledger: Ledger, gate: Callable[..., GoldenGate]) -> None:
    gate(encoder()).enter()
    some = encoder()
    some._salts["multi"] ^= np.uint64(1)
    with pytest.raises(GoldenMismatch, match="multi space"):
        gate(some).enter()
    gate(some, kinds=("dense", "sparse")).enter()


def test_an_encoder_that_depends_on_its_batch_records_nothing(
    ledger: Ledger, gate: Callable[..., GoldenGate]
) -> None:
    class Shaky(FakeEncoder):
        def finish(self, batch: Any, raw: Any, kinds: Any) -> Any:
            made = super().finish(batch, raw, kinds)
            if len(batch.rows) > 1:
                made["dense"] = Dense(np.roll(made["dense"].values, 1, axis=1))
            return made

    some = Shaky(model("all-miniLM-l6"), "", load_settings(fake_encoders=True))
    with pytest.raises(GoldenMismatch, match="alone than in a batch"):
        gate(some, kinds=("dense",)).enter()
    assert ledger.goldens.get(some.space("dense").fingerprint) is None


def test_every_so_many_batches_an_encoder_is_looked_at(
    ledger: Ledger, gate: Callable[..., GoldenGate]
) -> None:
    some = encoder()
    guarded = gate(some, every=3)
    guarded.enter()
    drift(some)
    for _ in range(2):
        guarded.enter()
        guarded.leave()
    with pytest.raises(GoldenMismatch):
        guarded.leave()
    # Whoever ends a batch after that is told, too, without another look.
    with pytest.raises(GoldenMismatch):
        guarded.leave()
    with pytest.raises(GoldenMismatch):
        guarded.enter()


def test_batches_that_end_during_a_look_wait_for_it(
    ledger: Ledger, gate: Callable[..., GoldenGate], eventually: Callable[..., Any]
) -> None:
    device = threading.Lock()
    some = encoder()
    guarded = GoldenGate(some, KINDS, ledger.goldens, device, 1)
    guarded.enter()
    drift(some)
    caught: list[BaseException] = []

    def end() -> None:
        try:
            guarded.leave()
        except GoldenMismatch as error:
            caught.append(error)

    threads = [threading.Thread(target=end) for _ in range(3)]
    with device:  # the look cannot come to its end
        for thread in threads:
            thread.start()
        eventually(guarded._lock.locked)
        assert caught == []
    for thread in threads:
        thread.join(10)
    assert len(caught) == 3


def test_other_goldens_in_the_ledger_are_seen_before_the_next_batch(
    ledger: Ledger, gate: Callable[..., GoldenGate]
) -> None:
    guarded = gate(encoder(), every=1000)
    guarded.enter()
    others = measure(drifted(), KINDS)
    space = encoder().space("sparse").fingerprint
    ledger.goldens.replace(space, pack_golden(others["sparse"]))
    with pytest.raises(GoldenMismatch, match="sparse space"):
        guarded.enter()


def test_goldens_that_were_lost_are_recorded_again(ledger: Ledger, gate: Callable[..., GoldenGate]) -> None:
    guarded = gate(encoder())
    guarded.enter()
    before = guarded.passed()
    ledger.redis.flushall()
    guarded.enter()
    assert guarded.passed() == before
    assert ledger.goldens.get(encoder().space("dense").fingerprint)


def test_goldens_damaged_on_their_way_are_read_again_and_in_their_place_recorded_anew(
    ledger: Ledger, gate: Callable[..., GoldenGate], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, get = gate(encoder()), ledger.goldens.get
    first.enter()
    whole = [get(space.fingerprint) for space in map(encoder().space, KINDS)]
    damaged = iter([b"damaged"])
    monkeypatch.setattr(ledger.goldens, "get", lambda space: next(damaged, None) or get(space))
    with pytest.raises(GoldenMismatch):
        gate(drifted()).enter()
    assert [get(space.fingerprint) for space in map(encoder().space, KINDS)] == whole

    ledger.goldens.replace(encoder().space("dense").fingerprint, b"nonsense")
    gate(encoder()).enter()
    assert [get(space.fingerprint) for space in map(encoder().space, KINDS)] == whole


def test_a_ledger_that_is_away_says_nothing_against_the_encoder(
    ledger: Ledger, gate: Callable[..., GoldenGate], redis_server: Any
) -> None:
    guarded = gate(encoder())
    guarded.enter()
    redis_server.kill()
    redis_server.wait()
    with pytest.raises(LedgerUnavailable):
        guarded.enter()
    # A look itself needs the ledger, too; still nothing is held against the encoder.
    with pytest.raises(LedgerUnavailable):
        guarded.leave()
