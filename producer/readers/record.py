"""A record: one object with `text`, `id`, `metadata` and further keys, as a line or a row brings it."""

from __future__ import annotations

from typing import Any

from producer.cutting.languages import language_of
from producer.draft import Draft, place
from producer.problem import Problem
from registry.chunks import RESERVED_KEYS

#: Ids appear in messages and in the dead-letter list.
MAX_ID_CHARS = 1024


def draft_of(label: str, ordinal: int, record: dict[str, Any], position: str) -> Draft | Problem:
    """The draft of a record of the corpus file `label`; `record` is used up.

    `metadata` goes into the payload as it is, further keys to its top level; keys the store writes itself
    go to `metadata`. `path` is the record's own, else the file's, then with the ordinal under the key
    `position`.
    """
    try:
        given = given_id(record.pop("id", None))
    except ValueError as error:
        return Problem(place(label, ordinal), str(error))
    text = record.pop("text", None)
    metadata = record.pop("metadata", None)
    if metadata is not None and not isinstance(metadata, dict):
        return Problem(place(label, ordinal), "metadata is not an object")
    payload = merged(record, metadata)
    path = payload.get("path")
    if not isinstance(path, str) or not path:
        if path is not None:
            payload["metadata"] = {"path": path, **payload.get("metadata", {})}
        payload["path"] = path = label
        payload.setdefault(position, ordinal)
    language = None if path == label else language_of(path)
    if language:
        payload.setdefault("language", language)
    return Draft(label, ordinal, text, payload, given)


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
