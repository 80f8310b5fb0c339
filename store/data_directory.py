"""The directory of an embedded store: one process has it, and it must have room."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from registry.errors import StoreUnavailable

#: Writes are refused with less disk free than this. The engine writes through memory maps, for which a full
#: disk is a fatal signal, not an error.
MIN_FREE_BYTES = 256 << 20


class DataDirectory:
    """A directory that this process alone may use until it releases it or dies.

    Raises StoreUnavailable if another has it, or if it cannot be made.
    """

    def __init__(self, path: Path, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        self.path = path.absolute()
        self._min_free_bytes = min_free_bytes
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # The kernel lets go of the lock when the process dies, however it dies.
            self._handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreUnavailable(f"the data directory {self.path} cannot be used: {error}") from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.pread(self._handle, 32, 0).decode(errors="replace") or "unknown"
            os.close(self._handle)
            raise StoreUnavailable(
                f"the data directory {self.path} is in use by process {owner}; an embedded store has one "
                "aggregator: stop that one, or set V5_DATA_DIR to another directory"
            ) from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, str(os.getpid()).encode(), 0)

    def require_room(self, further: int = 0) -> None:
        """Raise StoreUnavailable unless the disk has room for so many bytes, and the reserve."""
        try:
            free = shutil.disk_usage(self.path).free
        except OSError as error:
            raise StoreUnavailable(f"the data directory {self.path} cannot be used: {error}") from error
        needed = self._min_free_bytes + further
        if free < needed:
            raise StoreUnavailable(
                f"the disk under {self.path} has {free >> 20} MiB free and {needed >> 20} MiB are needed; "
                "free some space, and what waits is written"
            )

    def release(self) -> None:
        """Let another process have it."""
        os.close(self._handle)
