"""The one loop that takes texts through an encoder, and finds the texts it cannot take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from registry.codecs import Dense, Multi, Part, Sparse, Vectors
from registry.errors import EncodeError, V5Error
from registry.models import MAX_MULTIVECTOR_VALUES, OutputKind
from worker.counters import Counters
from worker.encoders.base import Encoder, MicroBatch, Prepared, Side
from worker.encoders.loop import Loop, Work
from worker.encoders.truncation import Windows

logger = logging.getLogger(__name__)


class Stopped(V5Error):
    """The caller's `should_stop` said so between two micro-batches; nothing of this call is kept."""


@dataclass(frozen=True)
class Singly:
    """How texts go through one at a time."""

    order: Sequence[int]
    #: Entered around all that is done with a text; what it raises ends the call.
    around: Callable[[int], AbstractContextManager[None]]
    #: Texts that are not taken at all, and why.
    refused: Mapping[int, str]


class _Texts(Loop):
    """One call's texts, by position, and what came out."""

    def __init__(self, work: Work, texts: Sequence[str]) -> None:
        super().__init__(work)
        self.texts = texts
        self.done: list[tuple[tuple[int, ...], dict[OutputKind, Vectors]]] = []
        #: Texts that go through in windows, once the others are done.
        self.too_long: list[int] = []
        #: Windows of a text, and rows that were cut off a text's multi-vector.
        self.windows: dict[int, int] = {}
        self.rows_cut: dict[int, int] = {}
        self.seen = np.zeros(len(texts), np.int32)
        self.kept = np.zeros(len(texts), np.int32)

    def prepare(self, rows: tuple[int, ...]) -> list[tuple[MicroBatch, tuple[int, ...]]]:
        """See Loop.prepare. A text that cannot even be tokenised is found by halving, and rejected; one over
        the model's limit is set aside where it is not to be cut."""
        short = ""
        groups = None
        try:
            prepared = self.work.prepare([self.texts[row] for row in rows])
        except MemoryError as error:
            short = str(error)
        except Exception as error:
            groups = self.blame(rows, error)
        else:
            return self._fitting(rows, prepared)
        if groups is None:
            groups = self.spare(rows, short)
        return [batch for group in groups for batch in self.prepare(group)]

    def _fitting(self, rows: tuple[int, ...], prepared: Prepared) -> list[tuple[MicroBatch, tuple[int, ...]]]:
        """The micro-batches of these texts, without those that are set aside."""
        index = list(rows)
        self.seen[index] = prepared.tokens_seen
        self.kept[index] = prepared.tokens_kept
        over = self._set_aside(index)
        if over:
            fitting = tuple(row for row in rows if row not in over)
            return self.prepare(fitting) if fitting else []
        return [(b, tuple(rows[row] for row in b.rows)) for b in prepared.micro_batches]

    def _set_aside(self, rows: list[int]) -> set[int]:
        """Those of the texts that are over the limit and not to be cut."""
        encoder = self.work.encoder
        # A query's vector is of one forward pass, as its prompt wants it; and is short, or no query.
        allowed = ("cut", "split-and-pool") if self.work.side == "query" else ("cut",)
        if encoder.truncation in allowed:
            return set()
        over = [row for row in rows if self.seen[row] > self.kept[row]]
        for row in over:
            if encoder.truncation == "split-and-pool":
                self.too_long.append(row)
            else:
                self.reject(
                    row,
                    f"{self.seen[row]} tokens, and {encoder.model} takes {self.kept[row]}; cut the text "
                    "smaller, or plan with --truncate cut or split-and-pool",
                )
                self.kept[row] = 0
        return set(over)

    def keep(self, rows: tuple[int, ...], vectors: dict[OutputKind, Vectors]) -> None:
        """See Loop.keep."""
        multi = vectors.get("multi")
        if isinstance(multi, Multi):
            vectors["multi"], cut = _under_ceiling(multi)
            self.rows_cut.update({rows[i]: count for i, count in cut.items()})
        self.done.append((rows, vectors))

    def take(self, rows: tuple[int, ...]) -> None:
        """Take these texts through, those over the limit last."""
        self.drain(rows)
        while self.too_long:
            self.pool(self.too_long.pop(0))

    def pool(self, row: int) -> None:
        """Take one text through in windows."""
        work = self.work
        windows, short = None, ""
        try:
            windows = work.encoder.windows(self.texts[row], work.side)
        except MemoryError as error:
            short = str(error)
        except Exception as error:
            self.blame((row,), error)
            return
        if windows is None:
            for _ in self.spare((row,), short):
                self.pool(row)
            return
        width = work.encoder.space("multi").dimension if "multi" in work.kinds else 1
        loop = Windows(work, windows, most_rows(width))
        loop.drain(tuple(range(len(windows))))
        if loop.rejected:
            self.reject(row, next(iter(loop.rejected.values())))
            return
        vectors = loop.pool.result()
        try:
            work.check(vectors, 1)
        except EncodeError as error:
            self.blame((row,), error)
            return
        self.done.append(((row,), vectors))
        self.kept[row] = self.seen[row]
        self.windows[row] = len(windows)
        if loop.pool.rows_cut:
            self.rows_cut[row] = loop.pool.rows_cut

    def part(self) -> Part:
        """Everything in the caller's order."""
        work = self.work
        vectors = {kind: self._assemble(kind) for kind in work.kinds}
        notes = {
            **asdict(work.encoder.numerics),
            "forward_seconds": round(work.forward_seconds, 6),
            "tokenise_seconds": round(work.tokenise_seconds, 6),
            "useful_tokens": work.useful_tokens,
            "padded_tokens": work.padded_tokens,
        }
        if work.short:
            notes |= {"oom": work.short, "budget": work.encoder.budget.tokens}
            logger.warning(
                "%s: memory of %s was too short for %d passes of this batch; smaller ones were tried instead",
                work.encoder.model,
                work.encoder.numerics.device,
                work.short,
            )
        if self.windows:
            notes["windows"] = {str(row): count for row, count in sorted(self.windows.items())}
        if self.rows_cut:
            notes["rows_cut"] = {str(row): count for row, count in sorted(self.rows_cut.items())}
            logger.warning(
                "%s: %d multi-vectors of this batch were longer than the store takes; %d rows were cut",
                work.encoder.model,
                len(self.rows_cut),
                sum(self.rows_cut.values()),
            )
        return Part(vectors, self.seen, self.kept, dict(sorted(self.rejected.items())), notes)

    def _assemble(self, kind: OutputKind) -> Vectors:
        n, dimension = len(self.texts), self.work.encoder.space(kind).dimension
        if kind == "dense":
            values = np.zeros((n, dimension), np.float32)
            for rows, vectors in self.done:
                values[list(rows)] = vectors[kind].values
            return Dense(values)
        ragged: list[tuple[npt.NDArray[Any], npt.NDArray[Any]] | None] = [None] * n
        for rows, vectors in self.done:
            each = vectors[kind]
            for i, row in enumerate(rows):
                if isinstance(each, Sparse):
                    ragged[row] = each.row(i)
                elif isinstance(each, Multi):
                    ragged[row] = (np.empty(0, np.int64), each.row(i))
        offsets = np.zeros(n + 1, np.int64)
        np.cumsum([0 if r is None else len(r[1]) for r in ragged], out=offsets[1:])
        there = [r for r in ragged if r is not None]
        width = (0,) if kind == "sparse" else (0, dimension)
        values = np.concatenate([np.empty(width, np.float32), *(v for _, v in there)], dtype=np.float32)
        if kind == "multi":
            return Multi(values, offsets)
        indices = np.concatenate([np.empty(0, np.int64), *(i for i, _ in there)])
        return Sparse(indices, values, offsets)


