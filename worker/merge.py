"""The merge: a batch's chunks and its models' parts become points, derived vectors included."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from registry.chunks import Chunk
from registry.codecs import Dense, Multi, Part, Sparse
from registry.errors import CodecError
from registry.plan import NamedVector, Plan
from store.base import SparseVector, Vector
from worker.half_precision import widened

Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Merged:
    """What a batch comes to."""

    #: Named vectors per chunk id.
    vectors: dict[str, dict[str, Vector]]
    #: Chunks no model refused, in order.
    chunks: list[Chunk]
    #: Chunk and reason, for those a model refused.
    rejected: list[tuple[Chunk, str]]
    #: Tokens seen and kept, per chunk id and model.
    tokens: dict[str, dict[str, tuple[int, int]]]
    #: Multi-vectors that lost rows to the store's ceiling, of texts that the model itself read whole.
    shortened: int = 0


def normalise(values: Matrix) -> Matrix:
    """Rows of `[n, d]` scaled to unit length; zero rows stay zero."""
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(lengths == 0, 1, lengths), np.float32)


def prefix(values: Matrix, width: int) -> Matrix:
    """The Matryoshka prefix `[n, width]`, normalised again."""
    return normalise(values[:, :width])


def fuse(members: Sequence[Matrix], method: str, weights: Sequence[float]) -> Matrix:
    """One vector of several: members `[n, d_i]` are normalised, cut to the smallest width, combined by
    `weighted_average`, `max_pooling` or `concat`, and normalised."""
    width = min(member.shape[1] for member in members)
    cut = [normalise(member)[:, :width] for member in members]
    match method:
        case "weighted_average":
            total = sum(weights)
            fused = sum((w / total) * m for w, m in zip(weights, cut, strict=True))
        case "max_pooling":
            fused = np.maximum.reduce(cut)
        case "concat":
            fused = np.concatenate(cut, axis=1)
        case _:
            raise ValueError(f"unknown ensemble method {method!r}")
    return normalise(np.asarray(fused, np.float32))


def merge(plan: Plan, names: Sequence[str], chunks: Sequence[Chunk], parts: Mapping[str, Part]) -> Merged:
    """Merge the parts of all models into the named vectors `names` of every chunk.

    Raises CodecError if a part does not belong to these chunks or lacks an output it must have.
    """
    for model, part in parts.items():
        if len(part) != len(chunks):
            raise CodecError(f"the part of {model} is for {len(part)} texts, the batch has {len(chunks)}")
    columns = _columns(plan, names, parts)
    reasons: dict[int, str] = {}
    for model, part in parts.items():
        for row, why in part.rejected.items():
            reasons.setdefault(row, f"{model}: {why}")
    kept = [row for row in range(len(chunks)) if row not in reasons]
    return Merged(
        vectors={
            chunks[row].id: {name: _cell(column, row) for name, column in columns.items()} for row in kept
        },
        chunks=[chunks[row] for row in kept],
        rejected=[(chunks[row], why) for row, why in sorted(reasons.items())],
        tokens={
            chunks[row].id: {
                model: (int(part.tokens_seen[row]), int(part.tokens_kept[row]))
                for model, part in parts.items()
            }
            for row in kept
        },
        shortened=sum(_shortened(part, row) for part in parts.values() for row in kept),
    )


def _shortened(part: Part, row: int) -> bool:
    whole = int(part.tokens_seen[row]) == int(part.tokens_kept[row])
    return whole and str(row) in part.notes.get("rows_cut", {})


def named_vectors(plan: Plan, names: Sequence[str], parts: Mapping[str, Part], row: int) -> dict[str, Vector]:
    """The named vectors of one text, by name. Raises as `merge`, and PlanError for an unknown name."""
    for name in names:
        plan.vector(name)
    return {name: _cell(column, row) for name, column in _columns(plan, names, parts).items()}


def _columns(
    plan: Plan, names: Sequence[str], parts: Mapping[str, Part]
) -> dict[str, Matrix | Sparse | Multi]:
    wanted = [vector for vector in plan.vectors() if vector.name in set(names)]
    return {vector.name: _column(vector, parts) for vector in wanted}


def _column(vector: NamedVector, parts: Mapping[str, Part]) -> Matrix | Sparse | Multi:
    """All rows of one named vector."""
    match vector.derived:
        case "matryoshka":
            return prefix(_dense(parts, vector.models[0]), vector.dimension)
        case "ensemble":
            method, weights = json.loads(vector.recipe)
            return fuse([_dense(parts, model) for model in vector.models], method, weights)
        case _:
            output = _output(parts, vector.models[0], vector.kind)
            found = widened(output, normalised=vector.spaces[0].normalised)
            return np.asarray(found.values, np.float32) if isinstance(found, Dense) else found


def _output(parts: Mapping[str, Part], model: str, kind: Any) -> Dense | Sparse | Multi:
    part = parts.get(model)
    if part is None or kind not in part.vectors:
        raise CodecError(f"the part of {model} has no {kind} vectors")
    found: Dense | Sparse | Multi = part.vectors[kind]
    return found


def _dense(parts: Mapping[str, Part], model: str) -> Matrix:
    return np.asarray(_output(parts, model, "dense").values, np.float32)


def _cell(column: Matrix | Sparse | Multi, row: int) -> Vector:
    if isinstance(column, Sparse):
        indices, values = column.row(row)
        return SparseVector(np.asarray(indices, np.int64), np.asarray(values, np.float32))
    if isinstance(column, Multi):
        return np.asarray(column.row(row), np.float32)
    dense: Matrix = column[row]
    return dense
