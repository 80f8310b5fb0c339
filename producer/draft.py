"""A draft: what a reader found, before it is proven to be a chunk."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from producer.problem import Problem
from registry.chunks import Chunk, chunk_id

#: Most bytes a chunk's payload may take as JSON. A window holds `window_chunks` payloads and a batch
#: `batch_chunks`, so this bounds both: 256 of them are 64 MiB.
MAX_PAYLOAD_BYTES = 256 * 1024
#: Deepest nesting of a payload. The store's JSON parser gives up at 128 levels, and messages add some.
MAX_PAYLOAD_DEPTH = 64

#: What JSON Lines from a pipe are called, unless they are given a name.
PIPE_LABEL = "-"
#: Names of JSON Lines files.
JSON_LINES_NAME = re.compile(r"\.(jsonl|ndjson)(\.gz)?$", re.IGNORECASE)

#: Integers of this many digits may not fit 64 bits: told by their run of zeros once every digit is one.
_LONG_INTEGER = b"0" * 19
_ZEROS = bytes.maketrans(b"123456789", b"000000000")


@dataclass(frozen=True, slots=True)
class Draft:
    """One would-be chunk. `given` names it for good; without, `path` and `ordinal` do."""

    #: The corpus file, as its label; with the ordinal, the id of a chunk that brings none.
    path: str
    #: Line of a JSON Lines file (from 1), index in a V4 chunk file, number of a plain file's piece (from 0).
    ordinal: int
    text: object
    payload: dict[str, Any]
    given: str | None = None

    @property
    def where(self) -> str:
        """For messages."""
        return place(self.path, self.ordinal)


def place(path: str, ordinal: int) -> str:
    """Where a chunk of a corpus file is: `file.jsonl:1234` (a line), `doc_chunks.json[17]`, `a.py[2]`."""
    return f"{path}:{ordinal}" if path == PIPE_LABEL or JSON_LINES_NAME.search(path) else f"{path}[{ordinal}]"


class _TooDeep(Exception):
    """A payload is nested beyond MAX_PAYLOAD_DEPTH."""


def finish(draft: Draft, max_chunk_bytes: int) -> Chunk | Problem:
    """The chunk that a draft describes, or why it is none.

    A payload is made to fit the store's JSON: NaN and infinities, which it does not have, become null, and
    integers beyond 64 bits become strings. What cannot be mended without guessing is rejected.
    """
    try:
        identity = chunk_id(draft.given, draft.path, draft.ordinal)
    except UnicodeEncodeError:
        return Problem(draft.where, "the id is not valid Unicode (a lone surrogate)")

    def rejected(reason: str) -> Problem:
        return Problem(draft.where, reason, id=identity)

    text = draft.text
    if not isinstance(text, str):
        return rejected("no text" if text is None else f"text is {_json_type(text)}, not a string")
    if not text or text.isspace():
        return rejected("empty text")
    try:
        size = text_bytes(text)
    except UnicodeEncodeError as error:
        return rejected(f"text is not valid Unicode: a lone surrogate at character {error.start}")
    if size > max_chunk_bytes:
        return rejected(
            f"text of {size} bytes is over the limit of {max_chunk_bytes}; "
            "cut it, or raise V5_MAX_CHUNK_BYTES"
        )
    chunk = Chunk(identity, text, draft.payload, draft.path)
    try:
        body = chunk.body.encode()
        if _is_suspicious(body):
            chunk = Chunk(identity, text, _mended(draft.payload, 1), draft.path)
            body = chunk.body.encode()
    except UnicodeEncodeError:
        return rejected("the payload is not valid Unicode (a lone surrogate)")
    except (_TooDeep, RecursionError):
        return rejected(f"the payload is nested deeper than {MAX_PAYLOAD_DEPTH} levels")
    if len(body) > MAX_PAYLOAD_BYTES:
        return rejected(f"payload of {len(body)} bytes is over the limit of {MAX_PAYLOAD_BYTES}; shrink it")
    return chunk


def text_bytes(text: str) -> int:
    """Length in UTF-8. Raises UnicodeEncodeError on a lone surrogate."""
    return len(text) if text.isascii() else len(text.encode())


def _is_suspicious(body: bytes) -> bool:
    """Whether a payload of that JSON may hold what the store cannot, so that it is worth a walk."""
    return (
        body.count(b"{") + body.count(b"[") > MAX_PAYLOAD_DEPTH
        or b"NaN" in body
        or b"Infinity" in body
        or _LONG_INTEGER in body.translate(_ZEROS)
    )


def _mended(value: Any, depth: int) -> Any:
    if depth > MAX_PAYLOAD_DEPTH:
        raise _TooDeep
    match value:
        case dict():
            return {key: _mended(inner, depth + 1) for key, inner in value.items()}
        case list():
            return [_mended(inner, depth + 1) for inner in value]
        case bool():
            return value
        case int():
            return value if -(1 << 63) <= value < 1 << 63 else str(value)
        case float():
            return value if math.isfinite(value) else None
    return value


def _json_type(value: object) -> str:
    """What JSON calls a value that is not a string."""
    match value:
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case list():
            return "an array"
    return "an object"
