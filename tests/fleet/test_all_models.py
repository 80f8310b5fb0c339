"""Every V5 model in one fleet: small checkpoints of the three large ones and of the reranker, real MiniLM."""

from __future__ import annotations

import ast
import json
import sysconfig
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.chunks import chunk_id
from registry.plan import Ensemble, Plan, make_plan
from registry.settings import Settings, load_settings
from store.base import SparseVector
from tests.checkpoints import bge_m3, jina_code, jina_reranker_v3, jina_v4
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder
from worker.merge import named_vectors
from worker.rerankers.factory import load_reranker

pytestmark = [pytest.mark.fleet, pytest.mark.weights, pytest.mark.slow]

SMALL = {
    "jina-code-embeddings-1.5b": jina_code.build,
    "bge-m3": bge_m3.build,
    "jina-embeddings-v4": jina_v4.build,
    "jina-reranker-v3": jina_reranker_v3.build,
}
#: Smallest cosine of a stored vector with a direct pass; per row where it is stored as float16.
AGREEMENT = {"dense": 0.99999, "sparse": 0.99999, "multi": 0.9999}
#: Two batches; a text has some 160 tokens, and each of them a row of 1024 numbers to be read back.
CHUNKS = 24
QUERY = "format a help message and wrap its lines"


def plan() -> Plan:
    """All five embedding models, every output, an ensemble and a prefix."""
    return make_plan(
        primary="jina-code-embeddings-1.5b",
        companions=("bge-m3", "jina-embeddings-v4", "qdrant-minilm-onnx", "all-miniLM-l6"),
        outputs={"bge-m3": ("dense", "sparse", "multi"), "jina-embeddings-v4": ("dense", "multi")},
        matryoshka={"jina-code-embeddings-1.5b": (256,)},
        ensemble=Ensemble(),
        fake=True,
    )


def functions() -> dict[str, str]:
    """Functions of the standard library's argparse, short enough for every small checkpoint."""
    source = (Path(sysconfig.get_paths()["stdlib"]) / "argparse.py").read_text()
    found = {}
    for node in ast.walk(ast.parse(source)):
        text = ast.get_source_segment(source, node) if isinstance(node, ast.FunctionDef) else None
        if text and 80 < len(text) < 500:
            found[f"{node.name}:{node.lineno}"] = text
    return dict(list(found.items())[:CHUNKS])


def direct(settings: Settings, texts: list[str], side: Any) -> list[dict[str, Any]]:
    """Each text alone through each model, and the derived vectors of that, by name."""
    wanted = plan()
    names = [vector.name for vector in wanted.vectors()]
    lock = threading.Lock()
    parts: list[dict[str, Any]] = [{} for _ in texts]
    for model in wanted.models:
        encoder = load_encoder(model, "", settings, wanted.kinds(model))
        for row, text in enumerate(texts):
            parts[row][model] = encode(encoder, [text], side, wanted.kinds(model), device_lock=lock)
        encoder.close()
    return [named_vectors(wanted, names, part, 0) for part in parts]


def agreement(stored: Any, wanted: Any) -> float:
    """The cosine of two vectors; the worst row's for multi-vectors."""
    if isinstance(wanted, SparseVector):
        mine = dict(zip(stored["indices"], stored["values"], strict=True))
        theirs = dict(zip(wanted.indices.tolist(), wanted.values.tolist(), strict=True))
        dot = sum(weight * mine.get(token, 0.0) for token, weight in theirs.items())
        norms = np.linalg.norm([*mine.values()]) * np.linalg.norm([*theirs.values()])
        return float(dot / norms)
    a, b = np.atleast_2d(np.array(stored, np.float32)), np.atleast_2d(wanted)
    if a.shape != b.shape:
        return -1.0
    return float((np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))).min())


