"""Points as every store holds them: the payload's schema, and what of it conditional writes look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from registry.chunks import RESERVED_KEYS, Chunk
from store.base import Point, Standing, Vector

#: Payload paths. A write is conditional on STARTED, and where it keeps anything, on CONTENT_HASH.
CONTENT_HASH = "content_hash"
PAYLOAD_HASH = "v5.payload_hash"
STARTED = "v5.started"
SOURCE = "v5.source"
#: What `standing` needs of a payload.
STANDING_KEYS = (CONTENT_HASH, PAYLOAD_HASH)
#: What an update of a standing point needs of its payload, and what tells afterwards whether it took.
UPDATE_KEYS = (CONTENT_HASH, "v5.tokens")
UPDATED_KEYS = (CONTENT_HASH, STARTED)


def build_point(
    chunk: Chunk,
    vectors: dict[str, Vector],
    job: str,
    started: int,
    tokens: Mapping[str, tuple[int, int]] | None = None,
) -> Point:
    """A chunk as a point of a job that started at `started` (Unix milliseconds).

    `tokens` says per model how many tokens the text had and how many were kept. The chunk's own keys stand
    at the top of the payload; those that the store needs for itself move under `metadata`.
    """
    about: dict[str, Any] = {"job": job, "started": started, "payload_hash": chunk.payload_hash}
    if chunk.source:
        about["source"] = chunk.source
    if tokens:
        about["tokens"] = {model: _counts(*counts) for model, counts in tokens.items()}
    payload = {key: _storable(value) for key, value in _own(chunk.payload).items()}
    payload |= {"text": chunk.text, "content_hash": chunk.content_hash, "v5": about}
    return Point(chunk.id, vectors, payload)


def tokens_of(payload: Mapping[str, Any], model: str) -> tuple[int, int] | None:
    """How many tokens a model found in a point's text and how many it kept; None where it does not say."""
    about = payload.get("v5")
    tokens = about.get("tokens") if isinstance(about, Mapping) else None
    match tokens.get(model) if isinstance(tokens, Mapping) else None:
        case int(count):
            return count, count
        case [int(seen), int(kept)]:
            return seen, kept
        case _:
            return None


def content_hash_of(point: Point) -> str:
    """The content hash in a point's payload; empty if there is none."""
    return str(point.payload.get(CONTENT_HASH, ""))


def updated(point: Point, payload: Mapping[str, Any]) -> Point | None:
    """A point that updates a standing one with this payload: None if another text stands there.

    The token counts of the models that are not computed again stay.
    """
    if payload.get(CONTENT_HASH) != content_hash_of(point):
        return None
    about = payload.get("v5")
    standing = about.get("tokens", {}) if isinstance(about, Mapping) else {}
    tokens = {**standing, **point.payload["v5"].get("tokens", {})}
    if not tokens:
        return point
    return replace(point, payload={**point.payload, "v5": {**point.payload["v5"], "tokens": tokens}})


def standing_of(payload: Mapping[str, Any], vectors: frozenset[str]) -> Standing:
    """What stands, from a payload that holds STANDING_KEYS; a point of foreign making has empty hashes."""
    about = payload.get("v5")
    payload_hash = about.get("payload_hash", "") if isinstance(about, dict) else ""
    return Standing(str(payload.get(CONTENT_HASH, "")), str(payload_hash), vectors)


def source_of(payload: Mapping[str, Any]) -> str:
    """The corpus file that a point was read from, as its label; empty if the point does not say."""
    about = payload.get("v5")
    return str(about.get("source", "")) if isinstance(about, Mapping) else ""


def started_of(payload: Mapping[str, Any]) -> int:
    """The start of the job that wrote a point last, in Unix milliseconds; 0 if the point does not say."""
    about = payload.get("v5")
    return int(about.get("started", 0)) if isinstance(about, Mapping) else 0


def _counts(seen: int, kept: int) -> int | list[int]:
    """One number where nothing was cut: a list costs the embedded store as much as the rest of `v5`."""
    return int(seen) if seen == kept else [int(seen), int(kept)]


def _storable(value: Any) -> Any:
    """The value with whole numbers of more than 64 bits as their digits: gRPC refuses them, and JSON readers
    turn them into rounded floats."""
    match value:
        case bool():
            return value
        case int():
            return value if -(2**63) <= value < 2**63 else str(value)
        case list():
            return [_storable(item) for item in value]
        case Mapping():
            return {key: _storable(item) for key, item in value.items()}
        case _:
            return value


def _own(given: Mapping[str, Any]) -> dict[str, Any]:
    payload = {key: value for key, value in given.items() if key not in RESERVED_KEYS}
    moved = {key: value for key, value in given.items() if key in RESERVED_KEYS}
    if not moved:
        return payload
    standing = payload.get("metadata", {})
    metadata = dict(standing) if isinstance(standing, Mapping) else {"metadata": standing}
    for key, value in moved.items():
        # A corpus may bring a key at both places: neither value may be lost.
        free = key
        while free in metadata:
            free += "_"
        metadata[free] = value
    payload["metadata"] = metadata
    return payload
