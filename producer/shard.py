"""A shard: the part of a corpus that one of several producers submits."""

from __future__ import annotations

import re
from dataclasses import dataclass
from uuid import UUID

from producer.problem import Problem
from registry.chunks import Chunk, chunk_id
from registry.errors import UsageError

_WRITTEN = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclass(frozen=True)
class Shard:
    """Shard `number` (from 1) of `count`. Every chunk, and every problem, belongs to exactly one."""

    number: int
    count: int

    @classmethod
    def read(cls, written: str) -> Shard:
        """Read `2/4`. Raises UsageError."""
        found = _WRITTEN.fullmatch(written)
        number, count = (int(part) for part in found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise UsageError(f"{written!r} is no shard: write 1/4 to 4/4 for the four parts of a corpus")
        return cls(number, count)

    def __str__(self) -> str:
        return f"shard {self.number}/{self.count}"

    def has(self, item: Chunk | Problem) -> bool:
        """Whether the item is of this shard, by its id: an id is a hash, so that shards are even."""
        identity = item.id if isinstance(item, Chunk) else item.id or chunk_id(item.where)
        return UUID(identity).int % self.count == self.number - 1
