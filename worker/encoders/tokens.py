"""Texts to token arrays, padded or packed: the true count, the cut, micro-batches by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from registry.errors import EncodeError, WeightsError
from worker.encoders.base import MicroBatch, Prepared, Window

#: Text handed to the tokenizer at once. Characters. It bounds the memory of its result (about 0.3 kB for a
#: token, so 80 MB for the densest text); a larger value gains no speed.
GROUP_CHARS = 1 << 18

Ids = npt.NDArray[np.int64]
Starts = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Padded:
    """Token ids and attention mask of a micro-batch, both `[b, t]` int64; the mask is 0 on padding."""

    ids: Ids
    mask: Ids

    @property
    def flat_ids(self) -> Ids:
        """The ids of all texts without padding, one text after the other `[t]`."""
        flat: Ids = self.ids[self.mask == 1]
        return flat

    @property
    def starts(self) -> Starts:
        """Where each text begins in `flat_ids`, and where the last one ends: `[b + 1]`."""
        return _starts(self.mask.sum(axis=1))


@dataclass(frozen=True)
class Packed:
    """Token ids of a micro-batch, one text after the other without padding."""

    #: `[t]`.
    flat_ids: Ids
    #: Where each text begins, and where the last one ends: `[b + 1]`.
    starts: Starts

    @property
    def ids(self) -> Ids:
        """As the one row that a model takes: `[1, t]`."""
        return self.flat_ids[None]

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(np.diff(self.starts).max())

    def counted(self, own: Ids) -> Ids:
        """How many tokens of the same text stand before each, without those where `own` is 0: `[t]`."""
        before = np.cumsum(own) - own
        counted: Ids = before - np.repeat(before[self.starts[:-1]], np.diff(self.starts))
        return counted

    @property
    def positions(self) -> Ids:
        """Each token's place in its text, from 0: `[t]`."""
        return self.counted(np.ones_like(self.flat_ids))


