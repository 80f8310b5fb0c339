"""`v5 submit --dry-run`: with a fleet and without one, and nothing is submitted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fleet

PLAN = ("--primary", "qdrant-minilm-onnx", "--companion", "all-miniLM-l6")


def test_without_a_fleet_it_says_all_but_the_time(fake_fleet: Any, corpus: Callable[..., Path]) -> None:
    path = str(corpus(300))
    found = fake_fleet.ok("submit", path, "-c", "c", *PLAN, "--dry-run")
    assert (found["files"], found["chunks"]) == (1, 300)
    assert found["qdrant"]["vectors"]["all-miniLM-l6"]["raw"] == 300 * 384 * 4
    assert found["redis"]["budget_bytes"] == 512 << 20
    assert found["hours"] is None
    assert "no fleet" in found["notes"][0]
    said = fake_fleet.v5("submit", path, "-c", "c", *PLAN, "--dry-run").stdout
    assert "corpus: 1 file, 300 chunks in 19 batches" in said
    assert "not measured yet: run a job with this model first" in said
    assert not fake_fleet.data_dir.joinpath("redis.sock").exists()
    refused = fake_fleet.v5("submit", path, "-c", "c", "--dry-run")
    assert refused.returncode == 2
    assert "needs --primary" in refused.stderr


def test_a_fleet_brings_plan_and_measured_rates(fake_fleet: Any, corpus: Callable[..., Path]) -> None:
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.02"}
    fake_fleet.up()
    path = str(corpus(300))
    before = fake_fleet.ok("submit", path, "-c", "c", "--dry-run")
    assert before["models"]["all-miniLM-l6"]["measured"] is False
    assert fake_fleet.ok("jobs") == []
    end = fake_fleet.ok("submit", path, "-c", "c")
    after = fake_fleet.ok("submit", path, "-c", "c", "--dry-run")
    assert len(fake_fleet.ok("jobs")) == 1
    for name in ("qdrant-minilm-onnx", "all-miniLM-l6"):
        model = after["models"][name]
        assert (model["measured"], model["workers"]) == (True, 1)
        # A fake token is four characters, and two more are special.
        assert 2 < model["bytes_per_token"] < 4
        assert 0 < model["hours"] < 1
        # 20 ms a chunk: no more than 50 chunks a second, of at most 60 tokens.
        assert model["tokens_per_second"] <= 50 * 60
    assert after["models"]["all-miniLM-l6"]["tokens"] == pytest.approx(end["tokens_kept"] / 2, rel=0.15)
    assert after["hours"] == max(model["hours"] for model in after["models"].values())
    assert after["batches"] == before["batches"]
    said = fake_fleet.v5("submit", path, "-c", "c", "--dry-run").stdout
    assert "tokens/s (1 worker now)" in said
    assert "the job: " in said
    fake_fleet.ok("down")
    fake_fleet.up()
    assert "tokens/s (1 worker now)" in fake_fleet.v5("submit", path, "-c", "c", "--dry-run").stdout
    fake_fleet.environment |= {"V5_FAKE_ENCODERS": "false"}
    real = fake_fleet.ok("submit", path, "-c", "c", "--dry-run", "--primary", "all-miniLM-l6")
    assert real["models"]["all-miniLM-l6"]["measured"] is False