@pytest.fixture
def fleet(make_fleet: Callable[..., Any], tmp_path: Path) -> Any:
    paths = {name: str(build(tmp_path / name)) for name, build in SMALL.items()}
    made = make_fleet(fake_weights="true", weights=json.dumps(paths), threads=1, batch_chunks=16)
    made.ok("up", "--plan", plan().model_dump_json(), "--rerank", timeout=300)
    return made


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_model_fills_and_searches_one_collection(fleet: Any, tmp_path: Path) -> None:
    rows = functions()
    path = tmp_path / "functions.jsonl"
    path.write_text("".join(json.dumps({"id": key, "text": text}) + "\n" for key, text in rows.items()))
    end = fleet.ok("submit", str(path), "-c", "all", timeout=300)
    assert (end["done"], end["dead"], end["truncated"]) == (CHUNKS, 0, 0)

    # Every point has every vector, and each is a direct pass'.
    weights = json.loads(fleet.environment["V5_WEIGHTS"])
    settings = load_settings(data_dir=fleet.data_dir, fake_weights=True, weights=weights, device="cpu")
    points = {p["id"]: p for p in fleet.ok("get", *rows, "-c", "all", "--vectors")}
    wanted = direct(settings, list(rows.values()), "document")
    names = {vector.name: vector.kind for vector in plan().vectors()}
    worst = dict.fromkeys(names, 1.0)
    for row, key in enumerate(rows):
        stored = points[chunk_id(key)]["vectors"]
        assert stored.keys() == names.keys()
        for name, vector in wanted[row].items():
            worst[name] = min(worst[name], agreement(stored[name], vector))
    for name, cosine in worst.items():
        print(f"{name}: worst cosine {cosine:.7f} (at least {AGREEMENT[names[name]]})")
    assert all(worst[name] >= AGREEMENT[kind] for name, kind in names.items()), worst
    # It can fail: no vector is its neighbour's.
    for name in names:
        other = points[chunk_id(list(rows)[1])]["vectors"][name]
        assert agreement(other, wanted[0][name]) < AGREEMENT[names[name]], name

    # A search over each vector finds a text by itself, and ranks as the vectors say.
    (query,) = direct(settings, [QUERY], "query")
    order = list(rows)
    for name, kind in names.items():
        hits = fleet.ok("search", QUERY, "-c", "all", "--using", name, "-n", str(CHUNKS))
        scores = {chunk_id(order[i]): similarity(query[name], wanted[i][name], kind) for i in range(CHUNKS)}
        assert [hit["score"] for hit in hits] == pytest.approx(
            [scores[hit["id"]] for hit in hits], rel=2e-3, abs=2e-3
        ), name
        found = [scores[hit["id"]] for hit in hits]
        assert found == sorted(found, reverse=True) or np.diff(found).max() < 2e-3, name
    everywhere = fleet.ok("search", QUERY, "-c", "all", "-n", "20")
    assert len(everywhere) == 20

    # The reranker orders them as a direct call does.
    ranking = load_reranker("jina-reranker-v3", settings).rank(QUERY, [hit["text"] for hit in everywhere], 0)
    reranked = fleet.ok("search", QUERY, "-c", "all", "--rerank", "--candidates", "20", "--top", "20")
    assert [hit["first_rank"] - 1 for hit in reranked["hits"]] == list(ranking.order)
    assert [hit["relevance_score"] for hit in reranked["hits"]] == pytest.approx(ranking.scores, abs=1e-4)
    assert list(ranking.order) != sorted(ranking.order)


def similarity(query: Any, document: Any, kind: str) -> float:
    """What Qdrant scores: a dot product of what is normalised, MaxSim summed over the query's rows."""
    if kind == "sparse":
        weights = dict(zip(document.indices.tolist(), document.values.tolist(), strict=True))
        return float(sum(w * weights.get(t, 0.0) for t, w in zip(query.indices, query.values, strict=True)))
    if kind == "multi":
        return float((query @ document.T).max(axis=1).sum())
    return float(query @ document)
