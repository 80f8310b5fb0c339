"""Vectors on their way through Redis in float16: half the bytes, for an error far under a model's own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from registry.codecs import FloatArray, Part, Sparse, Vectors


def halved(part: Part) -> Part:
    """The part with its values in float16.

    An output stays in float32 if a value of it is past float16's range (65504), or if a sparse weight would
    become zero (under 3e-8); the notes' `kept_float32` names such outputs. Values of a unit vector that small
    are nothing beside the others.
    """
    vectors = {kind: _halved(each) for kind, each in part.vectors.items()}
    kept = [kind for kind, each in vectors.items() if each.values.dtype != np.float16]
    return replace(part, vectors=vectors, notes={**part.notes, "kept_float32": kept} if kept else part.notes)


def widened(vectors: Vectors, *, normalised: bool) -> Vectors:
    """The vectors in float32. `normalised`: of a space of unit vectors, whose length rounding to float16 has
    changed by 1e-4 or so; rows of zeros stay. What came in float32 is returned as it is."""
    if vectors.values.dtype == np.float32:
        return vectors
    values = vectors.values.astype(np.float32)
    if normalised:
        lengths = np.linalg.norm(values, axis=-1, keepdims=True)
        values /= np.where(lengths == 0, 1, lengths)
    return replace(vectors, values=values)


def _halved(vectors: Vectors) -> Vectors:
    with np.errstate(over="ignore"):
        values: FloatArray = vectors.values.astype(np.float16)
    lost = isinstance(vectors, Sparse) and ((values == 0) & (vectors.values != 0)).any()
    return vectors if lost or not np.isfinite(values).all() else replace(vectors, values=values)
