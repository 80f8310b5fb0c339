"""Bytes beside the broker: chunks (JSON, zstd), vectors (safetensors), each in a checked frame.

Nothing here evaluates what it reads: JSON and safetensors only, every size bounded before it is trusted.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import xxhash
import zstandard
from safetensors import SafetensorError
from safetensors.numpy import load as _load_tensors
from safetensors.numpy import save as _save_tensors

from registry.chunks import Chunk, Original
from registry.errors import CodecError
from registry.models import OutputKind

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

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
    return _json(unseal("json", blob))


def _json(body: bytes) -> Any:
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
    rows = _json(unseal("chunks", blob))
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


@dataclass(frozen=True)
class Dense:
    """One vector per text: `[n, d]`, float32 or float16."""

    values: FloatArray

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Sparse:
    """Weighted token ids per text; text `i` owns `indices[offsets[i]:offsets[i+1]]`, likewise `values`."""

    indices: IntArray
    values: FloatArray
    offsets: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> tuple[IntArray, FloatArray]:
        """Indices and values of text `i`."""
        span = slice(int(self.offsets[i]), int(self.offsets[i + 1]))
        return self.indices[span], self.values[span]


@dataclass(frozen=True)
class Multi:
    """One row per token; text `i` owns `values[offsets[i]:offsets[i+1]]`, each row `d` wide."""

    values: FloatArray
    offsets: IntArray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, i: int) -> FloatArray:
        """The rows `[tokens, d]` of text `i`."""
        return self.values[int(self.offsets[i]) : int(self.offsets[i + 1])]


Vectors = Dense | Sparse | Multi


@dataclass(frozen=True)
class Part:
    """What one model made of one batch: an array set per output, all over the same `n` texts."""

    #: Output kind to vectors; a rejected text's vectors are zero or empty.
    vectors: dict[OutputKind, Vectors]
    #: Tokens of each text before truncation, `[n]`.
    tokens_seen: IntArray
    #: Tokens that went through the model, `[n]`; fewer than seen where the text was cut.
    tokens_kept: IntArray
    #: Index of a text the encoder could not embed, and why.
    rejected: dict[int, str] = field(default_factory=dict)
    #: Numerics and measurements of the pass, for the record (dtype, backend, seconds).
    notes: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens_seen)


def pack_part(part: Part) -> bytes:
    """Frame a part as safetensors. Raises CodecError if its arrays do not agree in length."""
    tensors: dict[str, npt.NDArray[Any]] = {
        "tokens.seen": np.asarray(part.tokens_seen, np.int32),
        "tokens.kept": np.asarray(part.tokens_kept, np.int32),
    }
    for kind, vectors in part.vectors.items():
        if len(vectors) != len(part):
            raise CodecError(f"{kind} vectors for {len(vectors)} texts in a part of {len(part)}")
        match vectors:
            case Dense(values):
                tensors[f"{kind}.values"] = np.ascontiguousarray(values)
            case Sparse(indices, values, offsets):
                tensors[f"{kind}.indices"] = np.ascontiguousarray(indices, np.int64)
                tensors[f"{kind}.values"] = np.ascontiguousarray(values)
                tensors[f"{kind}.offsets"] = np.ascontiguousarray(offsets, np.int64)
            case Multi(values, offsets):
                tensors[f"{kind}.values"] = np.ascontiguousarray(values)
                tensors[f"{kind}.offsets"] = np.ascontiguousarray(offsets, np.int64)
    about = {"rejected": {str(i): why for i, why in part.rejected.items()}, "notes": part.notes}
    tensors["about"] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    return seal("vectors", _save_tensors(tensors), compress=False)


def unpack_part(blob: bytes, limit: int = MAX_FRAME_BYTES) -> Part:
    """A model's part of a batch, at most `limit` bytes. Raises CodecError if anything in it does not fit."""
    try:
        tensors = _load_tensors(unseal("vectors", blob, limit))
        about = _json(tensors["about"].tobytes())
        seen, kept = tensors["tokens.seen"], tensors["tokens.kept"]
        vectors: dict[OutputKind, Vectors] = {}
        if "dense.values" in tensors:
            vectors["dense"] = Dense(tensors["dense.values"])
        if "sparse.values" in tensors:
            vectors["sparse"] = Sparse(
                tensors["sparse.indices"], tensors["sparse.values"], tensors["sparse.offsets"]
            )
        if "multi.values" in tensors:
            vectors["multi"] = Multi(tensors["multi.values"], tensors["multi.offsets"])
        rejected = {int(i): str(why) for i, why in about["rejected"].items()}
        part = Part(vectors, seen, kept, rejected, dict(about["notes"]))
        _check_shapes(part)
    except SafetensorError as error:
        raise CodecError(f"a vectors blob is not safetensors: {error}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CodecError(f"a vectors blob lacks what it must hold: {error!r}") from None
    return part


def _check_shapes(part: Part) -> None:
    n = len(part)
    if part.tokens_seen.shape != (n,) or part.tokens_kept.shape != (n,):
        raise CodecError("a vectors blob counts tokens for another number of texts")
    for kind, vectors in part.vectors.items():
        floats = vectors.values
        if floats.dtype not in (np.float32, np.float16):
            raise CodecError(f"{kind} vectors are {floats.dtype}; only float32 and float16 travel")
        if isinstance(vectors, Dense):
            if floats.ndim != 2 or len(floats) != n:
                raise CodecError(f"dense vectors of shape {floats.shape} for {n} texts")
            continue
        offsets = vectors.offsets
        total = len(vectors.indices) if isinstance(vectors, Sparse) else len(floats)
        fits = (
            offsets.shape == (n + 1,)
            and int(offsets[0]) == 0
            and int(offsets[-1]) == total == len(floats)
            and bool(np.all(np.diff(offsets) >= 0))
            and floats.ndim == (1 if isinstance(vectors, Sparse) else 2)
        )
        if not fits:
            raise CodecError(f"{kind} vectors whose offsets do not fit their values")
