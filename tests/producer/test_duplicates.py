"""Given ids of a pass: told apart, and not held in memory."""

from __future__ import annotations

import pytest

from producer import duplicates
from producer.duplicates import SeenAt, SeenIds
from registry.chunks import Chunk, chunk_id
from registry.errors import InfrastructureError


def chunk(number: int, text: str = "same") -> Chunk:
    return Chunk(chunk_id(str(number)), text)


@pytest.fixture
def seen():
    seen = SeenIds()
    yield seen
    seen.close()


@pytest.mark.parametrize("text", ["same", "other"])
def test_a_repeated_id_is_told_with_its_first_place(text, monkeypatch):
    # Less than one page a table, so that the answers come from the file.
    monkeypatch.setattr(duplicates, "_CACHE_KIB", 8)
    seen = SeenIds()
    for number in range(5000):
        assert seen.add(chunk(number), f"f{number // 2000}.jsonl", number) is None
    for number in (0, 1999, 2000, 4999):
        known = seen.add(chunk(number, text), "late.jsonl", 1)
        assert known == SeenAt(f"f{number // 2000}.jsonl", number, text == "same")
    seen.close()


@pytest.mark.parametrize("bits", [8, 1 << 12, duplicates._FILTER_BITS])
def test_every_id_is_new_once_however_full_the_filter_is(bits, monkeypatch):
    monkeypatch.setattr(duplicates, "_FILTER_BITS", bits)
    monkeypatch.setattr(duplicates, "_PENDING", 100)
    seen = SeenIds()
    assert all(seen.add(chunk(number), "a.jsonl", number) is None for number in range(950))
    assert all(
        seen.add(chunk(number), "b.jsonl", 0) == SeenAt("a.jsonl", number, True) for number in range(950)
    )
    assert len(seen._pending) < 100
    seen.close()


def test_a_full_disk_is_infrastructure_and_says_what_to_do(seen):
    seen._db.execute("PRAGMA max_page_count = 8")

    def fill() -> None:
        for number in range(5000):
            seen.add(chunk(number), "f.jsonl", number)

    with pytest.raises(InfrastructureError, match="SQLITE_TMPDIR"):
        fill()
