"""Token states to one vector per text, on the host."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def masked_mean(states: Floats, mask: npt.NDArray[np.int64]) -> Floats:
    """Mean of `states` `[b, t, h]` over the tokens that `mask` `[b, t]` marks: `[b, h]` float32.

    Written as a product of matrices: BLAS sums without a masked copy of the states.
    """
    weights = mask.astype(np.float32)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    pooled: Floats = np.matmul(weights[:, None, :], states)[:, 0, :]
    return pooled


def unit(vectors: Floats) -> Floats:
    """Rows of `[b, d]` divided by their L2 norm; a zero row stays zero, and is refused later."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Floats = vectors / np.maximum(norms, np.finfo(np.float32).tiny)
    return scaled
