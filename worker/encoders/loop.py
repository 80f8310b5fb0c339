"""Micro-batches through an encoder, one after another, and the search for an item it cannot take."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from registry.codecs import Vectors
from registry.errors import EncodeError, InfrastructureError
from registry.models import OutputKind
from worker.encoders.base import Encoder, MicroBatch, Side
from worker.encoders.check import check_vectors

#: A reason for a rejection is cut to this many characters: it travels, and may quote the text.
REASON_CHARS = 300


@dataclass
class Work:
    """What all loops of one call share: the encoder, what is wanted of it, and what it took."""

    encoder: Encoder
    side: Side
    kinds: Sequence[OutputKind]
    device_lock: AbstractContextManager[Any]
    #: Called before and after each micro-batch; what they raise ends the call.
    before: Callable[[], None]
    after: Callable[[], None]
    useful_tokens: int = 0
    padded_tokens: int = 0
    forward_seconds: float = 0.0

    def run(self, batch: MicroBatch) -> dict[OutputKind, Vectors]:
        """One micro-batch through the device; its vectors, checked."""
        with self.device_lock:
            begun = time.perf_counter()
            raw = self.encoder.forward(batch)
            self.forward_seconds += time.perf_counter() - begun
        self.useful_tokens += batch.useful_tokens
        self.padded_tokens += batch.padded_tokens
        vectors = self.encoder.finish(batch, raw, self.kinds)
        self.check(vectors, len(batch.rows))
        return vectors

    def check(self, vectors: dict[OutputKind, Vectors], items: int) -> None:
        """Raise EncodeError unless there are `items` sound vectors of every kind."""
        for kind in self.kinds:
            if kind not in vectors:
                raise EncodeError(f"{self.encoder.model} gave no {kind} vectors")
            check_vectors(vectors[kind], self.encoder.space(kind), items)


class Loop(ABC):
    """Items, by their positions, through the encoder; `rejected` says why one could not."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.rejected: dict[int, str] = {}
        self._todo: deque[tuple[MicroBatch, tuple[int, ...]]] = deque()

    @abstractmethod
    def prepare(self, rows: tuple[int, ...]) -> list[tuple[MicroBatch, tuple[int, ...]]]:
        """Micro-batches of these items, each with its positions among all items."""

    @abstractmethod
    def keep(self, rows: tuple[int, ...], vectors: dict[OutputKind, Vectors]) -> None:
        """Take the vectors of these items."""

    def drain(self, rows: tuple[int, ...]) -> None:
        """Take these items through the encoder, to the end."""
        self._todo.extend(self.prepare(rows))
        while self._todo:
            self.work.before()
            self._step()
            self.work.after()

    def give_up(self) -> None:
        """Leave what is still to do."""
        self._todo.clear()

    def _step(self) -> None:
        """Run the next micro-batch; on a data failure put its halves in its place."""
        batch, rows = self._todo.popleft()
        try:
            vectors = self.work.run(batch)
        except Exception as error:
            for half in reversed(self.blame(rows, error)):
                self._todo.extendleft(reversed(self.prepare(half)))
            return
        self.keep(rows, vectors)

    def blame(self, rows: tuple[int, ...], error: Exception) -> list[tuple[int, ...]]:
        """What to try instead of `rows`: their halves; an item that stands alone is rejected.

        Raises the error again if it says nothing about any item.
        """
        if isinstance(error, InfrastructureError):
            raise error
        if len(rows) == 1:
            self.reject(rows[0], f"{type(error).__name__}: {error}")
            return []
        middle = len(rows) // 2
        return [rows[:middle], rows[middle:]]

    def reject(self, row: int, reason: str) -> None:
        """Note why an item cannot be taken."""
        self.rejected[row] = " ".join(reason.split())[:REASON_CHARS]
