"""JSON Lines: `{"text": …, "id"?: …, "metadata"?: {…}, …}`, one chunk a line; `.gz` is read through."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

from producer.draft import Draft, place
from producer.problem import Problem
from producer.readers.file import CorpusFile
from producer.readers.record import draft_of

#: A longer line is passed over without being held. Bytes.
MAX_LINE_BYTES = 64 << 20
_STEP = 1 << 20
_GZIP = b"\x1f\x8b"
_UTF8_BOM = b"\xef\xbb\xbf"

# NaN and the infinities are no JSON; they become null, as everywhere in a payload.
_decode = json.JSONDecoder(parse_constant=lambda _: None).decode


def read_jsonl(file: CorpusFile) -> Iterator[Draft | Problem]:
    """The drafts of a file. A bad line costs that line; ordinals are line numbers, so no other chunk moves.

    `metadata` goes into the payload as it is, further keys to its top level; keys the store writes itself
    go to `metadata`. `path` is the record's own, else the file's, then with its `line`.
    """
    number = 0
    with file.open() as raw, _unpacked(raw) as stream:
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


def _unpacked(raw: BufferedReader) -> gzip.GzipFile | BufferedReader:
    # Told by its first bytes, for a pipe has no name.
    return gzip.open(raw) if raw.peek(2)[:2] == _GZIP else raw


def _lines(stream: gzip.GzipFile | BufferedReader) -> Iterator[bytes]:
    """Lines of at most MAX_LINE_BYTES; a longer one comes cut, one byte over the limit."""
    while line := stream.readline(MAX_LINE_BYTES + 1):
        rest = line
        while len(line) > MAX_LINE_BYTES and rest and not rest.endswith(b"\n"):
            rest = stream.readline(_STEP)
        yield line


def _draft(file: CorpusFile, number: int, line: bytes) -> Draft | Problem:
    record = _record(line)
    if isinstance(record, str):
        return Problem(place(file.label, number), record)
    return draft_of(file.label, number, record, "line")


def _record(line: bytes) -> dict[str, Any] | str:
    """The object of a line, or why there is none."""
    if len(line) > MAX_LINE_BYTES:
        return f"line over the limit of {MAX_LINE_BYTES} bytes"
    try:
        record = _decode(line.decode())
    except UnicodeDecodeError as error:
        return f"not valid UTF-8: byte {error.start} of the line"
    except RecursionError:
        return "JSON nested too deeply"
    except ValueError as error:
        return f"not JSON: {error}"
    return record if isinstance(record, dict) else 'not an object like {"text": …}'
