"""What people get wrong: a clear message, an exit code that means it, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fleet


@pytest.fixture
def running(fake_fleet: Any) -> Any:
    fake_fleet.up()
    return fake_fleet


def refused(fleet: Any, code: int, said: str, *arguments: str) -> None:
    done = fleet.v5(*arguments)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def test_commands_that_cannot_be(running: Any, corpus: Callable[..., Path], tmp_path: Path) -> None:
    good = str(corpus(3))
    not_chunks = tmp_path / "data.json"
    not_chunks.write_text('{"a": 1}')
    refused(running, 2, "No such file", "submit", str(tmp_path / "nowhere"), "-c", "c")
    refused(running, 2, "data.json", "submit", str(not_chunks), "-c", "c")
    refused(running, 2, "did you mean 'bge-m3'", "submit", good, "-c", "c", "--primary", "bge-m4")
    refused(running, 2, "use 'bge-m3' instead", "submit", good, "-c", "c", "--primary", "gte-large")
    refused(running, 2, "reranker", "submit", good, "-c", "c", "--primary", "jina-reranker-v3")
    refused(running, 2, "needs --primary", "submit", good, "-c", "c", "--companion", "bge-m3")
    refused(running, 2, "Missing option", "submit", good)
    refused(running, 2, "collection", "submit", good, "-c", "../etc")
    refused(running, 2, "no collection", "search", "x", "-c", "nope")
    refused(running, 2, "empty", "search", "  ", "-c", "nope")
    refused(running, 2, "no job 'nope'", "watch", "nope")
    refused(running, 2, "v5 jobs", "cancel", "nope")
    refused(running, 1, "another plan", "up", "--primary", "all-miniLM-l6")
    refused(running, 2, "unknown model", "worker", "bert")
    assert running.ok("jobs") == []


def test_an_unknown_vector_name_lists_those_there_are(running: Any, corpus: Callable[..., Path]) -> None:
    running.ok("submit", str(corpus(3)), "-c", "c")
    refused(running, 2, "it has qdrant-minilm-onnx, all-miniLM-l6", "search", "x", "-c", "c", "--using", "z")
    refused(running, 2, "not in collection 'c': unheard", "get", "unheard", "-c", "c")


def test_odd_texts_go_through_and_impossible_ones_are_reported(running: Any, tmp_path: Path) -> None:
    rows = [
        {"id": "emoji", "text": "🦜 parrot 🏴‍☠️"},
        {"id": "nul", "text": "a\u0000b"},
        {"id": "chinese", "text": "读取配置文件并返回字典"},
        {"id": "long word", "text": "x" * 50_000},
        {"id": "ten megabytes", "text": "word " * 2_000_000},
        {"id": "empty", "text": ""},
        {"id": "surrogate", "text": "\ud800"},
        {"id": "no text"},
        {"id": "extra", "text": "kept", "metadata": {"deep": [1, {"a": None}]}, "source": "manual", "v5": 1},
    ]
    path = tmp_path / "odd.jsonl"
    path.write_bytes(b"\n".join(json.dumps(row).encode() for row in rows) + b"\n\xff\xfe\n{oops\n")
    end = running.ends(3, "submit", str(path), "-c", "c")
    assert (end["done"], end["dead"]) == (5, 6)
    for identity in ("emoji", "nul", "chinese", "long word"):
        row = next(row for row in rows if row["id"] == identity)
        assert running.ok("get", identity, "-c", "c")["payload"]["text"] == row["text"]
    payload = running.ok("get", "extra", "-c", "c")["payload"]
    assert payload["metadata"]["deep"] == [1, {"a": None}]
    assert payload["source"] == "manual"
    assert isinstance(payload["v5"], dict)
    said = running.v5("dead", end["job"]).stdout
    assert "odd.jsonl:10" in said
    assert "V5_MAX_CHUNK_BYTES" in said


def test_without_a_fleet_every_command_says_what_to_start(
    fake_fleet: Any, corpus: Callable[..., Path]
) -> None:
    path = str(corpus(3))
    for command in (["submit", path, "-c", "c"], ["search", "x", "-c", "c"], ["jobs"], ["ps"]):
        refused(fake_fleet, 1, "v5 up", *command)
    assert fake_fleet.v5("down").stdout == "no fleet was running here\n"
    fake_fleet.environment["V5_REDIS_URL"] = "redis://user:secret@127.0.0.1:1/0"
    done = fake_fleet.v5("jobs")
    assert done.returncode == 1
    assert "cannot be reached" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fleet_whose_weights_are_absent_says_where_it_looked(make_fleet: Callable[..., Any]) -> None:
    fleet = make_fleet()
    done = fleet.v5("up", "--primary", "jina-code-embeddings-1.5b", "--timeout", "60")
    assert done.returncode == 1
    assert "V5_WEIGHTS" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (fleet.data_dir / "fleet.json").exists()


def test_a_data_directory_that_cannot_be_written_is_named(
    make_fleet: Callable[..., Any], tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    fleet = make_fleet(fake_encoders="true")
    fleet.environment["V5_DATA_DIR"] = str(blocked / "data")
    done = fleet.v5("up", "--primary", "all-miniLM-l6")
    assert done.returncode == 1
    assert "V5_DATA_DIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_aggregator_that_is_away_is_named(running: Any, corpus: Callable[..., Path]) -> None:
    """The store cannot be reached: its process is stopped for good."""
    running.ok("submit", str(corpus(3)), "-c", "c")
    running.down()
    running.environment["V5_QDRANT_URL"] = "http://127.0.0.1:1"
    done = running.v5("up", "--primary", "all-miniLM-l6", "--timeout", "12")
    assert done.returncode == 1
    assert "aggregator (" in done.stderr
    assert "Qdrant at http://127.0.0.1:1 is away or busy" in done.stderr
