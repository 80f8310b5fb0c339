"""What every encoder's vectors must be before anything believes them."""

from __future__ import annotations

import numpy as np

from registry.codecs import Dense, Multi, Vectors
from registry.errors import EncodeError
from registry.spaces import VectorSpace

#: How far the L2 norm of a dense vector or of a multi-vector's row may be from 1; float32 is within 1e-6,
#: vectors that were normalised in bfloat16 within 0.01.
NORM_TOLERANCE = 2e-2


def check_vectors(vectors: Vectors, space: VectorSpace, texts: int) -> None:
    """Raise EncodeError unless these are `texts` finite vectors of the space, unit where it says so.

    It speaks of a whole micro-batch; the caller finds the texts at fault by bisection.
    """
    if len(vectors) != texts:
        raise EncodeError(f"{space.output} vectors for {len(vectors)} texts instead of {texts}")
    values = vectors.values
    if isinstance(vectors, Dense | Multi) and (values.ndim != 2 or values.shape[1] != space.dimension):
        raise EncodeError(f"{space.output} vectors of shape {values.shape}, not [·, {space.dimension}]")
    if not np.isfinite(values).all():
        raise EncodeError(f"a {space.output} vector holds NaN or infinity")
    if space.normalised and len(values):
        worst = float(np.abs(np.linalg.norm(values, axis=1) - 1.0).max())
        if worst > NORM_TOLERANCE:
            raise EncodeError(f"a {space.output} vector's norm is off 1 by {worst:.3g}")
