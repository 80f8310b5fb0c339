"""Given ids of a pass over a corpus: which were seen, with which text, and where."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from registry.chunks import Chunk
from registry.errors import InfrastructureError

#: Memory for the table of seen ids; beyond it SQLite spills to an unnamed temporary file, about 50 bytes
#: an id. With it, 10 million ids are still checked at over 50,000 a second. KiB.
_CACHE_KIB = 64 * 1024
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
        place = self._number << _ORDINAL_BITS | ordinal
        row = (key, digest, place)
        if self._db.execute("INSERT OR IGNORE INTO seen VALUES (?, ?, ?)", row).rowcount:
            return None
        known, place = self._db.execute("SELECT hash, place FROM seen WHERE id = ?", (key,)).fetchone()
        number, ordinal = place >> _ORDINAL_BITS, place & ((1 << _ORDINAL_BITS) - 1)
        (path,) = self._db.execute("SELECT path FROM files WHERE number = ?", (number,)).fetchone()
        return SeenAt(path, ordinal, known == digest)

    def close(self) -> None:
        """Drop the tables and their file."""
        self._db.close()
