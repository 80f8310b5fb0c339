"""Copies of a text anywhere in a corpus: one pass for each space, however many workers it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import FAKE
from worker.encoders.fake import POISON_NAN

pytestmark = pytest.mark.fleet

MODELS = ("qdrant-minilm-onnx", "all-miniLM-l6")
TEXTS, CHUNKS, MORE = 150, 900, 150
#: No model takes this one.
POISONED = 3


def text(i: int) -> str:
    """Of chunk i: the copies of a text are TEXTS chunks apart, and the order changes each time."""
    n = i * 119 % TEXTS
    return f"text {n} {POISON_NAN}" if n == POISONED else f"text {n} " + "word " * (n % 30)


def taken(end: dict[str, Any]) -> tuple[Counter[str], Counter[str]]:
    """Chunks that went through each model, and those that took the vectors of a copy."""
    passes, copies = Counter[str](), Counter[str]()
    for row in end["workers"]:
        passes[row["model"]] += row["chunks"] - row["cached"]
        copies[row["model"]] += row["cached"]
    return passes, copies


def test_each_text_takes_one_pass_in_a_space_of_two_workers(
    make_fleet: Callable[..., Any], corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    # Passes are slow, so that many originals are under way when their copies are met.
    fleet = make_fleet(**FAKE | {"window_chunks": "64", "fake_seconds": "0.02"})
    fleet.up("--primary", MODELS[0], "--companion", MODELS[1])
    second = fleet.start("worker", MODELS[0], "--name", "second")

    def is_ready() -> bool:
        rows = fleet.ok("ps")["processes"]
        return any((row["name"], row["condition"]) == ("second", "ready") for row in rows)

    try:
        eventually(is_ready)
        end = fleet.ends(3, "submit", str(corpus(CHUNKS, text=text)), "-c", "c")
        dead = CHUNKS // TEXTS
        assert (end["chunks"], end["dead"], end["done"]) == (CHUNKS, dead, CHUNKS - dead)
        passes, copies = taken(end)
        assert passes == dict.fromkeys(MODELS, TEXTS)
        assert copies == dict.fromkeys(MODELS, CHUNKS - TEXTS - (dead - 1))
        # Both workers had their share of it.
        assert len([w for w in end["workers"] if w["model"] == MODELS[0] and not w["cached"]]) == 2
        # What stands already is the original of what is new.
        path = corpus(CHUNKS + MORE, text=text)
        end = fleet.ends(3, "submit", str(path), "-c", "c")
        dead += MORE // TEXTS
        assert (end["skipped"], end["dead"], end["done"]) == (CHUNKS - dead + 1, dead, MORE - 1)
        passes, copies = taken(end)
        assert (passes, copies) == (dict.fromkeys(MODELS, 1), dict.fromkeys(MODELS, MORE - 1))
        found = fleet.ends(1, "verify", str(path), "-c", "c")
        assert (found["present"], found["missing"]) == (CHUNKS + MORE - dead, dead)
    finally:
        second.terminate()
        second.communicate(timeout=30)
