"""Redis at its maxmemory in the middle of a job: it empties itself and the job ends."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from ledger.server import is_full
from registry.errors import InfrastructureError

pytestmark = pytest.mark.fleet


def test_a_job_larger_than_redis_without_a_budget_fills_it_and_still_ends(
    make_fleet: Callable[..., Any], corpus: Callable[..., Path]
) -> None:
    """The budget that would prevent it is set far too high on purpose."""
    fleet = make_fleet(
        fake_encoders="true", fake_seconds="0.002", ring_seconds="1.5", lease_seconds="4",
        reconcile_seconds="0.2", alive_seconds="3", batch_chunks="32", window_chunks="256",
        redis_maxmemory=8 << 20, inflight_bytes=1 << 30,
    )  # fmt: skip
    fleet.up()
    rng = random.Random(1)
    path = corpus(1500, text=lambda _i: "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(2500)))
    submit = fleet.start("submit", str(path), "-c", "c", "--json")
    ledger = Ledger(fleet.settings())
    was_full = False
    while submit.poll() is None:
        with contextlib.suppress(InfrastructureError):
            was_full = was_full or is_full(ledger.redis)
    out, err = submit.communicate(timeout=10)
    assert submit.returncode == 0, err
    assert was_full, "the test did not fill Redis"
    end = json.loads(out.splitlines()[-1])
    assert (end["chunks"], end["dead"]) == (1500, 0)
    found = fleet.ok("verify", str(path), "-c", "c")
    assert (found["present"], found["missing"], found["stale"]) == (1500, 0, 0)
    assert ledger.reserved() == 0
    assert not ledger.redis.keys("v5:batch:*")
    ledger.close()


def test_the_budget_keeps_a_small_redis_from_filling(
    make_fleet: Callable[..., Any], corpus: Callable[..., Path]
) -> None:
    fleet = make_fleet(
        fake_encoders="true", fake_seconds="0.001", batch_chunks="32", window_chunks="256",
        redis_maxmemory=8 << 20,
    )  # fmt: skip
    fleet.up()
    rng = random.Random(2)
    path = corpus(1500, text=lambda _i: "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(2500)))
    end = fleet.ok("submit", str(path), "-c", "c")
    assert (end["done"], end["dead"]) == (1500, 0)
    ledger = Ledger(fleet.settings())
    peak = int(ledger.redis.info("memory")["used_memory_peak"])
    ledger.close()
    assert peak < 8 << 20
    fleet_log = (fleet.data_dir / "logs" / "fleet.log").read_text()
    assert "died" not in fleet_log
