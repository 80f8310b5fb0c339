"""Plain files: decoding, and what a chunk says of where it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from registry.chunks import chunk_id


def test_payload_and_id(tmp_path, read):
    file = tmp_path / "a.py"
    file.write_text(f"import os\n# {'-' * 100}\n\n\nclass A:\n    def f(self):\n        return os\n")
    first, second = read(file).chunks
    assert second.id == chunk_id(None, "a.py", 1)
    assert first.payload["file_hash"] == second.payload["file_hash"]
    rest = {key: value for key, value in second.payload.items() if key != "file_hash"}
    assert rest == {
        "path": "a.py", "start_line": 5, "end_line": 7, "ordinal": 1, "language": "python", "symbol": "A",
    }  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings_with_a_mark_are_read(tmp_path, read, encoding):
    (tmp_path / "a.txt").write_bytes("grün 字".encode(encoding))
    assert read(tmp_path / "a.txt").texts == ["grün 字"]


@pytest.mark.parametrize(
    ("content", "byte"),
    [(b"abc\xffdef", "byte 3"), (b"\xef\xbb\xbfabc\xff", "byte 6"), (b"a\xe9b", "byte 1")],
)
def test_what_is_no_utf8_is_rejected_at_its_byte(tmp_path, read, content, byte):
    (tmp_path / "a.txt").write_bytes(content)
    [problem] = read(tmp_path / "a.txt").rejected
    assert byte in problem.reason


def test_binary_files_are_skipped(tmp_path, read):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.txt").write_text("text")
    (tmp_path / "d/b.png").write_text("text by content, binary by name")
    (tmp_path / "d/core").write_bytes(b"ELF\0\1")
    found = read(tmp_path / "d")
    assert found.paths == ["d/a.txt"]
    assert [(p.where, p.reason) for p in found.skipped] == [
        ("d/b.png", "binary file"),
        ("d/core", "binary file"),
    ]


def test_a_file_without_permission_is_rejected(tmp_path, read, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.txt").write_text("text")
    (tmp_path / "d/b.txt").write_text("text")
    (tmp_path / "d/a.txt").chmod(0)
    opened = os.open

    def refuse(path, *rest, **options):
        # Root, who may run the tests, is refused nothing.
        if os.fspath(path).endswith("a.txt"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    found = read(tmp_path / "d")
    assert found.paths == ["d/b.txt"]
    assert [(p.where, p.reason) for p in found.rejected] == [("d/a.txt", "cannot be read: Permission denied")]


def test_neither_grammars_nor_arrays_are_loaded_before_a_file_is_cut():
    code = (
        "import sys, producer.cli.submit, producer.corpus, producer.submission;"
        "heavy = ('tree_sitter', 'text_splitter', 'numpy');"
        "print([m for m in sys.modules if any(name in m for name in heavy)])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
