"""A piece: the stretch of a file that becomes one chunk."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass

_LEADING_BLANK_LINES = re.compile(r"\s*\n")
_NEWLINE = re.compile(r"\n")


@dataclass(frozen=True, slots=True)
class Piece:
    """Characters `start` to `end` of a text; the symbol it defines or is part of, where known."""

    start: int
    end: int
    symbol: str | None = None


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece's text without the blank around it; lines count from 1, both ends included."""

    text: str
    start_line: int
    end_line: int
    symbol: str | None


def passages(text: str, pieces: list[Piece]) -> list[Passage]:
    """The pieces as chunks: blank ones dropped, outer blank lines cut off, the first line's indent kept."""
    newlines = [match.start() for match in _NEWLINE.finditer(text)]
    found = []
    for piece in pieces:
        start, end = trimmed(text, piece.start, piece.end)
        if start == end:
            continue
        first = bisect_right(newlines, start - 1) + 1
        last = bisect_right(newlines, end - 1) + 1
        found.append(Passage(text[start:end], first, last, piece.symbol))
    return found


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The stretch without outer blank lines and trailing blank; empty if there is nothing else."""
    body = text[start:end].rstrip()
    end = start + len(body)
    blank = _LEADING_BLANK_LINES.match(body)
    start += blank.end() if blank else 0
    if start and text[start - 1] != "\n":
        # Begins within a line: what stands before it on that line is another piece's.
        start = end - len(text[start:end].lstrip())
    return start, end
