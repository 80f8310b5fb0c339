"""Measured rates: one per model and device, the newest wins."""

from __future__ import annotations

from ledger.rates import Rate


def test_a_rate_is_kept_per_model_and_device(ledger):
    assert ledger.rates.all() == {}
    slow, fast = Rate(100.0, 1.0, 3.5, 1.0), Rate(90_000.0, 800.0, 3.4, 2.0)
    ledger.rates.note("bge-m3", "cpu", slow)
    ledger.rates.note("bge-m3", "cuda:0", slow)
    ledger.rates.note("bge-m3", "cuda:0", fast)
    assert ledger.rates.all() == {("bge-m3", "cpu"): slow, ("bge-m3", "cuda:0"): fast}