class TextTokenizer:
    """A model's own tokenizer, without the truncation and the padding that its file may bake in.

    Upstream's file for MiniLM truncates at 128 and pads to 128, both wrong here. So texts are tokenised
    whole, which also gives their true length, and are cut afterwards exactly as the tokenizer would: the
    first tokens stay, and the special tokens around them. A text is never cut before it is tokenised, as a
    count would then be a guess; 1 MB of text takes 0.1 to 0.8 s (measured, one core), and the limit on a
    chunk's size bounds it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_tokens: int,
        *,
        pad_id: int,
        padding_side: Literal["left", "right"],
        packed: bool = False,
    ) -> None:
        """Take a copy of `tokenizer`, so that whoever else holds it changes nothing here.

        `packed`: micro-batches are `Packed`, and otherwise `Padded`.
        """
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._max_tokens = max_tokens
        self._pad_id = pad_id
        self._left = padding_side == "left"
        self._packed = packed
        self._trailing = _trailing_specials(self._tokenizer)

    def prepare(self, texts: Sequence[str], budget: int) -> Prepared:
        """Tokenise, cut, sort by length, pack micro-batches of at most `budget` tokens each, with padding.

        A text longer than the budget goes alone. Raises UnicodeEncodeError or TypeError on a text that is
        not valid Unicode (a lone surrogate).
        """
        kept_ids, seen = self._tokenise(texts)
        kept = np.fromiter(map(len, kept_ids), np.int32, len(kept_ids))
        groups = pack(kept, budget, packed=self._packed)
        return Prepared(
            [self._micro_batch(rows, [kept_ids[row] for row in rows]) for rows in groups], seen, kept
        )

    def windows(self, text: str, prefix: str = "") -> list[Window]:
        """All tokens of prefix and text, in windows of the limit; each begins with the leading special tokens
        and those of the prefix, and ends with the trailing ones. The first is what `prepare` keeps.

        Where prefix and text share a token, it counts as the text's. Raises EncodeError if the limit leaves
        no room for a text, and as `prepare`.
        """
        ids = self._tokenizer.encode(prefix + text).ids
        end = len(ids) - self._trailing
        alone = self._tokenizer.encode(prefix).ids
        head = _common(ids[:end], alone[: len(alone) - self._trailing])
        room = self._max_tokens - head - self._trailing
        if room < 1:
            raise EncodeError(f"the prefix takes all of the {self._max_tokens} tokens of the limit")
        bodies = [ids[at : min(at + room, end)] for at in range(head, max(end, head + 1), room)]
        return [Window([*ids[:head], *body, *ids[end:]], len(body)) for body in bodies]

    def pack(self, windows: Sequence[Window], budget: int) -> list[MicroBatch]:
        """Micro-batches of neighbouring windows; all but a text's last are equally long."""
        rows = [window.tokens for window in windows]
        at_once = max(1, budget // max(1, max(map(len, rows), default=1)))
        groups = [range(at, min(at + at_once, len(rows))) for at in range(0, len(rows), at_once)]
        return [self._micro_batch(tuple(group), [rows[at] for at in group]) for group in groups]

    @property
    def size(self) -> int:
        """Rows of embeddings that its ids need."""
        return rows_needed(self._tokenizer)

    def id_of(self, token: str) -> int:
        """The id of a token; raises WeightsError if the vocabulary lacks it."""
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise WeightsError(f"the tokenizer has no token {token!r}; take it from the model's snapshot")
        return found

    def _tokenise(self, texts: Sequence[str]) -> tuple[list[list[int]], npt.NDArray[np.int32]]:
        kept: list[list[int]] = []
        seen = np.zeros(len(texts), np.int32)
        for group in _groups(texts):
            for encoding in self._tokenizer.encode_batch_fast(group):
                ids = encoding.ids
                seen[len(kept)] = len(ids)
                kept.append(self._cut(ids))
        return kept, seen

    def _cut(self, ids: list[int]) -> list[int]:
        if len(ids) <= self._max_tokens:
            return ids
        return ids[: self._max_tokens - self._trailing] + ids[len(ids) - self._trailing :]

    def _micro_batch(self, positions: tuple[int, ...], rows: list[list[int]]) -> MicroBatch:
        """`rows` of token ids, the first of which is the longest."""
        lengths = [len(row) for row in rows]
        tokens: Padded | Packed
        if self._packed:
            if not all(lengths):
                # Its last token would be its neighbour's.
                raise EncodeError("a text without any token has no vector")
            tokens = Packed(np.concatenate(rows, dtype=np.int64), _starts(lengths))
        else:
            tokens = self._pad(rows)
        return MicroBatch(
            rows=positions,
            tokens=tokens,
            useful_tokens=sum(lengths),
            padded_tokens=tokens.ids.size,
            longest=lengths[0],
        )

    def _pad(self, rows: list[list[int]]) -> Padded:
        """`rows` as arrays as wide as the first, which is the longest."""
        width = len(rows[0])
        ids = np.full((len(rows), width), self._pad_id, np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for i, row in enumerate(rows):
            span = slice(width - len(row), width) if self._left else slice(0, len(row))
            ids[i, span] = row
            mask[i, span] = 1
        return Padded(ids, mask)


def pack(lengths: npt.NDArray[np.int32], budget: int, *, packed: bool = False) -> list[tuple[int, ...]]:
    """Rows of each micro-batch: longest texts first, so that what needs most memory runs first.

    Sorting by true length keeps the padding small; ties keep their order, so packing is deterministic. A text
    takes as many tokens of the budget as the longest beside it; its own number where it is `packed`.
    """
    batches: list[tuple[int, ...]] = []
    current: list[int] = []
    width = total = 0
    for row in np.argsort(-lengths, kind="stable").tolist():
        cost = max(1, int(lengths[row])) if packed or not current else width
        if current and total + cost > budget:
            batches.append(tuple(current))
            current = []
            cost = max(1, int(lengths[row]))
        if not current:
            width, total = cost, 0
        total += cost
        current.append(row)
    if current:
        batches.append(tuple(current))
    return batches


def rows_needed(tokenizer: Tokenizer) -> int:
    """One more than the highest id: ids may have gaps, so how many there are says too little."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)


def _starts(lengths: Sequence[int] | npt.NDArray[Any]) -> Starts:
    starts = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, dtype=np.int32, out=starts[1:])
    return starts


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the prefix that two lists share."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _groups(texts: Sequence[str]) -> list[list[str]]:
    """Neighbouring texts of together at most GROUP_CHARS characters; a longer text stands alone."""
    groups: list[list[str]] = []
    room = 0
    for text in texts:
        if not groups or len(text) > room:
            groups.append([])
            room = GROUP_CHARS
        groups[-1].append(text)
        room -= len(text)
    return groups


def _trailing_specials(tokenizer: Tokenizer) -> int:
    """How many special tokens the tokenizer puts after a text ([SEP], </s>, none)."""
    count = 0
    for special in reversed(tokenizer.encode("a").special_tokens_mask):
        if not special:
            break
        count += 1
    return count
