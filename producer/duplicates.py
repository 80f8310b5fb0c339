"""Given ids of a pass over a corpus: which were seen, with which text, and where."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from registry.chunks import Chunk
from registry.errors import InfrastructureError

#: SQLite's memory; beyond it the table lies in an unnamed temporary file, about 50 bytes an id. KiB.
_CACHE_KIB = 2 * 1024
#: Ids that are held until they are written together, in order: random ones, written singly, cost a page each.
_PENDING = 4096
#: Bits of a filter, 2 MiB, that tell most new ids from written ones without a look into the table: 1.3 % of a
#: million ids are looked up in vain, 50 % of ten million. A power of two.
_FILTER_BITS = 1 << 24
#: A place is a file's number and an ordinal in one 64-bit integer.
_ORDINAL_BITS = 32


@dataclass(frozen=True)
class SeenAt:
    """Where an id stands already, and whether with the same text."""

    path: str
    ordinal: int
    same_text: bool


class SeenIds:
    """Ids with their texts' hashes, in a private temporary database: memory does not grow with the corpus.

    Only ids that a corpus brings need it; those made of path and ordinal are unique by construction.
    """

    def __init__(self) -> None:
        # A pass may be consumed by another thread than the one that began it, never by two at once.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        # The tables die with the process; nothing in them is worth a journal.
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE seen (id BLOB PRIMARY KEY, hash INT, place INT) WITHOUT ROWID")
        self._db.execute("CREATE TABLE files (number INTEGER PRIMARY KEY, path TEXT)")
        self._db.execute("BEGIN")
        self._filter = bytearray(_FILTER_BITS // 8)
        self._pending: dict[bytes, tuple[int, int]] = {}
        self._path = ""
        self._number = 0

    def add(self, chunk: Chunk, path: str, ordinal: int) -> SeenAt | None:
        """Note a chunk found at that file and ordinal; where its id was seen before, if it was.

        Raises InfrastructureError if the temporary file cannot be written.
        """
        try:
            return self._add(chunk, path, ordinal)
        except sqlite3.Error as error:
            raise InfrastructureError(
                f"the table of seen ids cannot be written: {error}; free space for temporary files, "
                "or name another place for them in SQLITE_TMPDIR"
            ) from None

    def _add(self, chunk: Chunk, path: str, ordinal: int) -> SeenAt | None:
        if path != self._path:
            self._path, self._number = path, self._number + 1
            self._db.execute("INSERT INTO files VALUES (?, ?)", (self._number, path))
        key = bytes.fromhex(chunk.id.replace("-", ""))
        # 64 bits tell two texts of one id apart; they are not compared across ids.
        digest = int.from_bytes(bytes.fromhex(chunk.content_hash[:16]), signed=True)
        found = self._found(key)
        if found is None:
            self._pending[key] = (digest, self._number << _ORDINAL_BITS | ordinal)
            if len(self._pending) >= _PENDING:
                self._write()
            return None
        known, place = found
        number, ordinal = place >> _ORDINAL_BITS, place & ((1 << _ORDINAL_BITS) - 1)
        (path,) = self._db.execute("SELECT path FROM files WHERE number = ?", (number,)).fetchone()
        return SeenAt(path, ordinal, known == digest)

    def _found(self, key: bytes) -> tuple[int, int] | None:
        """Hash and place of an id that was seen. Notes in the filter that it is seen now."""
        # An id is a hash already, so that its own bits choose two of the filter's.
        bits, maybe = int.from_bytes(key[8:]), True
        for place in (bits % _FILTER_BITS, (bits >> 32) % _FILTER_BITS):
            index, mask = place >> 3, 1 << (place & 7)
            if not self._filter[index] & mask:
                maybe = False
                self._filter[index] |= mask
        if not maybe:
            return None
        return (
            self._pending.get(key)
            or self._db.execute("SELECT hash, place FROM seen WHERE id = ?", (key,)).fetchone()
        )

    def _write(self) -> None:
        rows = ((key, *about) for key, about in sorted(self._pending.items()))
        self._db.executemany("INSERT INTO seen VALUES (?, ?, ?)", rows)
        self._pending.clear()

    def close(self) -> None:
        """Drop the tables and their file."""
        self._db.close()
