"""How close vectors are to their references: the one measure for right code and for wrong code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MIN_COSINE = 0.99999
MAX_DIFFERENCE = 1e-4
#: Vectors of different texts must be further apart than this, or agreement would say nothing.
MAX_COSINE_OF_OTHERS = 0.9

Values = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Agreement:
    """The worst of several comparisons."""

    cosine: float
    difference: float

    @property
    def holds(self) -> bool:
        """Whether both measures are within their tolerance; NaN is not."""
        return self.cosine >= MIN_COSINE and self.difference <= MAX_DIFFERENCE

    def __str__(self) -> str:
        return (
            f"cosine {self.cosine:.9f} (at least {MIN_COSINE}), "
            f"difference {self.difference:.2e} (at most {MAX_DIFFERENCE:.0e})"
        )


DIFFERENT = Agreement(-1.0, float("inf"))


def agreement(found: Values, wanted: Values) -> Agreement:
    """Of two `[n, d]`, row by row; of other shapes or of none: none."""
    if found.shape != wanted.shape:
        return DIFFERENT
    if not found.size:
        return Agreement(1.0, 0.0)
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = (a * b).sum(axis=1) / np.where(lengths == 0, np.nan, lengths)
    return Agreement(float(cosines.min()), float(np.abs(a - b).max()))


def worst(several: Sequence[Agreement]) -> Agreement:
    """The worst cosine and the worst difference of them."""
    return Agreement(min(one.cosine for one in several), max(one.difference for one in several))
