"""The size of micro-batches is found out once: by a device of made-up speed, and by the real one."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from registry.models import model
from registry.settings import Settings, load_settings
from worker.embedder import EmbedWorker
from worker.encoders import fake
from worker.encoders.base import Encoder, MicroBatch
from worker.encoders.budget import FASTEST, FILE
from worker.encoders.factory import load_encoder
from worker.encoders.fake import FakeEncoder
from worker.encoders.learned import GAIN, TURNS
from worker.encoders.probe import MOST_SECONDS, MOST_TIMES, probe

NAME = "qdrant-minilm-onnx"
OWN = fake.BUDGET


class Clocked(FakeEncoder):
    """A pass takes what `cost` says of its padded tokens, by a made-up clock; a shape's first more."""

    now = 1000.0
    cost: Callable[[int], float]
    noise: Iterator[float] = cycle([1.0])
    first: float = 1.5
    passes: list[int]

    def forward(self, batch: MicroBatch) -> Any:
        seconds = self.cost(batch.padded_tokens) * next(self.noise)
        self.now += seconds * (1.0 if batch.padded_tokens in self.passes else self.first)
        self.passes.append(batch.padded_tokens)
        return super().forward(batch)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def made(cost: Callable[[int], float], memory: int = 0, **settings: Any) -> Clocked:
        given = load_settings(data_dir=tmp_path, fake_encoders=True, fake_memory_tokens=memory, **settings)
        encoder = Clocked(model(NAME), "", given)
        encoder.cost, encoder.passes = cost, []
        monkeypatch.setattr("time.perf_counter", lambda: encoder.now)
        return encoder

    return made


def overhead(tokens: float) -> Callable[[int], float]:
    """Each pass takes a while for itself, as much as for so many tokens."""
    return lambda padded: (tokens + padded) * 1e-8


def cache(tokens: int, costs: float = 1.2) -> Callable[[int], float]:
    """What is larger than a cache takes so many times as long for each doubling."""
    return lambda padded: padded * 1e-8 * costs ** max(0.0, math.log2(padded / tokens))


