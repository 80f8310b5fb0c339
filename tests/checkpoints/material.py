"""What recipes of small checkpoints share: numbers that are the same on every machine, and words."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

#: Each is one token of the small vocabularies, with the space before it.
WORDS = tuple(
    word
    for line in (
        "house tree red run code water seven music def return class import value index list",
        "open close read write loop while token vector space model query chunk batch worker",
        "queue store point search merge plan name file line error check number letter green",
        "blue stone river cloud field paper table window garden winter summer north south",
    )
    for word in line.split()
)


class Draw:
    """Uniform numbers from PCG64, whose bits become floats by shifting alone: no machine rounds otherwise."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def uniform(self, *shape: int, deviation: float, mean: float = 0.0) -> Floats:
        """float32 of that mean and standard deviation."""
        words = self._bits.random_raw((int(np.prod(shape)) + 1) // 2)
        halves = words.view(np.int32)[: int(np.prod(shape))].reshape(shape)
        # Powers of two and one product in float32: exact, but for one rounding that IEEE 754 prescribes.
        centred = halves.astype(np.float32) * np.float32(2.0**-31)
        return np.asarray(centred * np.float32(deviation * 3**0.5) + np.float32(mean), np.float32)


def sentence(tokens: int, seed: int = 0) -> str:
    """A text of that many words, each one token."""
    count = len(WORDS)
    return " ".join(WORDS[(i * i * 7 + i * 11 + seed * 13 + tokens) % count] for i in range(tokens))


def write_json(file: Path, content: Any) -> None:
    """Write one of a checkpoint's JSON files."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True), encoding="utf-8")


def characters() -> Iterable[str]:
    """Printable ASCII but the space, and some letters beyond it."""
    yield from (chr(code) for code in range(33, 127))
    yield from "äöüßéøÅ汉字漢かなλΩ🙂"


def encoded(values: npt.NDArray[Any]) -> str:
    """float32 values as base64, for a JSON file."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def decoded(text: str, width: int) -> Floats:
    """`[n, width]` float32."""
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(-1, width).astype(np.float32)


#: Values of a digest: the first of the vector as they are, and as many projections of all of it.
DIGEST = 16


def digests(vectors: npt.NDArray[Any]) -> Floats:
    """`[n, d]` to `[n, 2 · DIGEST]`: the first values, and seeded projections that see every value.

    A projection's row has length 1 and signs only, so an error of the vector shows in it at its own size.
    """
    width = vectors.shape[1]
    signs = np.sign(Draw(7).uniform(width, DIGEST, deviation=1.0)).astype(np.float64)
    projected = vectors.astype(np.float64) @ signs / width**0.5
    return np.concatenate([vectors[:, :DIGEST], projected], axis=1).astype(np.float32)
