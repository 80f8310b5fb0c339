"""`v5 search --rerank` through a running fleet: the reranker's own order, or a clear reason why not."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from registry.settings import load_settings
from worker.rerankers.base import Reranker
from worker.rerankers.factory import load_reranker

pytestmark = pytest.mark.fleet

NAME = "jina-reranker-v3"
WORDS = [
    "river",
    "bridge",
    "winter",
    "bread",
    "engine",
    "planet",
    "signal",
    "harbour",
    "forest",
    "copper",
    "letter",
    "garden",
]
QUERY = "bridge over the copper river"


def text(i: int) -> str:
    """Some of the words, other ones for each chunk."""
    return " ".join(word for k, word in enumerate(WORDS) if (i * 37 + 11) >> (k % 9) & 1) + f" {i}"


def check(fleet: Any, reranker: Reranker, *options: str, block: int = 0, top: int = 20) -> dict[str, Any]:
    """A reranked search is the direct call on the first stage's texts; returns what the command said."""
    first = fleet.ok("search", QUERY, "-c", "c", "-n", "30")
    assert len(first) == 30
    wanted = reranker.rank(QUERY, [hit["text"] for hit in first], block)
    assert list(wanted.order) != list(range(30)), "the reranker changes nothing, so nothing is shown"
    found: dict[str, Any] = fleet.ok(
        "search", QUERY, "-c", "c", "--rerank", "--candidates", "30", "--top", str(top), *options
    )
    assert found["candidates"] == 30
    assert len(found["hits"]) == top
    for rank, hit in enumerate(found["hits"], 1):
        position = wanted.order[rank - 1]
        assert (hit["rank"], hit["first_rank"], hit["id"]) == (rank, position + 1, first[position]["id"])
        assert hit["text"] == first[position]["text"]
        assert hit["score"] == pytest.approx(first[position]["score"])
        assert hit["relevance_score"] == pytest.approx(wanted.scores[rank - 1], abs=1e-6)
    assert tuple(found["reranker"]["blocks"]) == wanted.blocks
    return found


def test_search_gives_the_rerankers_order(fake_fleet: Any, corpus: Callable[..., Path]) -> None:
    fake_fleet.up("--primary", "qdrant-minilm-onnx", "--rerank")
    fake_fleet.ok("submit", str(corpus(60, text=text)), "-c", "c")
    direct = load_reranker(NAME, fake_fleet.settings())
    found = check(fake_fleet, direct)
    assert found["reranker"]["label"] == "jina-reranker-v3@fake-1/block-125"
    found = check(fake_fleet, direct, "--block", "7", block=7, top=5)
    assert found["reranker"]["blocks"] == [7, 7, 7, 7, 2]
    said = fake_fleet.v5("search", QUERY, "-c", "c", "--rerank", "--top", "3")
    assert said.returncode == 0
    assert "60 candidates ordered by jina-reranker-v3@fake-1/block-125 in 1 pass" in said.stdout
    assert "3. " in said.stdout
    assert "4. " not in said.stdout
    rows = {row["name"]: row for row in fake_fleet.ok("ps")["processes"]}
    assert rows["worker-jina-reranker-v3"]["condition"] == "ready"
    assert rows["worker-jina-reranker-v3"]["device"] == "cpu"
    assert "weights of jina-reranker-v3" in {finding["what"] for finding in fake_fleet.ok("doctor")}


def test_what_cannot_be_is_said_at_once(fake_fleet: Any, corpus: Callable[..., Path]) -> None:
    fake_fleet.up("--primary", "qdrant-minilm-onnx")
    fake_fleet.ok("submit", str(corpus(5, text=text)), "-c", "c")
    done = fake_fleet.v5("search", QUERY, "-c", "c", "--rerank", timeout=15)
    assert done.returncode == 1
    assert "v5 worker jina-reranker-v3" in done.stderr
    assert "v5 up --rerank" in done.stderr
    for options, said in (
        (("--top", "3"), "are for --rerank"),
        (("--rerank", "-n", "3"), "--candidates and --top"),
        (("--rerank", "--top", "30", "--candidates", "20"), "30 results cannot be chosen from 20"),
    ):
        done = fake_fleet.v5("search", QUERY, "-c", "c", *options)
        assert done.returncode == 2
        assert said in done.stderr
    done = fake_fleet.v5("up", "--primary", "qdrant-minilm-onnx", "--rerank")
    assert done.returncode == 1
    assert "started without a reranker" in done.stderr
    done = fake_fleet.v5("worker", NAME, "--task", "qa")
    assert done.returncode == 2
    assert "knows no tasks" in done.stderr


def test_a_reranker_killed_in_the_middle_of_a_request_answers_after_its_restart(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    fake_fleet.up("--primary", "qdrant-minilm-onnx")
    fake_fleet.ok("submit", str(corpus(30, text=text)), "-c", "c")
    fake_fleet.ok("down")
    # The reranker takes three seconds for thirty candidates.
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.1", "V5_LOG_LEVEL": "DEBUG"}
    fake_fleet.up("--primary", "qdrant-minilm-onnx", "--rerank")
    ledger = Ledger(fake_fleet.settings())
    search = fake_fleet.start("search", QUERY, "-c", "c", "--rerank", "--candidates", "30", "--json")

    def at_it() -> bool:
        """The request is there, its message taken and not acknowledged."""
        taken = ledger.redis.hvals("v5:mq:unacked")
        return any(b"v5.rerank" in message for message in taken)

    eventually(at_it, what="the reranker has the request")
    pid = fake_fleet.pids()["worker-jina-reranker-v3"]
    os.kill(pid, signal.SIGKILL)
    assert search.poll() is None, "the search was over before the kill"
    out, err = search.communicate(timeout=100)
    assert search.returncode == 0, err
    found = json.loads(out)
    direct = load_reranker(NAME, fake_fleet.settings().model_copy(update={"fake_seconds": 0.0}))
    first = fake_fleet.ok("search", QUERY, "-c", "c", "-n", "30")
    wanted = direct.rank(QUERY, [hit["text"] for hit in first], 0)
    assert [hit["id"] for hit in found["hits"]] == [first[i]["id"] for i in wanted.order[:20]]
    assert fake_fleet.pids()["worker-jina-reranker-v3"] != pid
    ledger.close()


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_true_architecture_serves_through_the_fleet(
    make_fleet: Callable[..., Any], corpus: Callable[..., Path], tmp_path: Path
) -> None:
    """Small weights in the reranker, MiniLM's own in the embedder."""
    from tests.checkpoints import jina_reranker_v3 as recipe

    weights = {NAME: str(recipe.build(tmp_path / "snapshot"))}
    fleet = make_fleet(fake_weights="true", weights=json.dumps(weights), device="cpu")
    fleet.up("--primary", "qdrant-minilm-onnx", "--rerank")
    fleet.ok("submit", str(corpus(30, text=text)), "-c", "c")
    direct = load_reranker(NAME, load_settings(fake_weights=True, weights=weights, device="cpu"))
    found = check(fleet, direct)
    assert found["reranker"]["label"].startswith("jina-reranker-v3@")
    check(fleet, direct, "--block", "8", block=8)
    direct.close()
