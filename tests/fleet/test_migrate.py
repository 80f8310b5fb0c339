"""`--migrate`: a model in another space, where the collection already holds it in one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.chunks import chunk_id
from registry.models import model
from registry.settings import load_settings
from worker.encoders.encode import encode
from worker.encoders.fake import FakeEncoder

pytestmark = pytest.mark.fleet

CODE, MINI = "jina-code-embeddings-1.5b", "all-miniLM-l6"
BOTH = ("--primary", MINI, "--companion", CODE)
QA = ("--task", f"{CODE}=qa")


def rows(fleet: Any, path: Path) -> dict[str, Any]:
    """What stands of a corpus: vectors by text."""
    ids = [chunk_id(json.loads(line)["id"]) for line in path.read_text().splitlines()]
    points = fleet.ok("get", *ids, "-c", "c", "--vectors")
    return {point["payload"]["text"]: point["vectors"] for point in points}


def test_a_model_under_another_task_is_embedded_anew_and_alone(
    fake_fleet: Any, corpus: Callable[..., Path]
) -> None:
    path, others = corpus(60), corpus(10, "others.jsonl", lambda i: f"another {i} " * (i + 1))
    others.write_text(others.read_text().replace('"id": "c', '"id": "o'))
    fake_fleet.up(*BOTH)
    fake_fleet.ok("submit", str(path), str(others), "-c", "c")
    before = rows(fake_fleet, path)
    fake_fleet.ok("down")

    # From now on nobody serves the other model: nothing may need it.
    fake_fleet.up("--primary", CODE, *QA)
    submit = ("submit", str(path), "-c", "c", *BOTH, *QA)
    refused = fake_fleet.v5(*submit)
    assert refused.returncode == 1
    assert "--migrate" in refused.stderr
    told = fake_fleet.ok(*submit, "--migrate", "--dry-run")
    assert (told["points"], [change["name"] for change in told["changes"]]) == (70, [CODE])

    end = fake_fleet.ok(*submit, "--migrate")
    assert (end["done"], end["skipped"], end["dead"], end["lacking"]) == (60, 0, 0, {CODE: 10})
    after = rows(fake_fleet, path)
    encoder = FakeEncoder(model(CODE), "qa", load_settings())
    direct = encode(encoder, list(after), "document", ["dense"], device_lock=threading.Lock())
    for vectors, wanted in zip(after.values(), np.asarray(direct.vectors["dense"].values), strict=True):
        np.testing.assert_allclose(vectors[CODE], wanted, atol=1e-6)
    assert {text: vectors[MINI] for text, vectors in after.items()} == {
        text: vectors[MINI] for text, vectors in before.items()
    }
    assert len(fake_fleet.ok("search", "word", "-c", "c", "--using", CODE, "-n", "100")) == 60

    again = fake_fleet.v5("submit", str(others), "-c", "c", *BOTH, *QA, "--migrate")
    assert again.returncode == 0, again.stderr
    assert "nothing to migrate" in again.stdout
    assert "lack" not in again.stdout
    assert fake_fleet.ok("verify", str(path), str(others), "-c", "c")["present"] == 70
