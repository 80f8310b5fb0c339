"""The one loop that takes texts through an encoder, and finds the texts it cannot take."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from registry.codecs import Dense, Multi, Part, Sparse, Vectors
from registry.errors import EncodeError, InfrastructureError, V5Error
from registry.models import OutputKind
from worker.encoders.base import Encoder, MicroBatch, Side
from worker.encoders.check import check_vectors

#: A text every encoder can take. If it fails too, the fault is the device's, not the texts'.
PROBE = "def probe(): return 42"
#: A reason for a rejection is cut to this many characters: it travels, and may quote the text.
REASON_CHARS = 300


class Stopped(V5Error):
    """The caller's `should_stop` said so between two micro-batches; nothing of this call is kept."""


@dataclass
class _Run:
    """One call's standing: what is left to do and what came out, by position in the caller's texts."""

    encoder: Encoder
    texts: Sequence[str]
    side: Side
    kinds: Sequence[OutputKind]
    device_lock: AbstractContextManager[Any]
    todo: deque[tuple[MicroBatch, tuple[int, ...]]] = field(default_factory=deque)
    done: list[tuple[tuple[int, ...], dict[OutputKind, Vectors]]] = field(default_factory=list)
    rejected: dict[int, str] = field(default_factory=dict)
    seen: npt.NDArray[np.int32] = field(init=False)
    kept: npt.NDArray[np.int32] = field(init=False)
    useful_tokens: int = 0
    padded_tokens: int = 0
    forward_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.seen = np.zeros(len(self.texts), np.int32)
        self.kept = np.zeros(len(self.texts), np.int32)

    def prepare(self, rows: tuple[int, ...]) -> list[tuple[MicroBatch, tuple[int, ...]]]:
        """Micro-batches of these texts, each with its positions in the caller's list.

        A text that cannot even be tokenised is found by halving, and rejected.
        """
        try:
            prepared = self.encoder.prepare([self.texts[row] for row in rows], self.side)
        except Exception as error:
            halves = self.blame(rows, error)
            return [batch for half in halves for batch in self.prepare(half)]
        index = list(rows)
        self.seen[index] = prepared.tokens_seen
        self.kept[index] = prepared.tokens_kept
        return [(b, tuple(rows[row] for row in b.rows)) for b in prepared.micro_batches]

    def step(self) -> None:
        """Run the next micro-batch; on a data failure put its halves in its place."""
        batch, rows = self.todo.popleft()
        try:
            vectors = self.run(batch)
        except Exception as error:
            for half in reversed(self.blame(rows, error)):
                self.todo.extendleft(reversed(self.prepare(half)))
            return
        self.done.append((rows, vectors))

    def run(self, batch: MicroBatch) -> dict[OutputKind, Vectors]:
        """One micro-batch through the device; its vectors, checked."""
        with self.device_lock:
            begun = time.perf_counter()
            raw = self.encoder.forward(batch)
            self.forward_seconds += time.perf_counter() - begun
        self.useful_tokens += batch.useful_tokens
        self.padded_tokens += batch.padded_tokens
        vectors = self.encoder.finish(batch, raw, self.kinds)
        for kind in self.kinds:
            if kind not in vectors:
                raise EncodeError(f"{self.encoder.model} gave no {kind} vectors")
            check_vectors(vectors[kind], self.encoder.space(kind), len(batch.rows))
        return vectors

    def blame(self, rows: tuple[int, ...], error: Exception) -> list[tuple[int, ...]]:
        """What to try instead of `rows`: their halves; a text that stands alone is rejected.

        Raises the error again if it says nothing about any text.
        """
        if isinstance(error, InfrastructureError):
            raise error
        if len(rows) == 1:
            said = " ".join(str(error).split())
            self.rejected[rows[0]] = f"{type(error).__name__}: {said}"[:REASON_CHARS]
            return []
        middle = len(rows) // 2
        return [rows[:middle], rows[middle:]]

    def require_probe(self) -> None:
        """Raise InfrastructureError if the encoder fails on a text that is known to be good."""
        try:
            for batch in self.encoder.prepare([PROBE], self.side).micro_batches:
                self.run(batch)
        except Exception as error:
            raise InfrastructureError(
                f"{self.encoder.model} on {self.encoder.numerics.device} fails on every text, a known good "
                f"one included ({type(error).__name__}: {error}); restart the worker"
            ) from error

    def part(self) -> Part:
        """Everything in the caller's order."""
        vectors = {kind: self._assemble(kind) for kind in self.kinds}
        notes = {
            **asdict(self.encoder.numerics),
            "forward_seconds": round(self.forward_seconds, 6),
            "useful_tokens": self.useful_tokens,
            "padded_tokens": self.padded_tokens,
        }
        return Part(vectors, self.seen, self.kept, dict(sorted(self.rejected.items())), notes)

    def _assemble(self, kind: OutputKind) -> Vectors:
        n, dimension = len(self.texts), self.encoder.space(kind).dimension
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


def encode(
    encoder: Encoder,
    texts: Sequence[str],
    side: Side,
    kinds: Sequence[OutputKind],
    *,
    device_lock: AbstractContextManager[Any],
    on_progress: Callable[[], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Part:
    """Vectors of `texts`, in their order.

    A micro-batch that fails is halved until the failing texts stand alone; those are named in
    `Part.rejected` and their vectors are zero or empty, all others go through. NaN, infinity, a wrong shape
    and an out-of-memory are such failures; an InfrastructureError is not and leaves at once. Where no text
    at all went through, a known good one is tried: if that fails too, nothing is held against the texts.

    Parameters:
        device_lock: held for each forward pass and for nothing else.
        on_progress: called after each micro-batch; what it raises ends the call (a lost lease).
        should_stop: asked before each micro-batch.

    Raises InfrastructureError, Stopped, and whatever `on_progress` raises.
    """
    run = _Run(encoder, texts, side, tuple(kinds), device_lock)
    if texts:
        run.todo.extend(run.prepare(tuple(range(len(texts)))))
    while run.todo:
        if should_stop is not None and should_stop():
            raise Stopped(f"{encoder.model}: stopped with {len(run.todo)} micro-batches to go")
        run.step()
        if on_progress is not None:
            on_progress()
    if run.rejected and not run.done:
        run.require_probe()
    return run.part()
