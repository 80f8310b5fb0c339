"""Vectors as bytes: what one model made of one batch, as safetensors in a checked frame.

Nothing here evaluates what it reads, and every array is held against the others before it is trusted.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as _load_tensors
from safetensors.numpy import save as _save_tensors

from registry.errors import CodecError
from registry.frames import MAX_FRAME_BYTES, json_of, seal, unseal
from registry.models import OutputKind

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]


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
        about = json_of(tensors["about"].tobytes())
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