@pytest.mark.parametrize(
    ("cost", "found"),
    [
        # Doubling gains 6, 3.2 and 1.6 %.
        (overhead(OWN / 8), 4 * OWN),
        (overhead(OWN * 100), MOST_TIMES * OWN),
        (overhead(OWN / 100), OWN),
        (cache(OWN), OWN),
        (cache(OWN // 4), OWN // 4),
        (cache(OWN // 4, GAIN - 0.01), OWN),
    ],
)
def test_it_is_doubled_or_halved_for_as_long_as_that_gains(make: Any, cost: Any, found: int) -> None:
    encoder = make(cost)
    probe(encoder, ["dense"])
    assert encoder.budget.tokens == found
    assert encoder.budget.remark == ""


def test_what_was_found_is_remembered_and_not_looked_for_again(make: Any, tmp_path: Path) -> None:
    probe(make(cache(OWN // 2)), ["dense"])
    ((name, tokens),) = json.loads((tmp_path / FILE).read_text()).items()
    assert (name.endswith(FASTEST), tokens) == (True, OWN // 2)
    again = make(cache(OWN // 8))
    probe(again, ["dense"])
    assert (again.budget.tokens, again.budget.remark, again.passes) == (OWN // 2, "", [])


def test_what_did_not_fit_later_is_less_than_what_was_found_and_said(make: Any, tmp_path: Path) -> None:
    encoder = make(overhead(OWN * 100))
    probe(encoder, ["dense"])
    encoder.budget.lower(encoder.budget.tokens)
    again = make(overhead(0))
    assert (encoder.budget.tokens, again.budget.tokens) == (4 * OWN, 4 * OWN)
    assert again.budget.remark == f"out of memory: micro-batches of {4 * OWN} tokens instead of {8 * OWN}"
    assert again.budget.known
    assert len(json.loads((tmp_path / FILE).read_text())) == 2


def test_a_device_that_was_short_of_memory_is_not_tried_anew(make: Any) -> None:
    make(overhead(0)).budget.lower(OWN)
    again = make(overhead(OWN * 100))
    probe(again, ["dense"])
    assert (again.budget.tokens, again.passes) == (OWN // 2, [])


def test_set_by_hand_is_set_by_hand(make: Any, tmp_path: Path) -> None:
    encoder = make(overhead(OWN * 100), micro_batch_tokens=OWN)
    probe(encoder, ["dense"])
    assert (encoder.budget.tokens, encoder.passes) == (OWN, [])
    assert not (tmp_path / FILE).exists()


@pytest.mark.parametrize(("memory", "found"), [(3 * OWN, 2 * OWN), (OWN + 1, OWN), (OWN // 2, OWN // 4)])
def test_no_more_than_fits(make: Any, memory: int, found: int) -> None:
    encoder = make(overhead(OWN * 100), memory=memory)
    probe(encoder, ["dense"])
    assert OWN // 4 <= encoder.budget.tokens <= memory
    assert encoder.budget.tokens >= found
    assert encoder.budget.remark == ""


def test_a_busy_machine_does_not_mislead_it(make: Any) -> None:
    # Each pass takes up to three times as long, at random; the usual size is the best.
    rising = [1 + (i * 7919 % 101) / 50 for i in range(101)]
    encoder = make(cache(OWN, 1.05))
    encoder.noise = cycle(rising)
    probe(encoder, ["dense"])
    assert encoder.budget.tokens == OWN


def test_a_slow_model_is_tried_for_some_seconds_and_remembered_by_nobody(make: Any, tmp_path: Path) -> None:
    encoder = make(lambda padded: padded * 0.02)
    before, encoder.first = encoder.now, 1.0
    probe(encoder, ["dense"])
    assert encoder.now - before <= MOST_SECONDS
    assert encoder.budget.tokens == OWN
    assert not encoder.budget.known
    assert not (tmp_path / FILE).exists()


def test_what_was_found_when_time_was_up_is_kept(make: Any) -> None:
    # The first doubling is tried in all turns, the next is not.
    seconds = MOST_SECONDS / (4 * (TURNS + 2))
    encoder = make(lambda padded: seconds)
    encoder.first = 1.0
    probe(encoder, ["dense"])
    assert encoder.budget.tokens == 2 * OWN


def test_a_worker_with_real_weights_probes_before_it_serves_and_one_with_made_up_ones_does_not(
    ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[Encoder] = []
    monkeypatch.setattr("worker.embedder.probe", lambda encoder, _kinds: probed.append(encoder))
    for made_up in (True, False):
        worker = EmbedWorker(settings, NAME)
        given = settings.model_copy(update={"fake_encoders": made_up})
        monkeypatch.setattr(worker, "settings", given)
        monkeypatch.setattr(
            "worker.embedder.load_encoder", lambda *_, **__: FakeEncoder(model(NAME), "", settings)
        )
        worker.prepare()
        worker.ledger.close()
        assert len(probed) == (0 if made_up else 1)


@pytest.mark.weights
def test_the_real_device_is_no_slower_for_it(
    minilm_snapshot: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = load_settings(device="cpu", data_dir=tmp_path)
    encoder = load_encoder(NAME, "", settings, ["dense"])
    own = encoder.budget.tokens
    probe(encoder, ["dense"])
    # Measured by hand on several CPUs: nothing from 256 to 1024 is worse by more than noise.
    assert own // 4 <= encoder.budget.tokens <= own * 2
    if encoder.budget.known:
        assert f"micro-batches of {encoder.budget.tokens} padded tokens" in caplog.text
        again = load_encoder(NAME, "", settings, ["dense"])
        assert (again.budget.tokens, again.budget.known) == (encoder.budget.tokens, True)
