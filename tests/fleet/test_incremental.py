"""Submitting again: nothing twice, exactly what changed, only what a new companion lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fleet

SOURCE = '''"""Module {name}."""

import os


def first_{name}(path):
    """List a folder."""
    return sorted(os.listdir(path))


class Thing_{name}:
    """A thing."""

    def method(self, value):
        return value + {value}
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "src"
    for name in ("a", "b", "c"):
        (root / name).mkdir(parents=True)
        (root / name / f"{name}.py").write_text(SOURCE.format(name=name, value=1))
    return root


def test_twice_stages_nothing_and_one_changed_file_exactly_its_chunks(fake_fleet: Any, tree: Path) -> None:
    fake_fleet.up()
    first = fake_fleet.ok("submit", str(tree), "-c", "code")
    assert first["done"] == first["chunks"] > 3
    assert first["skipped"] == 0
    again = fake_fleet.ok("submit", str(tree), "-c", "code")
    assert (again["done"], again["skipped"], again["chunks"]) == (0, first["chunks"], first["chunks"])
    (tree / "b" / "b.py").write_text(SOURCE.format(name="b", value=2))
    stale = fake_fleet.ends(1, "verify", str(tree), "-c", "code")
    third = fake_fleet.ok("submit", str(tree), "-c", "code")
    assert third["done"] == stale["stale"] == first["chunks"] // 3
    assert third["skipped"] == first["chunks"] - third["done"]
    assert fake_fleet.ok("verify", str(tree), "-c", "code")["present"] == first["chunks"]
    hits = fake_fleet.ok("search", "return value + 2", "-c", "code", "-n", "50")
    assert len(hits) == first["chunks"]
    assert {"id", "score", "path", "start_line", "text"} == set(hits[0])
    texts = "".join(hit["text"] for hit in hits if hit["path"] == "src/b/b.py")
    assert "value + 2" in texts
    assert "value + 1" not in texts


def test_a_companion_added_later_computes_only_its_vectors(fake_fleet: Any, tree: Path) -> None:
    fake_fleet.up("--primary", "qdrant-minilm-onnx", "--companion", "all-miniLM-l6")
    first = fake_fleet.ok("submit", str(tree), "-c", "code", "--primary", "qdrant-minilm-onnx")
    hit = fake_fleet.ok("search", "list a folder", "-c", "code", "-n", "1")[0]
    before = fake_fleet.ok("get", hit["id"], "-c", "code", "--vectors")
    assert set(before["vectors"]) == {"qdrant-minilm-onnx"}
    second = fake_fleet.ok("submit", str(tree), "-c", "code")
    assert second["done"] == first["chunks"]
    after = fake_fleet.ok("get", hit["id"], "-c", "code", "--vectors")
    assert set(after["vectors"]) == {"qdrant-minilm-onnx", "all-miniLM-l6"}
    assert after["vectors"]["qdrant-minilm-onnx"] == before["vectors"]["qdrant-minilm-onnx"]
    assert set(after["payload"]["v5"]["tokens"]) == {"qdrant-minilm-onnx", "all-miniLM-l6"}
    log = (fake_fleet.data_dir / "logs" / "worker-qdrant-minilm-onnx.log").read_text()
    assert "Traceback" not in log
    assert fake_fleet.ok("verify", str(tree), "-c", "code")["missing"] == 0


def test_a_collection_of_another_plan_is_refused_with_both_sides_named(fake_fleet: Any, tree: Path) -> None:
    fake_fleet.up()
    fake_fleet.ok("submit", str(tree), "-c", "code")
    fake_fleet.environment["V5_FAKE_ENCODERS"] = "false"
    done = fake_fleet.v5("submit", str(tree), "-c", "code", "--primary", "qdrant-minilm-onnx")
    assert done.returncode == 1
    assert "fake" in done.stderr
    assert "5f1b8cd78bc4fb444dd171e59b18f3a3af89a079" in done.stderr
    assert "Traceback" not in done.stderr


def test_dead_letters_are_counted_listed_and_change_the_exit_code(
    fake_fleet: Any, corpus: Callable[..., Path]
) -> None:
    fake_fleet.up()
    path = corpus(50)
    lines = path.read_text().splitlines()
    lines[10:10] = ["{broken", '{"id": "empty", "text": "  "}', '{"id": "c3", "text": "another text"}']
    poison = '{"id": "poison", "text": "\\u0002POISON:raise"}'
    path.write_text("\n".join([*lines, poison, '{"id": "nan", "text": "\\u0002POISON:nan"}']) + "\n")
    end = fake_fleet.ends(3, "submit", str(path), "-c", "c")
    assert (end["chunks"], end["done"], end["dead"]) == (55, 50, 5)
    shown = fake_fleet.v5("dead", end["job"])
    assert shown.returncode == 0
    assert "corpus.jsonl:11" in shown.stdout
    assert "empty text" in shown.stdout
    assert "already stands for another text" in shown.stdout
    assert shown.stdout.count("(embed)") == 2
    again = fake_fleet.ends(3, "submit", str(path), "-c", "c")
    assert (again["done"], again["skipped"], again["dead"]) == (0, 50, 5)