def _under_ceiling(multi: Multi) -> tuple[Multi, dict[int, int]]:
    """The multi-vectors without the rows that a store may refuse; how many each of the longer texts lost.

    The first rows stay. Cut here and not in the encoders, so that it is done once for all of them; and not
    later, so that rows nobody can store do not travel.
    """
    most = most_rows(multi.values.shape[1])
    lengths = np.diff(multi.offsets)
    kept = np.minimum(lengths, most)
    if (kept == lengths).all():
        return multi, {}
    offsets = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)
    values = np.concatenate([multi.row(i)[: kept[i]] for i in range(len(multi))])
    return Multi(values, offsets), {i: int(lost) for i, lost in enumerate((lengths - kept).tolist()) if lost}


def most_rows(width: int) -> int:
    """Rows of that width in the longest multi-vector that the store takes."""
    return (MAX_MULTIVECTOR_VALUES - 1) // width


def encode(
    encoder: Encoder,
    texts: Sequence[str],
    side: Side,
    kinds: Sequence[OutputKind],
    *,
    device_lock: AbstractContextManager[Any],
    on_progress: Callable[[], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    singly: Singly | None = None,
    counters: Counters | None = None,
) -> Part:
    """Vectors of `texts`, in their order.

    A micro-batch that fails is halved until the failing texts stand alone; those are named in
    `Part.rejected` and their vectors are zero or empty, all others go through. NaN, infinity and a wrong
    shape are such failures; an InfrastructureError is not and leaves at once. Where no text at all went
    through, a known good one is tried: if that fails too, nothing is held against the texts. Where memory is
    too short, see `Loop`: smaller micro-batches, and a text is rejected only if it alone is too much. The
    notes' `oom` has how many passes did not fit, and `budget` the tokens of a micro-batch since then.
    A document over the model's limit is cut, rejected, or embedded in windows, as the encoder's `truncation`
    says (the notes' `windows` has how many by text); a query is never embedded in windows, but cut.
    Rows of a multi-vector past the store's ceiling are cut, and counted by text in the notes' `rows_cut`.

    Parameters:
        device_lock: held for each forward pass and for nothing else.
        on_progress: called after each micro-batch; what it raises ends the call (a lost lease).
        should_stop: asked before each micro-batch.
        singly: if given, the texts go through one at a time; the vectors are the same.
        counters: the worker's; the notes' `forward_seconds` are then this call's share of the time in which
            any call of the worker had the device.

    Raises InfrastructureError, Stopped, and whatever `on_progress` raises.
    """

    def before() -> None:
        if should_stop is not None and should_stop():
            raise Stopped(f"{encoder.model}: stopped between two micro-batches")

    after = on_progress or (lambda: None)
    work = Work(encoder, side, tuple(kinds), device_lock, before, after, counters or Counters())
    run = _Texts(work, texts)
    if singly is not None:
        for row in singly.order:
            with singly.around(row):
                run.take((row,))
        for row, reason in singly.refused.items():
            run.reject(row, reason)
    elif texts:
        run.take(tuple(range(len(texts))))
    if run.rejected and not run.done:
        work.require_sound()
    return run.part()
