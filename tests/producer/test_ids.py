"""Ids beyond memory's size."""

from __future__ import annotations

import tracemalloc

from producer.ids import Ids
from registry.chunks import chunk_id


def test_ids_are_found_among_others_and_forgotten() -> None:
    ids = Ids()
    known = [chunk_id(str(i)) for i in range(12_000)]
    ids.add(known)
    ids.add(known[:10])
    assert len(ids) == 12_000
    assert ids.among([*known, chunk_id("unknown")]) == set(known)
    assert known[5] in ids
    assert chunk_id("unknown") not in ids
    ids.clear()
    assert len(ids) == 0
    assert ids.among(known) == set()
    ids.close()


def test_pythons_memory_does_not_grow_with_the_ids() -> None:
    ids = Ids()
    tracemalloc.start()
    ids.add(f"{i:032x}" for i in range(100_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(ids) == 100_000
    assert peak < 1 << 20
    ids.close()
