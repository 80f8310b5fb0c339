"""Bytes beside the broker: checked frames around JSON, a batch's chunks (JSON, zstd), and vectors (see
`registry.codecs`).

Nothing here evaluates what it reads, and every size is bounded before it is trusted. What only submits needs
no arrays, whose library takes 70 ms to import.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any, Literal

import xxhash
import zstandard

from registry.chunks import Chunk, Original
from registry.errors import CodecError

#: magic, kind, flags, raw size in bytes, checksum of the body.
_FRAME = struct.Struct("<4sBBQ16s")
#: Where the checksum stands in a frame, so that two blobs can be compared without reading either.
CHECKSUM = slice(_FRAME.size - 16, _FRAME.size)
_MAGIC = b"V5b2"
_ZSTD = 1
#: A frame that claims more than this many bytes, packed or unpacked, is refused unread (1 GiB: one batch of
#: multi-vectors is at most half of that).
MAX_FRAME_BYTES = 1 << 30
#: zstd level 1: code text shrinks to about 0.28 at memory speed; higher levels cost more than they save.
_LEVEL = 1


def _blake2b(body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=16).digest()


#: The checksum, by magic. XXH3 is as fast as memory; BLAKE2b took a 25th of the pipeline's time. Golden
#: vectors that a collection keeps may be of that kind.
_CHECKSUMS: dict[bytes, Callable[[bytes | memoryview], bytes]] = {
    _MAGIC: xxhash.xxh3_128_digest,
    b"V5b1": _blake2b,
}

_encode = json.JSONEncoder(ensure_ascii=False).encode

Kind = Literal["json", "chunks", "vectors"]
_KINDS: dict[Kind, int] = {"json": 1, "chunks": 2, "vectors": 3}


def seal(kind: Kind, body: bytes, *, compress: bool) -> bytes:
    """Frame a body with its kind, size and checksum, compressed where that pays (text, not floats)."""
    raw = len(body)
    if raw > MAX_FRAME_BYTES:
        raise CodecError(f"a {kind} blob of {raw} bytes is over the limit of {MAX_FRAME_BYTES}")
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(body) if compress else body
    digest = _CHECKSUMS[_MAGIC](packed)
    return _FRAME.pack(_MAGIC, _KINDS[kind], _ZSTD if compress else 0, raw, digest) + packed


def unseal(kind: Kind, blob: bytes, limit: int = MAX_FRAME_BYTES) -> bytes:
    """The body of a frame of that kind. Raises CodecError on any doubt; never inflates past `limit` bytes."""
    if len(blob) < _FRAME.size:
        raise CodecError(f"a {kind} blob of {len(blob)} bytes is too short to be one")
    magic, code, flags, raw, digest = _FRAME.unpack_from(blob)
    if magic not in _CHECKSUMS:
        raise CodecError(f"not a {kind} blob: unknown magic")
    if code != _KINDS[kind]:
        raise CodecError(f"expected a {kind} blob, found kind {code}")
    if raw > limit:
        raise CodecError(f"a {kind} blob claims {raw} bytes, over the limit of {limit}")
    packed = memoryview(blob)[_FRAME.size :]
    if _CHECKSUMS[magic](packed) != digest:
        raise CodecError(f"a {kind} blob does not match its checksum")
    body = _inflate(packed, raw) if flags == _ZSTD else bytes(packed)
    if len(body) != raw:
        raise CodecError(f"a {kind} blob holds {len(body)} bytes and claims {raw}")
    return body


def _inflate(packed: memoryview, raw: int) -> bytes:
    """Decompress at most `raw` + 1 bytes, whatever the zstd frame itself claims."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(packed) as reader:
            return reader.read(raw + 1)
    except zstandard.ZstdError as error:
        raise CodecError(f"a blob cannot be decompressed: {error}") from None


def pack_json(value: Any) -> bytes:
    """Frame a JSON value (requests and answers that are too large for a message)."""
    return seal("json", json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(), compress=True)


def unpack_json(blob: bytes) -> Any:
    """The JSON value of a frame. Raises CodecError."""
    return json_of(unseal("json", blob))


def json_of(body: bytes) -> Any:
    """The JSON value of bytes. Raises CodecError."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"a blob is not JSON: {error}") from None


def pack_chunks(chunks: Sequence[Chunk]) -> bytes:
    """Frame a batch's chunks."""
    rows = (
        f"[{_encode(chunk.id)},{_encode(chunk.text)},{chunk.body},{_encode(chunk.source)}{_original(chunk)}]"
        for chunk in chunks
    )
    return seal("chunks", f"[{','.join(rows)}]".encode(), compress=True)


def _original(chunk: Chunk) -> str:
    original = chunk.original
    return "" if original is None else f",[{_encode(original.id)},{original.batch}]"


def unpack_chunks(blob: bytes) -> list[Chunk]:
    """A batch's chunks. Raises CodecError."""
    rows = json_of(unseal("chunks", blob))
    if not isinstance(rows, list):
        raise CodecError("a chunks blob is not a list")
    chunks = []
    for row in rows:
        match row:
            case [str() as id_, str() as text, dict() as payload, str() as source]:
                chunks.append(Chunk(id_, text, payload, source))
            case [str() as id_, str() as text, dict() as payload, str() as source, [str() as of, int() as n]]:
                chunks.append(Chunk(id_, text, payload, source, Original(of, n)))
            case _:
                raise CodecError("a chunks blob holds something that is not a chunk")
    return chunks
