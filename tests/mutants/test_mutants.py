"""The list of mutants is not stale, and the tests named in it notice two of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.__main__ import FAILED, run
from tests.mutants.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_list_is_not_stale(mutant: Mutant, tmp_path: Path) -> None:
    copy = tmp_path / mutant.path
    copy.parent.mkdir(parents=True)
    copy.write_text((ROOT / mutant.path).read_text())
    mutant.apply(tmp_path)
    assert copy.read_text() != (ROOT / mutant.path).read_text()


@pytest.mark.parametrize("name", ["what is derived is not normalised again", "a lease keeps nobody out"])
def test_mutants_are_noticed(name: str, tmp_path: Path) -> None:
    (mutant,) = (mutant for mutant in MUTANTS if mutant.name == name)
    done = run(mutant, tmp_path / "copy")
    assert done.returncode == FAILED, done.stdout
