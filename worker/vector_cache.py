"""Texts that need no forward pass: equal ones of a batch, and those whose vectors are still at hand."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from registry.codecs import Dense, Multi, Part, Sparse, Vectors
from registry.models import OutputKind

#: What an entry takes beside its arrays, and an array beside its values: key, objects, their places. Bytes.
ENTRY_BYTES, ARRAY_BYTES = 288, 224


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one text."""

    #: Per output, in the order of the part's: values, of a sparse vector indices and values.
    arrays: tuple[tuple[npt.NDArray[Any], ...], ...]
    tokens_seen: int
    tokens_kept: int
    #: Windows that it took, and rows that were cut off its multi-vector; 0 for none.
    windows: int
    rows_cut: int

    @property
    def size(self) -> int:
        """Bytes of memory, where it owns its arrays."""
        return ENTRY_BYTES + sum(ARRAY_BYTES + array.nbytes for each in self.arrays for array in each)

    def owned(self) -> Row:
        """The same, holding no other text's vectors in memory."""
        return replace(self, arrays=tuple(tuple(array.copy() for array in each) for each in self.arrays))


@dataclass(frozen=True)
class Encoded:
    """A batch's part, and which of its texts took a pass."""

    part: Part
    #: The texts that went through the encoder, and what came of them.
    fresh: Sequence[str]
    fresh_part: Part


class VectorCache:
    """The vectors of the texts embedded last, by content; any thread may call it.

    It serves one encoder. Two threads that meet a new text at once both embed it.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: bytes of memory, at most; 0 keeps nothing."""
        self._limit = limit
        self._rows: OrderedDict[bytes, Row] = OrderedDict()
        self._lock = threading.Lock()
        #: Bytes of memory that its entries take.
        self.size = 0

    def encode(
        self,
        texts: Sequence[str],
        kinds: Sequence[OutputKind],
        goldens: Mapping[str, str],
        through: Callable[[Sequence[str]], Part],
    ) -> Encoded:
        """The part of `texts`, for which `through` embeds those that stand neither here nor twice.

        A rejected text rejects all its equals, and is not kept. The notes' `cached` has how many texts took
        no pass. `goldens` are the checksums of the golden vectors that the encoder was held against: what
        was made under others is not used. Raises what `through` raises.
        """
        made_by = hashlib.blake2b(repr((tuple(kinds), sorted(goldens.items()))).encode(), digest_size=16)
        keys = [_key(text, made_by.digest()) for text in texts]
        rows = self._get(keys)
        fresh = {key: text for key, text in zip(keys, texts, strict=True) if key not in rows}
        part = through(list(fresh.values()))
        for i, key in enumerate(fresh):
            rows[key] = _row(part, i)
        self._put({key: rows[key] for i, key in enumerate(fresh) if i not in part.rejected})
        if len(fresh) == len(texts):
            whole = replace(part, notes={**part.notes, "cached": 0})
        else:
            refused = {key: part.rejected[i] for i, key in enumerate(fresh) if i in part.rejected}
            whole = _spread(part, [rows[key] for key in keys], len(texts) - len(fresh))
            whole = replace(whole, rejected={i: refused[key] for i, key in enumerate(keys) if key in refused})
        return Encoded(whole, list(fresh.values()), part)

    def _get(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        with self._lock:
            found = {key: row for key in keys if (row := self._rows.get(key)) is not None}
            for key in found:
                self._rows.move_to_end(key)
        return found

    def _put(self, rows: Mapping[bytes, Row]) -> None:
        for key, row in rows.items():
            if row.size > self._limit:
                continue
            mine = row.owned()
            with self._lock:
                if (former := self._rows.pop(key, None)) is not None:
                    self.size -= former.size
                self._rows[key] = mine
                self.size += mine.size
                while self.size > self._limit:
                    self.size -= self._rows.popitem(last=False)[1].size


def _key(text: str, made_by: bytes) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16, key=made_by).digest()


def _row(part: Part, i: int) -> Row:
    """Text `i` of a part; its arrays are the part's."""
    return Row(
        tuple(_arrays(vectors, i) for vectors in part.vectors.values()),
        int(part.tokens_seen[i]),
        int(part.tokens_kept[i]),
        part.notes.get("windows", {}).get(str(i), 0),
        part.notes.get("rows_cut", {}).get(str(i), 0),
    )


def _arrays(vectors: Vectors, i: int) -> tuple[npt.NDArray[Any], ...]:
    if isinstance(vectors, Dense):
        return (vectors.values[i],)
    return vectors.row(i) if isinstance(vectors, Sparse) else (vectors.row(i),)


def _spread(part: Part, rows: Sequence[Row], cached: int) -> Part:
    """A part of these rows with the outputs and the measurements of another."""
    notes = {**part.notes, "cached": cached}
    for name in ("windows", "rows_cut"):
        if counts := {str(i): getattr(row, name) for i, row in enumerate(rows) if getattr(row, name)}:
            notes[name] = counts
    return Part(
        {
            kind: _stacked(vectors, [row.arrays[place] for row in rows])
            for place, (kind, vectors) in enumerate(part.vectors.items())
        },
        np.array([row.tokens_seen for row in rows], np.int32),
        np.array([row.tokens_kept for row in rows], np.int32),
        notes=notes,
    )


def _stacked(like: Vectors, rows: Sequence[tuple[npt.NDArray[Any], ...]]) -> Vectors:
    """Vectors of these rows, of the sort that `like` is."""
    values = [row[-1] for row in rows]
    if isinstance(like, Dense):
        return Dense(np.stack(values))
    offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
    if isinstance(like, Multi):
        return Multi(np.concatenate(values), offsets)
    return Sparse(np.concatenate([row[0] for row in rows]), np.concatenate(values), offsets)
