"""Golden vectors: what every encoder of a space must give for the same few texts, whatever it runs on.

They tell one set of weights, one pooling, one prompt or one adapter from another; they do not tell float32
from bfloat16, which may share a space.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from registry.codecs import Dense, Multi, Part, Sparse, Vectors, pack_part, unpack_part
from registry.errors import CodecError, GoldenMismatch, InfrastructureError
from registry.models import OutputKind
from worker.encoders.base import Encoder, Side
from worker.encoders.encode import encode
from worker.encoders.loop import NO_MEMORY

#: Smallest cosine between a golden vector and what an encoder gives. bfloat16 is within it; noise of 0.01 on
#: each value of a unit vector is not.
AGREEMENT = 0.999
#: A weight of a sparse vector that one side lacks may be this share of the largest: around zero, rounding
#: decides whether it is there.
TINY_WEIGHT = 0.01
#: Rows kept of a multi-vector, from its first to its last.
ROWS = 4
#: A blob of goldens that claims more is refused unread. Bytes.
MAX_BYTES = 1 << 20

#: The same for all models, and never to be changed: every recorded golden would be orphaned. The second is
#: over 128 tokens for every tokenizer, so that a cut at 128 shows, and under every model's limit.
TEXTS: tuple[tuple[Side, str], ...] = (
    ("document", "A lighthouse keeper writes down every ship that passes in the night."),
    (
        "document",
        "The harbour master keeps three books. In the first he notes each vessel by name, with the hour of "
        "its arrival, the depth of its keel and the port it left. The second holds what the cranes lifted: "
        "timber, grain, copper wire, crates of oranges, and once a grand piano that nobody ever came to "
        "fetch. The third book is for the weather. Every morning at six he reads the glass, looks at the "
        "flags on the mole, and writes one line; when a storm is near he writes two. After forty years the "
        "shelves behind his desk are full, and students come from the city to copy his columns, because no "
        "instrument has watched this coast for so long. He lets them, on one condition: whoever finds a "
        "mistake must show it to him before the ink of the correction is dry.",
    ),
    ("document", "Größe: 3 µm – naïve café № 7 · Привет, мир · 東京の天気は晴れです · مرحبا بالعالم · 🦊🌍"),
    (
        "document",
        "def moving_average(values: list[float], width: int) -> list[float]:\n"
        '    """Means of each window of `width` neighbours."""\n'
        "    if width < 1:\n"
        '        raise ValueError(f"width is {width}, not at least 1")\n'
        "    total, out = 0.0, []\n"
        "    for i, value in enumerate(values):\n"
        "        total += value - (values[i - width] if i >= width else 0.0)\n"
        "        if i >= width - 1:\n"
        "            out.append(total / width)\n"
        "    return out\n",
    ),
    ("query", "how is the average of a sliding window computed"),
)


@dataclass(frozen=True)
class Golden:
    """What one output of a model gives for TEXTS."""

    #: Tokens of each text, the prompt included, before any cut.
    tokens: tuple[int, ...]
    #: Rows that each text's multi-vector has; 1 for other outputs.
    rows: tuple[int, ...]
    #: One per text; of a multi-vector ROWS rows at most.
    vectors: Vectors


@dataclass(frozen=True)
class Agreement:
    """How far two goldens agree."""

    #: Smallest cosine over all texts and rows.
    worst: float
    #: What does not agree, in words; empty if all does.
    problem: str = ""


def measure(
    encoder: Encoder,
    kinds: Sequence[OutputKind],
    device_lock: AbstractContextManager[Any] | None = None,
    *,
    alone: bool = False,
) -> dict[OutputKind, Golden]:
    """The encoder's goldens of these outputs, from padded batches, or each text `alone`.

    Raises GoldenMismatch if it refuses a text, InfrastructureError if the device fails or has no memory left.
    """
    lock = device_lock if device_lock is not None else threading.Lock()
    parts = []
    for side in ("document", "query"):
        texts = [text for where, text in TEXTS if where == side]
        for group in [[text] for text in texts] if alone else [texts]:
            part = encode(encoder, group, side, kinds, device_lock=lock)
            if part.rejected:
                why = next(iter(part.rejected.values()))
                said = f"{encoder.model} on {encoder.numerics.device} cannot embed a golden text: {why}"
                raise InfrastructureError(said) if why.startswith(NO_MEMORY) else GoldenMismatch(said)
            parts.append(part)
    return {kind: _golden(kind, parts) for kind in kinds}


def agreement(golden: Golden, given: Golden) -> Agreement:
    """Compare what an encoder gives with a golden; both must be of one output."""
    if golden.tokens != given.tokens:
        return Agreement(
            0.0, f"it reads the golden texts as {_said(given.tokens)} tokens, not {_said(golden.tokens)}"
        )
    if golden.rows != given.rows or type(golden.vectors) is not type(given.vectors):
        return Agreement(0.0, f"it gives the golden texts {_said(given.rows)} rows, not {_said(golden.rows)}")
    cosines = [_cosine(golden.vectors, given.vectors, i) for i in range(len(TEXTS))]
    worst = min(cosines)
    if worst >= AGREEMENT:
        return Agreement(worst)
    return Agreement(
        worst,
        f"its vector of golden text {cosines.index(worst) + 1} has cosine {worst:.4f} with the golden one, "
        f"under {AGREEMENT}",
    )


def pack_golden(golden: Golden) -> bytes:
    """A blob of a few kB: the vectors in float16, in a checked frame."""
    part = Part(
        {_kind(golden.vectors): _half(golden.vectors)}, np.array(golden.tokens), np.array(golden.rows)
    )
    return pack_part(part)


def unpack_golden(blob: bytes) -> Golden:
    """Read what `pack_golden` wrote. Raises CodecError if it did not, or wrote it for other texts."""
    part = unpack_part(blob, MAX_BYTES)
    if len(part) != len(TEXTS) or len(part.vectors) != 1:
        raise CodecError(f"golden vectors of {len(part)} texts, not of the {len(TEXTS)} golden texts")
    (vectors,) = part.vectors.values()
    return Golden(tuple(part.tokens_seen.tolist()), tuple(part.tokens_kept.tolist()), vectors)


def _golden(kind: OutputKind, parts: Sequence[Part]) -> Golden:
    tokens = [count for part in parts for count in part.tokens_seen.tolist()]
    each = [part.vectors[kind] for part in parts]
    if kind == "dense":
        dense = np.concatenate([vectors.values for vectors in each])
        return Golden(tuple(tokens), (1,) * len(tokens), Dense(dense))
    texts = [(vectors, i) for vectors in each for i in range(len(vectors))]
    if kind == "sparse":
        rows = [vectors.row(i) for vectors, i in texts if isinstance(vectors, Sparse)]
        indices = np.concatenate([index for index, _ in rows])
        values = np.concatenate([value for _, value in rows])
        offsets = _offsets([len(index) for index, _ in rows])
        return Golden(tuple(tokens), (1,) * len(tokens), Sparse(indices, values, offsets))
    whole = [vectors.row(i) for vectors, i in texts if isinstance(vectors, Multi)]
    kept = [row[np.unique(np.linspace(0, len(row) - 1, min(ROWS, len(row))).astype(int))] for row in whole]
    multi = Multi(np.concatenate(kept), _offsets([len(row) for row in kept]))
    return Golden(tuple(tokens), tuple(len(row) for row in whole), multi)


def _offsets(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _cosine(golden: Vectors, given: Vectors, i: int) -> float:
    """The smallest cosine of text `i`; 0 where one side says something that the other does not."""
    if isinstance(golden, Dense) and isinstance(given, Dense):
        return _least(golden.values[i : i + 1], given.values[i : i + 1])
    if isinstance(golden, Multi) and isinstance(given, Multi):
        return _least(golden.row(i), given.row(i))
    if isinstance(golden, Sparse) and isinstance(given, Sparse):
        return _sparse_cosine(golden.row(i), given.row(i))
    return 0.0


def _sparse_cosine(a: tuple[Any, Any], b: tuple[Any, Any]) -> float:
    """Over the union of their indices; 0 if one lacks a weight of the other that is not tiny."""
    union = np.union1d(a[0], b[0])
    rows = np.zeros((2, len(union)), np.float64)
    for row, (indices, values) in enumerate((a, b)):
        rows[row, np.searchsorted(union, indices)] = values
    weights = np.abs(rows).max(axis=0, initial=0.0)
    lacking = weights[(rows == 0).any(axis=0)]
    if (lacking > TINY_WEIGHT * weights.max(initial=0.0)).any():
        return 0.0
    return _least(rows[:1], rows[1:])


def _least(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> float:
    if a.shape != b.shape:
        return 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    # Two vectors of nothing (a sparse one without a weight) are the same.
    same = (np.linalg.norm(a, axis=1) == 0) & (np.linalg.norm(b, axis=1) == 0)
    cosines = np.where(same, 1.0, (a * b).sum(axis=1) / np.where(lengths == 0, 1.0, lengths))
    return float(cosines.min(initial=1.0))


def _kind(vectors: Vectors) -> OutputKind:
    if isinstance(vectors, Dense):
        return "dense"
    return "sparse" if isinstance(vectors, Sparse) else "multi"


def _half(vectors: Vectors) -> Vectors:
    values = vectors.values.astype(np.float16)
    if isinstance(vectors, Dense):
        return Dense(values)
    if isinstance(vectors, Sparse):
        return Sparse(vectors.indices, values, vectors.offsets)
    return Multi(values, vectors.offsets)


def _said(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))
