"""JSON Lines: what a record may bring, and what a bad line costs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from producer.readers import jsonl
from registry.chunks import chunk_id
from registry.settings import Settings


def lines(path: Path, *records: Any) -> Path:
    body = b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in records)
    path.write_bytes(body + b"\n")
    return path


def test_a_record_becomes_a_chunk_with_its_payload(tmp_path, read):
    record = {"id": 7, "text": "a\nb", "metadata": {"k": [1]}, "tag": "x", "path": "src/a.py", "v5": 1}
    [chunk] = read(lines(tmp_path / "c.jsonl", record)).chunks
    assert chunk.id == chunk_id("7")
    assert chunk.text == "a\nb"
    assert chunk.payload == {
        "path": "src/a.py",
        "language": "python",
        "tag": "x",
        "metadata": {"k": [1], "v5": 1},
    }


def test_without_id_a_chunk_is_named_by_its_line(tmp_path, read):
    file = lines(tmp_path / "c.jsonl", {"text": "one"}, b"{broken", b"", {"text": "four", "id": ""})
    found = read(file)
    assert [c.id for c in found.chunks] == [chunk_id(None, "c.jsonl", 1), chunk_id(None, "c.jsonl", 4)]
    assert [c.payload["line"] for c in found.chunks] == [1, 4]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "not JSON"),
        (b'["text"]', "not an object"),
        (b'{"text": "\xff"}', "not valid UTF-8: byte 10"),
        (b'{"text": 3}', "text is a number"),
        (b'{"id": 1}', "no text"),
        (b'{"text": ""}', "empty text"),
        (b'{"text": " \\n\\t"}', "empty text"),
        (b'{"text": "a\\ud800"}', "lone surrogate at character 1"),
        (b'{"text": "a", "k": "\\ud800"}', "payload is not valid Unicode"),
        (b'{"text": "a", "id": "\\ud800"}', "id is not valid Unicode"),
        (b'{"text": "a", "id": 1.5}', "the id is neither"),
        (b'{"text": "a", "id": true}', "the id is neither"),
        (b'{"text": "a", "id": "' + b"k" * 1025 + b'"}', "1025 characters"),
        (b'{"text": "a", "metadata": [1]}', "metadata is not an object"),
        (b'{"text": "a", "k": ' + b"[" * 100 + b"]" * 100 + b"}", "nested deeper than 64"),
        (b'{"text": "a", "k": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"text": "a", "k": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"text": "a", "k": "' + b"x" * 300_000 + b'"}', "payload of"),
    ],
)
def test_a_bad_line_costs_that_line_and_is_named(tmp_path, read, line, reason):
    found = read(lines(tmp_path / "c.jsonl", {"text": "before"}, line, {"text": "after"}))
    assert found.texts == ["before", "after"]
    [problem] = found.rejected
    assert problem.where == "c.jsonl:2"
    assert reason in problem.reason


def test_a_text_over_the_limit_is_set_aside_with_the_setting_to_raise(tmp_path, read):
    settings = Settings(_env_file=None, max_chunk_bytes=1024)
    found = read(lines(tmp_path / "c.jsonl", {"text": "é" * 512}, {"text": "é" * 513}), settings=settings)
    assert len(found.chunks) == 1
    [problem] = found.rejected
    assert "1026" in problem.reason
    assert "1024" in problem.reason
    assert "V5_MAX_CHUNK_BYTES" in problem.reason
    assert problem.id == chunk_id(None, "c.jsonl", 2)


def test_a_line_over_the_limit_is_passed_over(tmp_path, read, monkeypatch):
    monkeypatch.setattr(jsonl, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(jsonl, "_STEP", 64)
    full = json.dumps({"text": "x" * 988}).encode()
    assert len(full) == 1000
    long = {"text": "x" * 5000}
    found = read(lines(tmp_path / "c.jsonl", {"text": "a"}, long, full[:-3] + b'"}', {"text": "b"}, long))
    assert [len(text) for text in found.texts] == [1, 987, 1]
    assert [p.where for p in found.rejected] == ["c.jsonl:2", "c.jsonl:5"]


@pytest.mark.parametrize(
    ("number", "held"),
    [
        ("NaN", None),
        ("-Infinity", None),
        ("1e999", None),
        ("[1e999]", [None]),
        ("18446744073709551616", "18446744073709551616"),
        ("-9223372036854775808", -9223372036854775808),
        ("9223372036854775808", "9223372036854775808"),
        ("1.5", 1.5),
        ("true", True),
    ],
)
def test_numbers_that_the_store_cannot_hold_are_made_to_fit(tmp_path, read, number, held):
    [chunk] = read(lines(tmp_path / "c.jsonl", b'{"text": "a", "n": %s}' % number.encode())).chunks
    assert chunk.payload["n"] == held
    assert type(chunk.payload["n"]) is type(held)


def test_nul_a_byte_order_mark_and_crlf_pass(tmp_path, read):
    file = tmp_path / "c.ndjson"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a\\u0000b"}\r\n{"text": "c"}')
    assert read(file).texts == ["a\0b", "c"]


def test_utf16_is_one_problem_not_one_per_line(tmp_path, read):
    file = tmp_path / "c.jsonl"
    file.write_bytes("\n".join(['{"text": "a"}'] * 50).encode("utf-16"))
    [problem] = read(file).rejected
    assert "UTF-16" in problem.reason


def test_gzip_is_read_and_a_damaged_one_reported(tmp_path, read):
    body = b"".join(json.dumps({"text": f"text {i} {i * 7919}"}).encode() + b"\n" for i in range(5000))
    whole, cut = tmp_path / "c.jsonl.gz", tmp_path / "d.jsonl.gz"
    whole.write_bytes(gzip.compress(body))
    cut.write_bytes(gzip.compress(body)[:-2000])
    assert len(read(whole).chunks) == 5000
    found = read(cut)
    assert 0 < len(found.chunks) < 5000
    assert "damaged from here on" in found.rejected[-1].reason


def test_a_path_that_is_no_text_moves_to_the_metadata(tmp_path, read):
    [chunk] = read(lines(tmp_path / "c.jsonl", {"text": "a", "path": 5})).chunks
    assert chunk.payload == {"path": "c.jsonl", "line": 1, "metadata": {"path": 5}}
