"""Which chunk of a corpus had a text first: its copies take that one's vectors."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from uuid import UUID

from registry.chunks import Chunk, Original

#: 64 bits of a text's hash, its chunk's id, the number of that chunk's batch. Whoever copies the vectors
#: compares the whole hashes.
_ENTRY = struct.Struct("<8s16si")
#: Texts that are remembered, at most: 28 MiB. One that was forgotten is embedded again.
TEXTS = 1 << 20
#: Texts that share a place by their hash; of these, the one met longest ago is forgotten.
_WAYS = 8
_PLACE = _WAYS * _ENTRY.size


class Originals:
    """The texts met last and who had them first, in a fixed amount of memory."""

    def __init__(self, texts: int = TEXTS) -> None:
        """`texts`: how many are remembered, at most."""
        self._places = texts // _WAYS
        self._table = bytearray(self._places * _PLACE)

    def note(self, chunks: Iterable[Chunk], batch: int) -> None:
        """These were staged in that batch, or are STORED; of equal texts, the first stays the original."""
        for chunk in chunks:
            if self.of(chunk) is None:
                key, at = self._place(chunk)
                entry = _ENTRY.pack(key, bytes.fromhex(chunk.id.replace("-", "")), batch)
                self._table[at : at + _PLACE] = entry + self._table[at : at + _PLACE - _ENTRY.size]

    def of(self, chunk: Chunk) -> Original | None:
        """Who had its text first; None if that is not known. It is the one met last of its place then."""
        key, at = self._place(chunk)
        place = bytes(self._table[at : at + _PLACE])
        for start in range(0, _PLACE, _ENTRY.size):
            if place.startswith(key, start):
                end = start + _ENTRY.size
                self._table[at : at + end] = place[start:end] + place[:start]
                _, id_, batch = _ENTRY.unpack_from(place, start)
                return Original(str(UUID(bytes=id_)), batch)
        return None

    def split(self, chunks: Iterable[Chunk]) -> tuple[list[Chunk], list[Chunk]]:
        """Those whose text is met for the first time, and the copies: of these, or of what was noted."""
        fresh: dict[str, Chunk] = {}
        copies: list[Chunk] = []
        for chunk in chunks:
            if chunk.content_hash in fresh or self.of(chunk) is not None:
                copies.append(chunk)
            else:
                fresh[chunk.content_hash] = chunk
        return list(fresh.values()), copies

    def _place(self, chunk: Chunk) -> tuple[bytes, int]:
        """What tells its text from others of its place, and where in the table that is."""
        digest = bytes.fromhex(chunk.content_hash)
        return digest[:8], int.from_bytes(digest[8:]) % self._places * _PLACE
