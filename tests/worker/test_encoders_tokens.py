"""Packing and device choice, which need no weights."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import pytest

from registry.errors import FleetError, UsageError
from registry.settings import load_settings
from worker.encoders.device import choose_device, thread_count
from worker.encoders.tokens import pack


def test_packing_keeps_the_budget_and_every_row_once() -> None:
    lengths = np.random.default_rng(3).integers(1, 300, 500).astype(np.int32)
    batches = pack(lengths, 256)
    assert sorted(row for rows in batches for row in rows) == list(range(500))
    for rows in batches:
        assert len(rows) == 1 or len(rows) * lengths[list(rows)].max() <= 256
    firsts = [lengths[rows[0]] for rows in batches]
    assert firsts == sorted(firsts, reverse=True)
    assert pack(np.zeros(0, np.int32), 256) == []


def test_a_device_asked_for_and_missing_is_an_error_and_an_unasked_fallback_is_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert choose_device(load_settings(device="cpu"), 4, "").name == "cpu"
    assert choose_device(load_settings(device="cuda:1"), 2, "").index == 1
    assert choose_device(load_settings(), 2, "").name == "cuda:0"
    with pytest.raises(FleetError, match="cuda:2"):
        choose_device(load_settings(device="cuda:2"), 2, "")
    with pytest.raises(UsageError, match="V5_DEVICE"):
        choose_device(load_settings(device="gpu"), 2, "")
    found = choose_device(load_settings(), 0, "none found")
    assert found.kind == "cpu"
    assert "none found" in found.fallback
    assert "none found" in caplog.text


def test_threads_are_as_set_else_the_cores() -> None:
    assert thread_count(load_settings(threads=3)) == 3
    assert thread_count(load_settings()) >= 1


def test_two_runtimes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    from worker.encoders.onnx import refuse_two_runtimes

    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    with pytest.raises(FleetError, match="overwrite each other"):
        refuse_two_runtimes()
