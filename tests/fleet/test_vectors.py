"""What stands in the store is what a direct forward pass gives, for both real models and odd texts."""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.chunks import chunk_id
from registry.models import model
from registry.settings import Settings, load_settings
from store.points import tokens_of
from worker.weights import locate

pytestmark = [pytest.mark.fleet, pytest.mark.weights]

#: Smallest cosine between a stored vector and a direct pass, fp32.
AGREEMENT = 0.9999
MODELS = ("qdrant-minilm-onnx", "all-miniLM-l6")


def texts() -> dict[str, str]:
    """Real source of every length, and what breaks tokenizers."""
    source = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text()
    words = source.split(" ")
    rng = random.Random(3)
    found = {}
    for count in (1, 2, 5, 10, 20, 40, 60, 90, 120, 150, 200, 300, 600):
        for _ in range(3):
            at = rng.randrange(len(words) - count)
            found[f"{count} words from {at}"] = " ".join(words[at : at + count]) or "x"
    found |= {
        "emoji": "🦜 squawks 🏴‍☠️ " * 5,
        "null byte": "before\x00after, and more of it",
        "chinese": "读取配置文件并返回字典，如果文件不存在则抛出异常。" * 3,
        "long word": "x" * 5000,
        "newlines": "def f():\n\n\treturn 1\n",
    }
    return {key: text for key, text in found.items() if text.strip()}


def direct(name: str, rows: list[str]) -> np.ndarray:
    """One text at a time through plain transformers: no batching, padding or packing of ours."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    path = str(locate(model(name), load_settings()).path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    bert = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    found = []
    with torch.inference_mode():
        for text in rows:
            tokens = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")
            states = bert(**tokens).last_hidden_state[0]
            mean = states.mean(dim=0)
            found.append((mean / mean.norm()).numpy())
    return np.stack(found)


@pytest.mark.timeout(400)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_stored_vectors_equal_a_direct_forward_pass(make_fleet: Callable[..., Any], tmp_path: Path) -> None:
    fleet = make_fleet(batch_chunks=16)
    rows = texts()
    path = tmp_path / "odd.jsonl"
    path.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in rows.items()))
    fleet.up()
    end = fleet.ok("submit", str(path), "-c", "real")
    assert (end["done"], end["dead"]) == (len(rows), 0)
    assert end["truncated"] >= 4  # two models, texts over 256 tokens
    points = fleet.ok("get", *rows, "-c", "real", "--vectors")
    by_id = {point["id"]: point for point in points}
    references = {name: direct(name, list(rows.values())) for name in MODELS}
    for i, key in enumerate(rows):
        point = by_id[chunk_id(key)]
        assert set(point["vectors"]) == set(MODELS)
        for name in MODELS:
            stored = np.array(point["vectors"][name], np.float32)
            cosine = float(stored @ references[name][i])
            assert cosine >= AGREEMENT, f"{name}, {key}: {cosine}"
    lengths = [tokens_of(point["payload"], "all-miniLM-l6") for point in points]
    assert any(128 < seen <= 256 for seen, _ in lengths)
    assert any(seen > 256 and kept == 256 for seen, kept in lengths)
    # The check above can fail: a neighbour's vector, or a text cut at 128 tokens, does not pass it.
    assert float(references[MODELS[0]][0] @ references[MODELS[0]][1]) < AGREEMENT
    hits = fleet.ok("search", rows["chinese"], "-c", "real", "-n", "1", "--using", MODELS[0])
    assert hits[0]["id"] == chunk_id("chinese")
    assert hits[0]["score"] == pytest.approx(1.0, abs=1e-4)


def test_the_tokenizers_trap_would_be_seen(settings: Settings) -> None:
    """A pipeline that cuts at 128 tokens gives another vector than one that cuts at 256."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    path = str(locate(model(MODELS[1]), settings).path)
    tokenizer, bert = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    text = next(text for key, text in texts().items() if key.startswith("300 words"))
    vectors = []
    for limit in (128, 256):
        tokens = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
        with torch.inference_mode():
            mean = bert(**tokens).last_hidden_state[0].mean(dim=0)
        vectors.append(mean / mean.norm())
    assert float(vectors[0] @ vectors[1]) < AGREEMENT
