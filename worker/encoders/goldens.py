"""Golden vectors: what a model must give for a text, whatever file its weights came from."""

from __future__ import annotations

from dataclasses import dataclass

#: Largest difference of a value from its golden one; float32 on any backend is within 1e-5.
GOLDEN_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Golden:
    """A text and the first values of its normalised document vector."""

    text: str
    head: tuple[float, ...]


#: Made with sentence-transformers 6.2 in float32 from the weights whose SHA-256 the registry names. The text
#: is over 128 tokens, so that a truncation at 128 shows.
_MINILM = Golden(
    "for row in rows: total += row.price * row.count\n" * 14,
    (-0.002841, 0.038487, -0.039548, 0.049077, -0.068547, -0.011932, 0.030654, 0.018942),
)
GOLDENS: dict[str, Golden] = {"qdrant-minilm-onnx": _MINILM, "all-miniLM-l6": _MINILM}
