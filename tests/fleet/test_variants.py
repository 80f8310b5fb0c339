"""A variant and a treatment of too long texts, from the command line to the stored vectors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.chunks import chunk_id
from registry.settings import load_settings

pytestmark = pytest.mark.fleet

NAME = "qdrant-minilm-onnx"
LONG = "def total(rows):\n    return sum(row.price * row.count for row in rows)\n" * 40
TEXTS = {
    "short": "the ship left the harbour at dawn",
    "code": "def add(a, b):\n    return a + b",
    "long": LONG,
}


@pytest.fixture
def texts(tmp_path: Path) -> str:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"id": k, "text": t}) + "\n" for k, t in TEXTS.items()))
    return str(path)


def test_a_text_over_the_limit_is_a_dead_letter_with_its_count(fake_fleet: Any, texts: str) -> None:
    fake_fleet.up("--primary", NAME, "--truncate", "fail")
    end = fake_fleet.ends(3, "submit", texts, "-c", "c")
    assert (end["done"], end["dead"], end["truncated"]) == (2, 1, 0)
    letter = fake_fleet.ok("dead", end["job"])
    assert letter["id"] == chunk_id("long")
    assert f"{len(LONG) // 4 + 2} tokens, and {NAME} takes 256" in letter["reason"]
    # A plan that cuts is not served here, and does not get into this collection.
    done = fake_fleet.v5("submit", texts, "-c", "c", "--primary", NAME)
    assert done.returncode == 1
    assert "pooling: 'mean+fail' ≠ 'mean'" in done.stderr
    done = fake_fleet.v5("search", "x" * 2000, "-c", "c")
    assert done.returncode == 2
    assert "502 tokens" in done.stderr


def test_an_ensemble_that_costs_quality_is_said_before_anything_starts(fake_fleet: Any, texts: str) -> None:
    options = ("--primary", NAME, "--companion", "bge-m3", "--ensemble", "weighted_average")
    done = fake_fleet.v5("up", *options)
    assert done.returncode == 0, done.stderr
    assert "warning: the ensemble cuts the 1024 values of bge-m3 to 384" in done.stderr
    done = fake_fleet.v5("submit", texts, "-c", "c")
    assert done.returncode == 0, done.stderr
    assert "warning: the ensemble cuts the 1024 values of bge-m3 to 384" in done.stderr
    found = fake_fleet.ok("verify", texts, "-c", "c")["numerics"]
    assert {fact["model"] for fact in found["ensemble"]} == {NAME, "bge-m3"}


@pytest.mark.weights
@pytest.mark.timeout(400)
def test_int8_in_windows_is_stored_as_it_is_computed_and_never_beside_float(
    make_fleet: Callable[..., Any], texts: str
) -> None:
    from worker.encoders.encode import encode
    from worker.encoders.factory import load_encoder

    fleet = make_fleet()
    fleet.up("--primary", NAME, "--variant", f"{NAME}=int8", "--truncate", "split-and-pool")
    end = fleet.ok("submit", texts, "-c", "c")
    assert (end["done"], end["dead"], end["truncated"]) == (3, 0, 0)
    assert end["tokens_kept"] == end["tokens_seen"] > 512
    assert end["plan"] == f"{NAME} (384, int8, split-and-pool)"
    settings = load_settings(device="cpu")
    encoder = load_encoder(NAME, "", settings, ["dense"], variant="int8", truncation="split-and-pool")
    part = encode(encoder, list(TEXTS.values()), "document", ["dense"], device_lock=threading.Lock())
    points = {p["id"]: p for p in fleet.ok("get", *TEXTS, "-c", "c", "--vectors")}
    for key, direct in zip(TEXTS, part.vectors["dense"].values, strict=True):
        stored = np.array(points[chunk_id(key)]["vectors"][NAME], np.float32)
        assert float(stored @ direct) >= 0.9999, key
    assert points[chunk_id("long")]["payload"]["v5"]["tokens"][NAME] > 512
    verified = fleet.ok("verify", texts, "-c", "c")
    assert verified["numerics"] == {
        NAME: [
            {
                "model": NAME,
                "backend": "onnxruntime",
                "device": "cpu",
                "dtype": "float32",
                "tf32": False,
                "quantization": "int8-dynamic",
            }
        ]
    }
    said = fleet.v5("verify", texts, "-c", "c").stdout
    assert f"{NAME}: {NAME} in float32 int8-dynamic by onnxruntime on cpu" in said
    assert fleet.ok("search", TEXTS["short"], "-c", "c", "-n", "1")[0]["id"] == chunk_id("short")
    refused = fleet.v5("submit", texts, "-c", "c", "--primary", NAME, "--truncate", "split-and-pool")
    assert refused.returncode == 1
    assert "+int8-dynamic' ≠ '" in refused.stderr
    waiting = fleet.v5("submit", texts, "-c", "d", "--primary", NAME, "--dry-run")
    assert waiting.returncode == 0, waiting.stderr
