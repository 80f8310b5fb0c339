"""Who had a text first: exact while it is remembered, and never more memory than was set."""

from __future__ import annotations

import random
import sys

from producer.originals import Originals
from registry.chunks import STORED, Chunk, Original, chunk_id


def chunk(n: object, text: str) -> Chunk:
    return Chunk(chunk_id(str(n)), text)


def test_the_first_with_a_text_is_the_original_of_all_others() -> None:
    found = Originals(64)
    first, again, other = chunk(1, "a"), chunk(2, "a"), chunk(3, "b")
    assert found.split([first, other, again]) == ([first, other], [again])
    assert found.of(again) is None
    found.note([first, other], 7)
    found.note([again], 8)
    assert found.of(again) == Original(first.id, 7)
    assert found.split([chunk(4, "b"), chunk(5, "c"), chunk(6, "c")]) == (
        [chunk(5, "c")],
        [chunk(4, "b"), chunk(6, "c")],
    )
    found.note([chunk(5, "c")], STORED)
    assert found.of(chunk(6, "c")) == Original(chunk_id("5"), STORED)
    assert found.of(chunk(6, "d")) is None


def test_it_is_as_large_as_was_set_and_forgets_what_was_met_longest_ago() -> None:
    found, texts = Originals(1024), 1024
    size = sys.getsizeof(found._table)
    assert size < texts * 40
    kept = chunk("kept", "kept")
    found.note([kept], 1)
    for n in range(20 * texts):
        found.note([chunk(n, f"text {n}")], n)
        assert found.of(kept) == Original(kept.id, 1)
        # What it says of a text is that text's.
        for old in random.Random(n).choices(range(n + 1), k=3):
            assert found.of(chunk("x", f"text {old}")) in (None, Original(chunk_id(str(old)), old))
    assert sys.getsizeof(found._table) == size
    known = [n for n in range(20 * texts) if found.of(chunk("x", f"text {n}")) is not None]
    assert texts * 0.9 < len(known) + 1 <= texts
    recent = [n for n in known if n >= 19 * texts]
    assert len(recent) > 0.5 * len(known)
