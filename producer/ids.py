"""A set of chunk ids that may be larger than memory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from uuid import UUID

from registry.errors import InfrastructureError

#: Memory for the ids; beyond it SQLite spills to an unnamed temporary file, about 25 bytes an id. KiB.
_CACHE_KIB = 64 * 1024
#: Ids looked up by one statement; SQLite binds 32,766 values at most.
_AT_ONCE = 5000


class Ids:
    """Ids as 16 bytes each, in a private temporary database: memory is bounded whatever their number."""

    def __init__(self) -> None:
        # Filled by one thread and asked by another, never by two at once.
        self._db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._db.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
        # The table dies with the process; nothing in it is worth a journal.
        self._db.execute("PRAGMA journal_mode = OFF")
        self._db.execute("CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID")
        self._db.execute("BEGIN")

    def add(self, ids: Iterable[str]) -> None:
        """Add ids. Raises InfrastructureError if the temporary file cannot be written."""
        try:
            self._db.executemany("INSERT OR IGNORE INTO ids VALUES (?)", ((_key(one),) for one in ids))
        except sqlite3.Error as error:
            raise InfrastructureError(
                f"the table of ids cannot be written: {error}; free space for temporary files, or name "
                "another place for them in SQLITE_TMPDIR"
            ) from None

    def among(self, ids: Iterable[str]) -> set[str]:
        """Those of the ids that were added."""
        wanted = {_key(one): one for one in ids}
        keys = list(wanted)
        found: set[str] = set()
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._db.execute(f"SELECT id FROM ids WHERE id IN ({marks})", some)  # noqa: S608
            found.update(wanted[row[0]] for row in rows)
        return found

    def clear(self) -> None:
        """Forget all."""
        self._db.execute("DELETE FROM ids")

    def __contains__(self, identity: str) -> bool:
        return bool(self.among([identity]))

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM ids").fetchone()[0])

    def close(self) -> None:
        """Drop the table and its file."""
        self._db.close()


def _key(identity: str) -> bytes:
    return UUID(identity).bytes
