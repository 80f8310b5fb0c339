"""The atoms of a source file: what a cutter never cuts, found along the syntax tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from producer.cutting.languages import Grammar, symbol_of
from producer.cutting.prose import prose_spans

if TYPE_CHECKING:
    from tree_sitter import Node

#: Siblings that belong to the definition they stand directly above; Rust's attributes and comments included.
_ATTACHED = ("comment", "decorator", "attribute_item", "annotation")
#: Nodes whose text is not all in their children; they are cut as text.
_OPAQUE = ("string", "comment", "jsx_text", "preproc_arg")


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """A definition too large for one chunk: pieces of different scopes are not mixed."""

    symbol: str | None


@dataclass(frozen=True, slots=True)
class Atom:
    """What is never cut: a definition or a statement within the capacity, or a part of one beyond it."""

    start: int
    end: int
    definition: bool
    scope: Scope
    symbol: str | None = None


@dataclass(frozen=True)
class Source:
    """A text with its grammar, and the arithmetic between the tree's bytes and our characters."""

    text: str
    grammar: Grammar
    capacity: int

    @cached_property
    def encoded(self) -> bytes:
        """What the parser reads."""
        return self.text.encode()

    @cached_property
    def _characters(self) -> npt.NDArray[np.int32] | None:
        """Character offset of each byte; None where both are the same."""
        if self.text.isascii():
            return None
        octets = np.frombuffer(self.encoded, np.uint8)
        counts = np.cumsum((octets & 0xC0) != 0x80, dtype=np.int32)
        return np.concatenate((np.zeros(1, np.int32), counts))

    def span(self, node: Node) -> tuple[int, int]:
        """Start and end of a node in characters."""
        table = self._characters
        if table is None:
            return node.start_byte, node.end_byte
        return int(table[node.start_byte]), int(table[node.end_byte])

    def line_start(self, at: int) -> int:
        """Back to the beginning of the line if only blank is between, else where it is."""
        begin = at
        while begin and self.text[begin - 1] in " \t\f":
            begin -= 1
        return begin if begin == 0 or self.text[begin - 1] == "\n" else at

    def begins_line(self, at: int) -> bool:
        """Whether only blank stands before it on its line."""
        start = self.line_start(at)
        return start == 0 or self.text[start - 1] == "\n"

    def atoms(self, root: Node) -> Iterator[Atom]:
        """Depth first, in order; by hand, for a tree may be deeper than Python's stack."""
        top = Scope(None)
        stack = [self._within(root, top)]
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
            elif isinstance(step, Atom):
                yield step
            else:
                stack.append(self._within(*step))

    def _within(self, node: Node, scope: Scope) -> Iterator[Atom | tuple[Node, Scope]]:
        """What a node too large is made of: atoms, and nodes that are too large themselves."""
        start, end = self.span(node)
        children = [] if any(word in node.type for word in _OPAQUE) else node.children
        # What the parser only supposed to be there has no width.
        children = [child for child in children if child.start_byte < child.end_byte]
        cursor = start
        pending: list[Node] = []
        for index, child in enumerate(children):
            begin, stop = self.span(child)
            yield from self._text_atoms(cursor, begin, scope)
            cursor = max(cursor, stop)
            following = children[index + 1] if index + 1 < len(children) else None
            if self._attached(child, following):
                pending.append(child)
                continue
            yield from self._unit(child, pending, scope, node)
            pending = []
        yield from self._text_atoms(cursor, end, scope)

    def _attached(self, node: Node, following: Node | None) -> bool:
        """Whether a comment or attribute stands directly above what follows, on lines of its own."""
        if following is None or not any(word in node.type for word in _ATTACHED):
            return False
        begin, stop = self.span(node)
        if not self.begins_line(begin):
            return False
        # A Rust doc comment ends after its newline, others before.
        between = self.text[max(begin, stop - 1) : self.span(following)[0]]
        return between.count("\n") <= 1 and not between[1:].strip()

    def _unit(
        self, node: Node, attached: list[Node], scope: Scope, parent: Node
    ) -> Iterator[Atom | tuple[Node, Scope]]:
        """A child with what is attached to it."""
        start, end = self.span(node)
        begin = self.line_start(start)
        above = self.line_start(self.span(attached[0])[0]) if attached else begin
        definition = self.begins_line(start) and self.grammar.defines(node)
        symbol = symbol_of(node) if definition else None
        if definition and end - above <= self.capacity:
            yield Atom(above, end, True, scope, _qualified(scope, symbol))
            return
        fits = end - begin <= self.capacity
        inner = scope
        if (
            definition
            and not fits
            and not (symbol and self.grammar.defines(parent) and _last(scope) == symbol)
        ):
            # A decorator or an export around a definition is not a scope of its own.
            inner = Scope(_qualified(scope, symbol))
        for comment in attached:
            yield from self._text_atoms(*self.span(comment), inner)
        if fits:
            yield Atom(start, end, definition, inner, _qualified(scope, symbol))
        else:
            yield node, inner

    def _text_atoms(self, start: int, end: int, scope: Scope) -> Iterator[Atom]:
        """Text that no node describes."""
        body = self.text[start:end]
        if not body or body.isspace():
            return
        spans = [(0, len(body))] if len(body) <= self.capacity else prose_spans(body, self.capacity)
        for first, last in spans:
            yield Atom(start + first, start + last, False, scope)


def _qualified(scope: Scope, symbol: str | None) -> str | None:
    if scope.symbol and symbol:
        return f"{scope.symbol}.{symbol}"
    return symbol


def _last(scope: Scope) -> str | None:
    return scope.symbol.rsplit(".", 1)[-1] if scope.symbol else None
