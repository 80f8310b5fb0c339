"""JSON Lines: `{"text": …, "id"?: …, "metadata"?: {…}, …}`, one chunk a line; `.gz` is read through."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from producer.cutting.languages import language_of
from producer.draft import Draft, place
from producer.problem import Problem
from producer.readers.file import CorpusFile
from registry.chunks import RESERVED_KEYS

#: A longer line is passed over without being held. Bytes.
MAX_LINE_BYTES = 64 << 20
_STEP = 1 << 20
#: Ids appear in messages and in the dead-letter list.
MAX_ID_CHARS = 1024
_UTF8_BOM = b"\xef\xbb\xbf"

# NaN and the infinities are no JSON; they become null, as everywhere in a payload.
_decode = json.JSONDecoder(parse_constant=lambda _: None).decode


def read_jsonl(file: CorpusFile) -> Iterator[Draft | Problem]:
    """The drafts of a file. A bad line costs that line; ordinals are line numbers, so no other chunk moves.

    `metadata` goes into the payload as it is, further keys to its top level; keys the store writes itself
    go to `metadata`. `path` is the record's own, else the file's, then with its `line`.
    """
    number = 0
    packed = file.label.lower().endswith(".gz")
    with gzip.open(file.path) if packed else file.path.open("rb") as stream:
        lines = _lines(stream)
        while True:
            number += 1
            try:
                line = next(lines, None)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                yield Problem(place(file.label, number), f"damaged from here on: {error}")
                return
            if line is None:
                return
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    yield Problem(file.label, "UTF-16; JSON Lines are UTF-8: convert the file")
                    return
                line = line.removeprefix(_UTF8_BOM)
            if line and not line.isspace():
                yield _draft(file, number, line)


def _lines(stream: gzip.GzipFile | BufferedReader) -> Iterator[bytes]:
    """Lines of at most MAX_LINE_BYTES; a longer one comes cut, one byte over the limit."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        rest = line
        while len(line) > MAX_LINE_BYTES and rest and not rest.endswith(b"\n"):
            rest = stream.readline(_STEP)
        yield line


def _draft(file: CorpusFile, number: int, line: bytes) -> Draft | Problem:
    where = place(file.label, number)
    if len(line) > MAX_LINE_BYTES:
        return Problem(where, f"line over the limit of {MAX_LINE_BYTES} bytes")
    try:
        record = _decode(line.decode())
    except UnicodeDecodeError as error:
        return Problem(where, f"not valid UTF-8: byte {error.start} of the line")
    except RecursionError:
        return Problem(where, "JSON nested too deeply")
    except ValueError as error:
        return Problem(where, f"not JSON: {error}")
    if not isinstance(record, dict):
        return Problem(where, 'not an object like {"text": …}')
    try:
        given = given_id(record.pop("id", None))
    except ValueError as error:
        return Problem(where, str(error))
    text = record.pop("text", None)
    metadata = record.pop("metadata", None)
    if metadata is not None and not isinstance(metadata, dict):
        return Problem(where, "metadata is not an object")
    payload = merged(record, metadata)
    path = payload.get("path")
    if not isinstance(path, str) or not path:
        if path is not None:
            payload["metadata"] = {"path": path, **payload.get("metadata", {})}
        payload["path"] = path = file.label
        payload.setdefault("line", number)
    language = None if path == file.label else language_of(path)
    if language:
        payload.setdefault("language", language)
    return Draft(file.label, number, text, payload, given)


def given_id(value: object) -> str | None:
    """The id a record brings, as text; empty is none. Raises ValueError if it is no id."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ValueError("the id is neither a string nor an integer")
    given = str(value)
    if len(given) > MAX_ID_CHARS:
        raise ValueError(f"the id has {len(given)} characters; at most {MAX_ID_CHARS} name a chunk")
    return given


def merged(extra: dict[str, Any], metadata: dict[str, Any] | None) -> dict[str, Any]:
    """A payload of a record's further keys and its metadata; reserved keys move into `metadata`."""
    moved = RESERVED_KEYS & extra.keys()
    if moved:
        extra, metadata = dict(extra), dict(metadata or {})
        for key in sorted(moved):
            free = key
            while free in metadata:
                free += "_"
            metadata[free] = extra.pop(key)
    return extra if metadata is None else {**extra, "metadata": metadata}
