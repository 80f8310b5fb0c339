"""Whether a vector fits the name it is given under; engines accept some that can never be found again."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from registry.plan import NamedVector
from store.base import DenseVector, SparseVector, Vector

#: Qdrant's sparse indices are unsigned and 32 bits wide.
_MAX_INDEX = 2**32 - 1


def fault(name: str, vector: Vector, bound: Mapping[str, NamedVector]) -> str:
    """What is wrong with a vector under that name of a collection, as a clause; empty if nothing."""
    named = bound.get(name)
    if named is None:
        return f"there is no vector {name!r}; the collection has {', '.join(sorted(bound))}"
    if isinstance(vector, SparseVector):
        kind, problem = "sparse", _sparse_fault(vector)
    else:
        kind = {1: "dense", 2: "multi"}.get(vector.ndim, f"{vector.ndim}-dimensional")
        problem = _width_fault(vector.shape, named.dimension) if kind == named.kind else ""
    if kind != named.kind:
        return f"vector {name!r} is {named.kind} and was given as {kind}"
    values = vector.values if isinstance(vector, SparseVector) else vector
    # Qdrant stores NaN without a word; such a point is near to nothing for ever.
    if not problem and not _finite(values):
        problem = "holds a value that is not finite"
    return f"vector {name!r} {problem}" if problem else ""


def nbytes(vector: Vector) -> int:
    """The vector's size in bytes."""
    if isinstance(vector, SparseVector):
        return int(vector.indices.nbytes + vector.values.nbytes)
    return int(vector.nbytes)


def _finite(values: DenseVector) -> bool:
    """Whether all values are: a finite sum of squares says so at once, another may be just too large."""
    return math.isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())


def _width_fault(shape: tuple[int, ...], dimension: int) -> str:
    if shape[-1] != dimension:
        return f"has {shape[-1]} dimensions; the collection's has {dimension}"
    return "has no rows" if shape[0] == 0 else ""


def _sparse_fault(vector: SparseVector) -> str:
    indices = vector.indices
    if indices.ndim != 1 or indices.shape != vector.values.shape:
        return f"has {indices.size} indices and {vector.values.size} values"
    if indices.size and (indices.min() < 0 or indices.max() > _MAX_INDEX):
        return f"has an index outside 0 to {_MAX_INDEX}"
    if np.unique(indices).size != indices.size:
        return "names an index twice"
    return ""
