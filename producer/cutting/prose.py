"""Cutting prose, and whatever has no grammar, at paragraphs, lines, sentences and words, in that order."""

from __future__ import annotations

from collections.abc import Iterator

from producer.cutting.pieces import Piece

#: The splitter sees this many characters at once: on text without structure its time grows with the square.
_SLAB = 64 * 1024


def prose_pieces(text: str, capacity: int, *, markdown: bool = False) -> list[Piece]:
    """Pieces of at most `capacity` characters that cover the text; markdown is cut at its sections first."""
    return [Piece(start, end) for start, end in prose_spans(text, capacity, markdown=markdown)]


def prose_spans(text: str, capacity: int, *, markdown: bool = False) -> Iterator[tuple[int, int]]:
    """Starts and ends, in order and without gaps."""
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    splitter = (MarkdownSplitter if markdown else TextSplitter)(capacity, trim=False)
    slab = max(_SLAB, 4 * capacity)
    start = 0
    while start < len(text):
        end = min(start + slab, len(text))
        starts = [start + offset for offset, _ in splitter.chunk_indices(text[start:end])] or [start]
        # The last piece may only be short because the slab ends: the next slab begins with it.
        if end < len(text) and len(starts) > 1:
            end = starts.pop()
        yield from zip(starts, [*starts[1:], end], strict=True)
        start = end
