"""`--prune`: exactly what the submitted sources have no more, and nothing when that is not known."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.fleet


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[str, int], Path]:
    def make(name: str, count: int) -> Path:
        root = tmp_path / name
        root.mkdir()
        for i in range(count):
            (root / f"m{i}.py").write_text(f'def f{i}():\n    """Of {name}."""\n    return {i}\n')
        return root

    return make


def points(fleet: Any) -> int:
    seen = fleet.ok("submit", "-c", "c", "--prune", "--dry-run", *fleet.paths)
    return int(seen["points"])


def test_removed_files_lose_their_points_and_other_sources_keep_theirs(
    fake_fleet: Any, tree: Callable[[str, int], Path], corpus: Callable[..., Path]
) -> None:
    src, srcs, notes = tree("src", 12), tree("srcs", 3), corpus(40)
    fake_fleet.paths = [str(src)]
    fake_fleet.up()
    fake_fleet.ok("submit", str(src), str(srcs), str(notes), "-c", "c")
    assert points(fake_fleet) == 55
    for i in range(5):
        (src / f"m{i}.py").unlink()
    assert fake_fleet.ok("submit", str(src), "-c", "c")["pruned"] is None
    asked = fake_fleet.ok("submit", str(src), "-c", "c", "--prune", "--dry-run")
    assert (asked["prunable"], asked["unsourced"]) == (5, 0)
    assert points(fake_fleet) == 55
    done = fake_fleet.ok("submit", str(src), "-c", "c", "--prune")
    assert (done["pruned"], done["done"], done["skipped"]) == (5, 0, 7)
    assert points(fake_fleet) == 50
    for path, count in ((src, 7), (srcs, 3), (notes, 40)):
        assert fake_fleet.ok("verify", str(path), "-c", "c")["present"] == count
    assert fake_fleet.ok("submit", str(src), "-c", "c", "--prune")["pruned"] == 0
    lines = notes.read_text().splitlines()
    notes.write_text("\n".join([*lines[:30], lines[39]]) + "\n")
    said = fake_fleet.v5("submit", str(notes), "-c", "c", "--prune")
    assert "pruned: 9 points" in said.stdout
    assert points(fake_fleet) == 41
    assert fake_fleet.ok("verify", str(notes), "-c", "c")["present"] == 31


def test_a_chunk_that_moved_to_another_file_is_that_files(
    fake_fleet: Any, corpus: Callable[..., Path]
) -> None:
    old, new = corpus(20, "old.jsonl"), corpus(8, "new.jsonl")
    fake_fleet.paths = [str(old)]
    fake_fleet.up()
    fake_fleet.ok("submit", str(old), "-c", "c")
    moved = fake_fleet.ok("submit", str(new), "-c", "c")
    assert moved["done"] == 8
    old.write_text("\n".join(old.read_text().splitlines()[8:15]) + "\n")
    assert fake_fleet.ok("submit", str(old), "-c", "c", "--prune")["pruned"] == 5
    assert fake_fleet.ok("verify", str(new), "-c", "c")["present"] == 8


def test_nothing_is_pruned_when_a_part_of_the_corpus_is_not_known(
    fake_fleet: Any, corpus: Callable[..., Path]
) -> None:
    path = corpus(20)
    fake_fleet.paths = [str(path)]
    fake_fleet.up()
    fake_fleet.ok("submit", str(path), "-c", "c")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:10], "{broken"]) + "\n")
    asked = fake_fleet.ok("submit", str(path), "-c", "c", "--prune", "--dry-run")
    assert "1 files or records could not be read" in asked["hindrance"]
    end = fake_fleet.ends(3, "submit", str(path), "-c", "c", "--prune")
    assert end["pruned"] is None
    assert "nothing was pruned" in end["prune_note"]
    path.write_text("\n".join(lines[:10]) + "\n")
    assert points(fake_fleet) == 20
    poison = json.dumps({"id": "c15", "text": "\u0002POISON:raise"})
    path.write_text("\n".join([*lines[:10], poison]) + "\n")
    # What cannot be embedded is in the corpus all the same: its older point stays.
    assert fake_fleet.ends(3, "submit", str(path), "-c", "c", "--prune")["pruned"] == 9
    assert points(fake_fleet) == 11


def test_what_prune_cannot_tell_apart_is_refused(
    fake_fleet: Any, tree: Callable[[str, int], Path], tmp_path: Path
) -> None:
    src = tree("src", 2)
    fake_fleet.up()
    shards = fake_fleet.v5("submit", str(src), "-c", "c", "--prune", "--shard", "1/2")
    assert (shards.returncode, "whole corpus" in shards.stderr) == (2, True)
    unnamed = fake_fleet.v5("submit", str(src), "--root", str(src), "-c", "c", "--prune")
    assert (unnamed.returncode, "choose a --root above" in unnamed.stderr) == (2, True)
    below = fake_fleet.ok("submit", str(src), "--root", str(tmp_path), "-c", "c", "--prune")
    assert below["pruned"] == 0


def test_an_interrupted_or_paused_submission_prunes_nothing_until_it_ends(
    fake_fleet: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    path = corpus(40)
    fake_fleet.paths = [str(path)]
    fake_fleet.up()
    fake_fleet.ok("submit", str(path), "-c", "c")
    old = path.read_text().splitlines()[:25]
    more = [json.dumps({"id": f"n{i}", "text": f"new {i} " * (1 + i % 9)}) for i in range(600)]
    path.write_text("\n".join([*old, *more]) + "\n")
    fake_fleet.ok("down")
    fake_fleet.environment["V5_FAKE_SECONDS"] = "0.02"
    fake_fleet.up()
    submit = fake_fleet.start("submit", str(path), "-c", "c", "--prune")
    eventually(lambda: fake_fleet.ok("jobs")[0]["done"] > 0 and fake_fleet.ok("jobs")[0]["state"] == "open")
    submit.send_signal(signal.SIGINT)
    _, err = submit.communicate(timeout=30)
    assert submit.returncode == 130, err
    assert "then prunes" in err
    asked = fake_fleet.ok("submit", str(path), "-c", "c", "--prune", "--dry-run")
    assert asked["prunable"] == 15
    bad = [json.dumps({"id": f"p{i}", "text": "\u0002POISON:raise"}) for i in range(3)]
    path.write_text("\n".join([*old, *bad]) + "\n")
    fake_fleet.environment["V5_MAX_DEAD"] = "2"
    paused = fake_fleet.ends(1, "submit", str(path), "-c", "c", "--prune")
    assert (paused["state"], paused["pruned"]) == ("paused", None)
    assert "did not end (paused)" in paused["prune_note"]
    path.write_text("\n".join(old) + "\n")
    done = fake_fleet.ok("submit", str(path), "-c", "c", "--prune")
    assert done["pruned"] >= 15
    assert points(fake_fleet) == 25
