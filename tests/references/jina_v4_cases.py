"""What jina-embeddings-v4 is compared on, and how its reference numbers are kept.

The maker of the numbers and the tests read the same cases.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tests.checkpoints.jina_v4 import TASKS, words

Floats = npt.NDArray[np.floating[Any]]
REFERENCES = Path(__file__).with_name("jina_v4.json")
#: The model's own limit is 32768 tokens; this one lets a test reach it.
LIMIT = 520
#: Tokens of the prefix "Passage: " before a word.
_PREFIX = 2
_CODE = "def count_tokens(texts):\n    return sum(len(t.split()) for t in texts)\n"
_SENTENCE = "The river ran under the copper bridge, and nobody counted the boats."
#: Names an existing file in the tests' directory; upstream's sentence-transformers wrapper would open it.
FILE_TEXT = "picture.png"


@dataclass(frozen=True)
class Case:
    """One text under one task and side."""

    name: str
    text: str
    task: str = "retrieval"
    side: Literal["query", "document"] = "document"

    @property
    def key(self) -> str:
        """Its name among the references."""
        return f"{self.task}/{self.side}/{self.name}"


CASES: tuple[Case, ...] = (
    Case("one word", "return"),
    Case("1 token after the prefix", words(1, 1)),
    *(Case(f"{n} tokens", words(n, n - _PREFIX)) for n in (127, 128, 129, 256, 513, LIMIT)),
    Case("cut at the limit", words(3, LIMIT + 100)),
    Case("empty", ""),
    Case("blanks", " \n\t  \r\n"),
    Case("unicode", "Größe 汉字 かな 🙂👩‍👩‍👧 e\u0301 \u00a0"),
    Case("special tokens", "seven<|im_end|> <|endoftext|>river <|fim_prefix|>x<tool_call>"),
    Case("vision tokens", "light <|vision_start|><|image_pad|><|image_pad|><|vision_end|> green thread"),
    Case("address", "https://example.org/cat.png"),
    Case("file", FILE_TEXT),
    *(
        Case(name, text, task, side)  # type: ignore[arg-type]
        for task in TASKS
        for side in ("query", "document")
        for name, text in (("code", _CODE), ("sentence", _SENTENCE))
    ),
)
#: Compared a second time with upstream's `encode_text`, which computes in bfloat16.
BFLOAT16 = (
    "retrieval/document/129 tokens",
    "retrieval/query/code",
    "text-matching/query/sentence",
    "code/document/code",
)


def kept_rows(tokens: int) -> list[int]:
    """Rows of a multi-vector that the references hold whole."""
    return sorted({0, 1, tokens // 2, tokens - 1} & set(range(tokens)))


def signed_sum(rows: Floats) -> Floats:
    """All rows `[t, d]` as one, each with a random sign: `[d]`, of the size of a row."""
    signs = np.random.PCG64([29, len(rows)]).random_raw(len(rows)).view(np.int64) >> 63 | 1
    return np.asarray(signs @ rows.astype(np.float64) / np.sqrt(len(rows)))


def crc(ids: Sequence[int]) -> int:
    """A checksum of token ids."""
    return zlib.crc32(np.asarray(ids, "<i8").tobytes())


def pack(values: Floats) -> list[Any]:
    """An array as its largest value and base64 of int16; off by at most 1/65534 of that value."""
    largest = float(np.abs(values).max())
    steps = np.rint(values / largest * 32767).astype("<i2")
    return [largest, list(values.shape), base64.b64encode(steps.tobytes()).decode()]


def unpack(packed: list[Any]) -> Floats:
    """What `pack` packed, as float64."""
    largest, shape, text = packed
    return np.frombuffer(base64.b64decode(text), "<i2").reshape(shape).astype(np.float64) * (largest / 32767)
