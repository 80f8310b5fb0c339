"""A pipe: it can be read once, a corpus is read several times; so what came stands in a spool file."""

from __future__ import annotations

import io
import os
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from producer.readers.file import CorpusFile
from registry.errors import CorpusError, InfrastructureError

#: Most bytes taken from the pipe at once.
_STEP = 1 << 20


class Pipe:
    """A stream that is copied to disk as it is read; `open` reads it from its beginning, any number of times.

    Nothing is read ahead of who asks, so a writer that is too fast waits. The spool has no name: it is gone
    with the process, however that ends. It stands in the data directory, not among the temporary files, for
    those are often memory.
    """

    def __init__(self, stream: BinaryIO, folder: Path) -> None:
        """Raises InfrastructureError if no file can be made in the folder."""
        self._stream = cast("io.BufferedReader", stream)
        self._folder = folder
        self._ended = False
        self.size = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Closed with the last reference: a corpus has no moment at which it ends.
            spool = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise InfrastructureError(
                f"the pipe cannot be spooled to {folder}: {error}; set V5_DATA_DIR"
            ) from error
        self._spool = spool.fileno()
        weakref.finalize(self, spool.close)

    def open(self) -> io.BufferedReader:
        """The whole stream: first what is spooled, then what still comes."""
        return io.BufferedReader(_Replay(self))

    def begins(self, length: int) -> bytes:
        """The first bytes, fewer only if there are no more. Waits for them."""
        while self.size < length and self._fetch():
            pass
        return os.pread(self._spool, length, 0)

    def read_at(self, position: int, length: int) -> bytes:
        """At most that many bytes from there on; none at the end."""
        if position >= self.size and not self._fetch():
            return b""
        return os.pread(self._spool, length, position)

    def _fetch(self) -> bool:
        """Spool what the pipe has, waiting until there is something; False at its end."""
        if self._ended:
            return False
        try:
            data = self._stream.read1(_STEP)
        except (OSError, ValueError) as error:
            raise CorpusError(f"standard input cannot be read: {error}") from error
        if not data:
            self._ended = True
            return False
        try:
            rest = memoryview(data)
            while rest:
                written = os.pwrite(self._spool, rest, self.size)
                rest = rest[written:]
                self.size += written
        except OSError as error:
            raise InfrastructureError(
                f"the pipe cannot be spooled to {self._folder}: {error}; free space or set V5_DATA_DIR, then "
                "give the pipe again: what is stored is skipped"
            ) from error
        return True


class _Replay(io.RawIOBase):
    """One reader of a pipe, at its own position."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._pipe.read_at(self._position, len(buffer))
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


@dataclass(frozen=True)
class PipedFile(CorpusFile):
    """JSON Lines that come through a pipe."""

    pipe: Pipe

    def open(self) -> io.BufferedReader:
        """The stream from its beginning."""
        return self.pipe.open()
