"""A chunk of a corpus: the unit that is embedded, stored and found."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

#: The namespace of every deterministic chunk id (UUIDv5); changing it orphans every stored point.
NAMESPACE = uuid.UUID("5f1c3b0e-7a44-5d6f-9c55-56350f1ee700")

#: Payload keys the store writes itself; a corpus that brings one finds it under `metadata`.
RESERVED_KEYS = frozenset({"text", "content_hash", "v5"})

#: One form for hashing, measuring and sending, so that a payload is encoded once.
_canonical = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode


def chunk_id(given: str | None, path: str = "", ordinal: int = 0) -> str:
    """The deterministic id of a chunk: UUIDv5 of the given id, else of path and ordinal."""
    name = f"id\x00{given}" if given is not None else f"path\x00{path}\x00{ordinal}"
    # As `uuid.uuid5`, which takes six times as long.
    digest = bytearray(hashlib.sha1(NAMESPACE.bytes + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


#: The batch of an original that is stored already.
STORED = -1


@dataclass(frozen=True)
class Original:
    """The chunk whose vectors a copy of its text takes: where they will stand."""

    id: str
    #: The number of its batch in the job, or STORED.
    batch: int


@dataclass(frozen=True)
class Chunk:
    """One text with an id and a JSON payload (path, lines, language, metadata, …; never the text)."""

    id: str
    text: str
    payload: dict[str, Any] = field(default_factory=dict)
    #: The corpus file it was read from, as its label; what `v5 submit --prune` goes by.
    source: str = ""
    #: Of a copy in a batch of copies: who had this text first.
    original: Original | None = None

    @cached_property
    def content_hash(self) -> str:
        """128-bit BLAKE2b of the text, hex: equal hashes need no second embedding."""
        return hashlib.blake2b(self.text.encode(), digest_size=16).hexdigest()

    @cached_property
    def body(self) -> str:
        """The payload as JSON, its keys sorted, without spaces."""
        return _canonical(self.payload)

    @cached_property
    def payload_hash(self) -> str:
        """128-bit BLAKE2b of text, payload and source, hex: where only this differs, only the payload is
        written. With the source, a chunk that moved to another file is that file's from then on."""
        # No JSON holds a NUL, so that nothing of a payload can pass for a source.
        source = f"\x00{self.source}" if self.source else ""
        return hashlib.blake2b(f"{self.content_hash}{self.body}{source}".encode(), digest_size=16).hexdigest()

    @property
    def where(self) -> str:
        """For messages: path and line where known, else the id."""
        path, line = self.payload.get("path"), self.payload.get("start_line")
        if not path:
            return self.id
        return f"{path}:{line}" if line else str(path)
