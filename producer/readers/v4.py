"""V4 chunk files: `*_chunks.json`, a list of `{"text", "metadata", "advanced_scores"}`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from producer.cutting.languages import LANGUAGES, language_of
from producer.draft import Draft, place
from producer.problem import Problem
from producer.readers.file import MAX_V4_BYTES, CorpusFile
from producer.readers.record import given_id, merged
from registry.errors import CorpusError

_decode = json.JSONDecoder(parse_constant=lambda _: None).decode


def load_v4(file: CorpusFile) -> list[Any]:
    """The list in a chunk file. Raises CorpusError if it is not one, OSError if it cannot be read."""
    if file.size > MAX_V4_BYTES:
        raise CorpusError(
            f"{file.label}: {file.size} bytes of JSON are over the limit of {MAX_V4_BYTES}; "
            "split the file, or convert it to JSON Lines"
        )
    try:
        content = _decode(file.path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file.label}: not valid UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise CorpusError(f"{file.label}: JSON nested too deeply") from None
    except ValueError as error:
        raise CorpusError(f"{file.label}: not JSON: {error}") from None
    if not isinstance(content, list):
        raise CorpusError(f"{file.label}: not chunks: a chunk file is a JSON list of objects with `text`")
    if content and not any(isinstance(entry, dict) and "text" in entry for entry in content):
        raise CorpusError(f"{file.label}: not chunks: no object in the list has a `text`")
    return content


def read_v4(file: CorpusFile, min_tokens: int | None) -> Iterator[Draft | Problem]:
    """The drafts of a file; its whole list is in memory meanwhile.

    The payload's `metadata` is the chunk's, as it is; scores and further keys go to the top level. `path`
    is the source file where metadata names one. With `min_tokens`, chunks of fewer or unknown
    `token_count` are skipped, as V4 did.
    """
    try:
        content = load_v4(file)
    except CorpusError as error:
        yield Problem(file.label, str(error).removeprefix(f"{file.label}: "))
        return
    # Popped from the end of a reversed list, each entry's memory is free once its chunk has gone.
    content.reverse()
    for ordinal in range(len(content)):
        yield _draft(file, ordinal, content.pop(), min_tokens)


def _draft(file: CorpusFile, ordinal: int, entry: object, min_tokens: int | None) -> Draft | Problem:
    where = place(file.label, ordinal)
    if not isinstance(entry, dict):
        return Problem(where, "not an object with `text`")
    extra: dict[str, Any] = dict(entry)
    text, metadata = extra.pop("text", None), extra.pop("metadata", None)
    if metadata is not None and not isinstance(metadata, dict):
        return Problem(where, "metadata is not an object")
    known = metadata or {}
    if min_tokens is not None:
        tokens = known.get("token_count")
        if isinstance(tokens, bool) or not isinstance(tokens, (int, float)) or not tokens >= min_tokens:
            said = f"token_count {tokens}" if isinstance(tokens, (int, float)) else "no token_count"
            return Problem(where, f"{said}, under --min-tokens {min_tokens}", "skipped")
    try:
        given = given_id(known.get("chunk_id"))
    except ValueError as error:
        return Problem(where, f"chunk_id: {error}")
    payload = merged(extra, metadata)
    sources = (known.get("source_file"), extra.get("path"), file.label)
    payload["path"] = next(path for path in sources if isinstance(path, str) and path)
    for key in ("start_line", "end_line"):
        if isinstance(known.get(key), int):
            payload.setdefault(key, known[key])
    language = language_of(str(payload["path"])) or LANGUAGES.get(
        str(known.get("file_extension", "")).lower()
    )
    if language and payload["path"] != file.label:
        payload.setdefault("language", language)
    return Draft(file.label, ordinal, text, payload, given)
