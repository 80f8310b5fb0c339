"""What bge_m3.json has numbers for."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints.bge_m3 import MAX_TOKENS
from tests.references.texts import texts

REFERENCES = Path(__file__).with_name("bge_m3.json")
TEXTS = texts(MAX_TOKENS, 2) | {
    "only specials": "<s> </s> <pad> <unk>",
    "specials inside": "red <mask> tree <s> house </s> water <pad> stone <unk> river",
}


def rows_shown(count: int) -> list[int]:
    """Which rows of a multi-vector have numbers: of a short one all; of a longer one its ends and more."""
    return sorted({*range(min(count, 12)), *range(0, count, 41), *range(max(0, count - 3), count)})
