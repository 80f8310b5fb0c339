"""Walking folders: order, ignore rules, labels."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from registry.errors import CorpusError


def tree(base: Path, *names: str) -> Path:
    for name in names:
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"this is {name}\n")
    return base


def test_what_nobody_wrote_is_left_out_and_counted(tmp_path, read):
    base = tree(
        tmp_path / "p", "a.py", ".git/config", ".env", "node_modules/m.js", "__pycache__/x.txt",
        "build/o.txt", "lib/build/mine.py", "pyproject.toml", "cache/CACHEDIR.TAG", "cache/y.txt",
        "data.json", "x.min.js",
    )  # fmt: skip
    found = read(base)
    assert found.paths == ["p/a.py", "p/lib/build/mine.py", "p/pyproject.toml"]
    assert {p.where.removeprefix("p/") for p in found.skipped} == {
        ".git", ".env", "node_modules", "__pycache__", "build", "cache", "data.json", "x.min.js",
    }  # fmt: skip
    assert not found.rejected


def test_nested_gitignore_files_hold_below_their_folder(tmp_path, read):
    base = tree(tmp_path / "p", "a.log", "keep.log", "s/b.log", "s/c.txt", "t/c.txt", "gen/x.txt", "top.txt")
    (base / ".gitignore").write_text("*.log\n!keep.log\ngen/\n/c.txt\n")
    (base / "s/.gitignore").write_text("c.txt\n!b.log\n")
    assert read(base).paths == ["p/keep.log", "p/s/b.log", "p/t/c.txt", "p/top.txt"]


def test_a_repository_s_rules_hold_in_a_folder_of_it(tmp_path, read):
    tree(tmp_path / "repo", ".git/config", "src/a.py", "src/a.log")
    (tmp_path / "repo/.gitignore").write_text("*.log\n")
    assert read(tmp_path / "repo/src").paths == ["src/a.py"]


def test_a_path_named_explicitly_is_read_whatever_ignores_it(tmp_path, read):
    base = tree(tmp_path / "p", ".git/config", "gen/x.txt", ".hidden/y.txt", "z.log")
    (base / ".gitignore").write_text("gen/\n*.log\n")
    found = read(base / "gen", base / ".hidden", base / "z.log")
    assert found.paths == [".hidden/y.txt", "gen/x.txt", "z.log"]


def test_include_and_exclude(tmp_path, read):
    base = tree(tmp_path / "p", "a.py", "b.md", "s/c.py", "s/d.md", "t/e.py")
    assert read(base, include=["*.py"], exclude=["t/"]).paths == ["p/a.py", "p/s/c.py"]


def test_links_and_special_files_are_skipped(tmp_path, read):
    base = tree(tmp_path / "p", "a.txt", "s/b.txt")
    (base / "s/loop").symlink_to(base)
    (base / "self").symlink_to("self")
    os.mkfifo(base / "pipe")
    found = read(base)
    assert found.paths == ["p/a.txt", "p/s/b.txt"]
    assert {p.where: p.reason for p in found.skipped} == {
        "p/s/loop": "symbolic link",
        "p/self": "symbolic link",
        "p/pipe": "not a regular file",
    }


def test_a_name_that_is_no_utf8_is_rejected(tmp_path, read):
    base = tree(tmp_path / "p", "a.txt")
    try:
        Path(os.fsdecode(os.fsencode(base) + b"/b\xff.txt")).write_text("b")
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    found = read(base)
    assert found.paths == ["p/a.txt"]
    assert [p.where for p in found.rejected] == ["p/b\\xff.txt"]


def test_folders_deeper_than_the_stack(tmp_path, read):
    deep = tmp_path / "p"
    deep.mkdir()
    here = os.getcwd()
    os.chdir(deep)
    try:
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Path("a.txt").write_text("deep")
    finally:
        os.chdir(here)
    try:
        assert read(deep).texts == ["deep"]
    finally:
        # shutil.rmtree, with which temporary folders are removed, is recursive.
        subprocess.run(["rm", "-rf", str(deep)], check=True)


def test_labels_are_the_same_from_everywhere(tmp_path, read, monkeypatch):
    base = tree(tmp_path / "p", "a.py", "s/b.py")
    absolute = read(base).items
    monkeypatch.chdir(base)
    assert read(Path(".")).items == absolute
    monkeypatch.chdir(base / "s")
    assert read(Path("..")).items == absolute
    assert read(base / "s", base / "a.py", root=tmp_path).paths == ["p/a.py", "p/s/b.py"]
    assert read(base, root=base).paths == ["a.py", "s/b.py"]


def test_a_folder_within_another_is_read_once(tmp_path, read):
    base = tree(tmp_path / "p", "a.py", "s/b.py", "s/t/c.py")
    found = read(base, base / "s", base / "a.py", base)
    assert found.paths == ["a.py", "s/b.py", "s/t/c.py"]
    assert len(found.items) == 3


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_one_name_for_two_places_is_refused(tmp_path, read, kind):
    tree(tmp_path, "x/src/a.py", "y/src/a.py")
    paths = [tmp_path / side / "src" / ("a.py" if kind == "file" else "") for side in "xy"]
    with pytest.raises(CorpusError, match="--root"):
        read(*paths)
    assert read(*paths, root=tmp_path).paths == ["x/src/a.py", "y/src/a.py"]


def test_what_cannot_be_read_at_all_is_said_before_anything(tmp_path, read):
    tree(tmp_path, "a.png", "e/b.png", "data.json")
    os.mkfifo(tmp_path / "pipe")
    for name in ("nowhere", "a.png", "e", "data.json", "pipe"):
        with pytest.raises(CorpusError, match=name):
            read(tmp_path / name)
    with pytest.raises(CorpusError, match="looked for"):
        read(tmp_path / "e")
    with pytest.raises(CorpusError, match="within the root"):
        read(tmp_path / "e", root=tmp_path / "nowhere")
