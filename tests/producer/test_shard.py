"""Shards: together the whole, and none of it twice."""

from __future__ import annotations

import pytest

from producer.problem import Problem
from producer.shard import Shard
from registry.chunks import Chunk, chunk_id
from registry.errors import UsageError


def test_every_item_is_of_exactly_one_shard_and_shards_are_even() -> None:
    shards = [Shard.read(f"{i}/4") for i in (1, 2, 3, 4)]
    items = [Chunk(chunk_id(str(i)), "text") for i in range(4000)]
    items += [Problem(f"a.jsonl:{i}", "broken") for i in range(1000)]
    items += [Problem("b", "broken", id=chunk_id("b"))]
    counts = [0] * 4
    for item in items:
        (owner,) = (i for i, shard in enumerate(shards) if shard.has(item))
        counts[owner] += 1
    assert sum(counts) == len(items)
    assert all(1100 < count < 1400 for count in counts)


@pytest.mark.parametrize("written", ["0/4", "5/4", "1/0", "1", "a/b", "1/4/2", "-1/4", ""])
def test_what_is_no_shard_is_refused(written: str) -> None:
    with pytest.raises(UsageError, match="is no shard"):
        Shard.read(written)


def test_the_whole_is_one_shard() -> None:
    assert Shard.read("1/1").has(Chunk(chunk_id("x"), "text"))
    assert str(Shard.read("1/1")) == "shard 1/1"
