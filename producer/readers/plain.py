"""Plain files: source code and prose, decoded and cut into chunks."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterator

from producer.cutting.languages import GRAMMARS, language_of
from producer.draft import Draft
from producer.problem import Problem
from producer.readers.file import MAX_PLAIN_BYTES, CorpusFile, raw_bytes

#: Capacity of a chunk in characters: about 400 tokens of code, within every model's window.
CHUNK_CHARS = 1600
#: A NUL within the first bytes of a file says that it is not text.
_SNIFFED = 8 * 1024
#: UTF-32 first: its little-endian mark begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_plain(file: CorpusFile, capacity: int) -> Iterator[Draft | Problem]:
    """The drafts of a file: `path`, lines, `ordinal`, `file_hash`, and language and symbol where known."""
    with raw_bytes(file.path) as descriptor, os.fdopen(descriptor, "rb", closefd=False) as stream:
        content = stream.read(MAX_PLAIN_BYTES + 1)
    if len(content) > MAX_PLAIN_BYTES:
        yield Problem(
            file.label, f"file is over the limit of {MAX_PLAIN_BYTES} bytes for plain text", "skipped"
        )
        return
    if is_binary(content[:_SNIFFED]):
        yield Problem(file.label, "binary file", "skipped")
        return
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    # By hand, for `utf-8-sig` counts an error's offset from behind the mark.
    mark = len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0
    try:
        text = content[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper()
        yield Problem(file.label, f"not valid {name} at byte {mark + error.start}; convert the file to UTF-8")
        return
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    del content
    yield from _drafts(file, text, digest, capacity)


def is_binary(head: bytes) -> bool:
    """Whether a file that begins so is not text."""
    return b"\0" in head and not any(head.startswith(mark) for mark, _ in _MARKS)


def _drafts(file: CorpusFile, text: str, digest: str, capacity: int) -> Iterator[Draft]:
    # Grammars and splitter are loaded by the first file that is cut, not by every command.
    from producer.cutting.code import code_pieces
    from producer.cutting.pieces import passages
    from producer.cutting.prose import prose_pieces

    language = language_of(file.label)
    if language in GRAMMARS:
        pieces = code_pieces(text, language, capacity)
    else:
        pieces = prose_pieces(text, capacity, markdown=language == "markdown")
    for ordinal, passage in enumerate(passages(text, pieces)):
        payload: dict[str, object] = {
            "path": file.label,
            "start_line": passage.start_line,
            "end_line": passage.end_line,
            "ordinal": ordinal,
            # With it, every chunk of a changed file has a changed payload.
            "file_hash": digest,
        }
        if language:
            payload["language"] = language
        if passage.symbol:
            payload["symbol"] = passage.symbol
        yield Draft(file.label, ordinal, passage.text, payload)
