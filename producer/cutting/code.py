"""Cutting code at functions and classes, along the syntax tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from producer.cutting.atoms import Atom, Scope, Source
from producer.cutting.languages import GRAMMARS, parser_of
from producer.cutting.pieces import Piece, trimmed
from producer.cutting.prose import prose_spans

#: Code with more characters than this is cut as text: a syntax tree takes 20 times its source in memory.
MAX_PARSED = 4 << 20
#: Closing brackets and the like stay with what they close, up to this many characters past the capacity.
_CLOSING = 16
#: A piece without definition that is smaller than this part of the capacity joins a neighbour with room.
_SMALL_PART = 20


def code_pieces(text: str, language: str, capacity: int) -> list[Piece]:
    """Pieces that cover the text, for a language in GRAMMARS.

    A definition of at most `capacity` characters (its decorators, comments directly above and indent
    included) is one piece. A larger one is cut: what it defines within is treated likewise, the rest is
    gathered into pieces up to the capacity at the largest syntax nodes that fit. A definition that does
    not begin its line (minified code) is a statement like any other.
    """
    if len(text) > MAX_PARSED:
        return [Piece(start, end) for start, end in prose_spans(text, capacity)]
    source = Source(text, GRAMMARS[language], capacity)
    root = parser_of(language).parse(source.encoded).root_node
    return _cover(source, _join_small(source, _gather(source, source.atoms(root))))


@dataclass(slots=True)
class _Growing:
    """A piece that may still grow."""

    start: int
    end: int
    definition: bool
    scope: Scope
    symbol: str | None
    #: The first of its scope: what follows belongs to it more than what stands before.
    opens: bool


def _gather(source: Source, atoms: Iterator[Atom]) -> list[_Growing]:
    """Definitions alone; neighbouring atoms of one scope together, up to the capacity."""
    gathered: list[_Growing] = []
    scopes: set[Scope] = set()
    for atom in atoms:
        opens = atom.scope not in scopes
        scopes.add(atom.scope)
        last = gathered[-1] if gathered else None
        start = source.line_start(atom.start)
        if (last and start < last.end) or atom.end - start > source.capacity:
            start = atom.start
        if last and _continues(source, last, atom):
            last.end = atom.end
            continue
        symbol = atom.symbol if atom.definition else atom.scope.symbol
        gathered.append(_Growing(start, atom.end, atom.definition, atom.scope, symbol, opens))
    return gathered


def _continues(source: Source, last: _Growing, atom: Atom) -> bool:
    """Whether an atom goes on with the piece before it."""
    if atom.definition:
        return False
    if last.definition:
        # `}` and `;`, and a comment behind a definition on its last line.
        same_line = "\n" not in source.text[last.end : atom.start]
        return same_line and atom.end - last.start <= source.capacity
    return last.scope is atom.scope and atom.end - last.start <= source.capacity


def _join_small(source: Source, pieces: list[_Growing]) -> list[_Growing]:
    """No crumbs: brackets go with what they close, small pieces to a neighbour that has room."""
    small = source.capacity // _SMALL_PART
    joined: list[_Growing] = []
    waiting: _Growing | None = None
    for position, piece in enumerate(pieces):
        if waiting:
            piece.start, waiting = waiting.start, None
        if not piece.definition:
            start, end = trimmed(source.text, piece.start, piece.end)
            before = joined[-1] if joined else None
            after = pieces[position + 1] if position + 1 < len(pieces) else None
            closing = end - start <= _CLOSING and not any(map(str.isalnum, source.text[start:end]))
            room = before.start + source.capacity + _CLOSING if before else 0
            if before and closing and piece.end <= room:
                before.end = piece.end
                continue
            if end - start <= small:
                fits_before = before is not None and piece.end - before.start <= source.capacity
                fits_after = after is not None and after.end - piece.start <= source.capacity
                if before and fits_before and not (piece.opens and fits_after):
                    before.end = piece.end
                    continue
                if fits_after:
                    waiting = piece
                    continue
        joined.append(piece)
    return joined


def _cover(source: Source, pieces: list[_Growing]) -> list[Piece]:
    """Pieces from their starts to the next one's, so that nothing between is lost."""
    if not pieces:
        return [Piece(start, end) for start, end in prose_spans(source.text, source.capacity)]
    starts = [0, *(piece.start for piece in pieces[1:]), len(source.text)]
    return [
        Piece(start, end, piece.symbol) for piece, (start, end) in zip(pieces, pairwise(starts), strict=True)
    ]
