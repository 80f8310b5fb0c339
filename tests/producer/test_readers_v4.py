"""The chunk files of the V4 pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from producer.readers import v4
from registry.chunks import chunk_id
from registry.errors import CorpusError


def entry(text: str, **metadata: Any) -> dict[str, Any]:
    return {"text": text, "metadata": metadata, "advanced_scores": {"overall": 0.5}}


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_metadata_and_scores_become_the_payload(tmp_path, read):
    metadata = {
        "chunk_id": "doc:3", "source_file": "docs/a.py", "start_line": 4, "sparse_features": {"t": [1]},
    }  # fmt: skip
    write(tmp_path / "Chunked/Docs/x/a_chunks.json", [{**entry("body", **metadata), "more": 1}])
    write(tmp_path / "Chunked/Docs/x/a_processing_summary.json", {"chunks": 1})
    found = read(tmp_path / "Chunked")
    [chunk] = found.chunks
    assert chunk.id == chunk_id("doc:3")
    assert chunk.payload == {
        "path": "docs/a.py",
        "start_line": 4,
        "language": "python",
        "metadata": metadata,
        "advanced_scores": {"overall": 0.5},
        "more": 1,
    }
    assert [p.where for p in found.skipped] == ["Chunked/Docs/x/a_processing_summary.json"]


def test_without_chunk_id_path_and_ordinal_name_a_chunk(tmp_path, read):
    file = write(tmp_path / "a_chunks.json", [entry("x", chunk_id=""), 5, entry("y")])
    found = read(file)
    assert [c.id for c in found.chunks] == [chunk_id(None, "a_chunks.json", n) for n in (0, 2)]
    assert [p.where for p in found.rejected] == ["a_chunks.json[1]"]


def test_min_tokens_drops_small_and_uncounted_chunks_and_counts_them(tmp_path, read):
    chunks = [entry("a", token_count=49), entry("b", token_count=50), entry("c")]
    file = write(tmp_path / "a_chunks.json", chunks)
    assert read(file).texts == ["a", "b", "c"]
    found = read(file, min_tokens=50)
    assert found.texts == ["b"]
    assert [p.where for p in found.skipped] == ["a_chunks.json[0]", "a_chunks.json[2]"]


@pytest.mark.parametrize("content", ["{}", '[{"name": 1}]', "[1, 2]", '[{"text": "a"}', "", "[" * 100_000])
def test_json_that_is_not_chunks(tmp_path, read, content):
    file = tmp_path / "folder" / "a_chunks.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(CorpusError, match=r"a_chunks\.json"):
        read(file)
    write(file.parent / "b_chunks.json", [entry("fine")])
    found = read(file.parent)
    assert found.texts == ["fine"]
    assert [p.where for p in found.rejected] == ["folder/a_chunks.json"]


def test_a_file_too_big_to_parse_says_what_to_do(tmp_path, read, monkeypatch):
    monkeypatch.setattr(v4, "MAX_V4_BYTES", 100)
    write(tmp_path / "f/a_chunks.json", [entry("x" * 100)])
    (tmp_path / "f/b.txt").write_text("b")
    [problem] = read(tmp_path / "f").rejected
    assert "JSON Lines" in problem.reason


def test_one_id_with_two_texts_is_rejected_and_both_places_named(tmp_path, read):
    write(tmp_path / "f/a_chunks.json", [entry("x"), entry("one", chunk_id="k")])
    write(tmp_path / "f/b_chunks.json", [entry("one", chunk_id="k"), entry("two", chunk_id="k")])
    (tmp_path / "f/c.jsonl").write_text('{"id": "k", "text": "three"}\n')
    found = read(tmp_path / "f")
    assert found.texts == ["x", "one"]
    [repeated] = found.skipped
    assert repeated.where == "f/b_chunks.json[0]"
    assert "f/a_chunks.json[1]" in repeated.reason
    assert [p.where for p in found.rejected] == ["f/b_chunks.json[1]", "f/c.jsonl:1"]
    assert all("f/a_chunks.json[1]" in p.reason for p in found.rejected)
    assert found.rejected[0].id == chunk_id("k")
