"""Micro-batches through an encoder, one after another: smaller ones where memory is short, and the search for
an item it cannot take."""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

from registry.codecs import Vectors
from registry.errors import DeviceFailed, EncodeError, InfrastructureError
from registry.models import OutputKind
from worker.counters import Counters
from worker.encoders.base import Encoder, MicroBatch, Prepared, Side
from worker.encoders.check import check_vectors

#: A reason for a rejection is cut to this many characters: it travels, and may quote the text.
REASON_CHARS = 300
#: A text every encoder can take. If it fails too, the fault is the device's, not the texts'.
PROBE = "def probe(): return 42"
#: How a reason begins where memory was too short.
NO_MEMORY = "MemoryError: "


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
    #: Shared by all calls of a worker.
    counters: Counters = field(default_factory=Counters)
    useful_tokens: int = 0
    padded_tokens: int = 0
    #: Time on the device; where calls share it, each moment counts for one of them.
    forward_seconds: float = 0.0
    tokenise_seconds: float = 0.0
    #: Passes for which there was too little memory.
    short: int = 0

    def prepare(self, texts: Sequence[str]) -> Prepared:
        """Texts made ready for the device."""
        begun = time.perf_counter()
        try:
            return self.encoder.prepare(texts, self.side)
        finally:
            seconds = time.perf_counter() - begun
            self.tokenise_seconds += seconds
            self.counters.add(tokenise_seconds=seconds)

    def run(self, batch: MicroBatch) -> dict[OutputKind, Vectors]:
        """One micro-batch through the device; its vectors, checked."""
        with ExitStack() as on_device:
            with self.device_lock:
                on_device.enter_context(self.counters.device.running())
                raw = self.encoder.forward(batch)
                if not _asynchronous(self.encoder):
                    on_device.close()
            vectors = self.encoder.finish(batch, raw, self.kinds)
        self.forward_seconds += self.counters.device.take()
        self.useful_tokens += batch.useful_tokens
        self.padded_tokens += batch.padded_tokens
        self.counters.add(useful_tokens=batch.useful_tokens, padded_tokens=batch.padded_tokens)
        self.check(vectors, len(batch.rows))
        budget = self.encoder.budget
        budget.widest = max(budget.widest, batch.longest)
        return vectors

    def relieve(self) -> None:
        """After a MemoryError, and once nobody holds it any more: give back what the pass took."""
        self.short += 1
        self.counters.add(out_of_memory=1)
        gc.collect()
        with self.device_lock:
            self.encoder.free()

    def require_sound(self, tokens: int = 0) -> None:
        """Raise DeviceFailed, or InfrastructureError for want of memory, if the encoder fails on a text that
        is known to be good: of `tokens` tokens, or as many as it has taken before."""
        # Room for a prompt, the special tokens and the probe itself.
        more = min(tokens, self.encoder.budget.widest) - 32
        try:
            for batch in self.prepare([PROBE + " the" * more]).micro_batches:
                self.run(batch)
            return
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            kind = InfrastructureError if isinstance(error, MemoryError) else DeviceFailed
        raise kind(
            f"{self.encoder.model} on {self.encoder.numerics.device} fails on every text, a known good one "
            f"included ({said}); restart the worker"
        )

    def check(self, vectors: dict[OutputKind, Vectors], items: int) -> None:
        """Raise EncodeError unless there are `items` sound vectors of every kind."""
        for kind in self.kinds:
            if kind not in vectors:
                raise EncodeError(f"{self.encoder.model} gave no {kind} vectors")
            check_vectors(vectors[kind], self.encoder.space(kind), items)


@dataclass
class _Shortage:
    """A micro-batch that did not fit into memory, until all of its items are through or rejected."""

    #: The encoder's budget when it failed.
    budget: int
    #: Padded tokens that may fit instead.
    limit: int
    waiting: set[int]
    rejected: bool = False


class Loop(ABC):
    """Items, by their positions, through the encoder; `rejected` says why one could not.

    Where memory is too short for a micro-batch, its halves go through instead, and whatever is larger waits
    for smaller ones, too, until the last of its items is through. Then, if none of them was rejected, their
    number was too large, and the encoder's budget is halved; otherwise it stays, as one of them would have
    been too much for any device. An item that is alone is tried twice, and rejected only if the device still
    takes a known good text of its length, or of the greatest length it has ever taken.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.rejected: dict[int, str] = {}
        self._todo: deque[tuple[MicroBatch, tuple[int, ...]]] = deque()
        self._shortage: _Shortage | None = None
        #: Items for which memory was too short though they were alone; they get a second try.
        self._tried: set[int] = set()

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
            batch, some = self._todo.popleft()
            # Another thread may have lowered it since the batch was packed, or a query have come.
            budget, most = self.work.encoder.budget.tokens, self.work.encoder.budget.now
            if self._shortage:
                most = min(most, self._shortage.limit)
            if len(some) > 1 and batch.padded_tokens > most:
                self._again(_cut(some, most * len(some) // batch.padded_tokens))
                continue
            self.work.before()
            self._step(batch, some, budget)
            self.work.after()

    def give_up(self) -> None:
        """Leave what is still to do."""
        self._todo.clear()

    def _step(self, batch: MicroBatch, rows: tuple[int, ...], budget: int) -> None:
        """Run a micro-batch; on a data failure, or where memory is too short, put its halves in its place."""
        try:
            vectors = self.work.run(batch)
        except MemoryError as error:
            # Its words only: the error holds the frames of the pass, and they its tensors.
            said = str(error)
        except Exception as error:
            self._again(self.blame(rows, error))
            return
        else:
            self.keep(rows, vectors)
            self._through(rows)
            return
        if len(rows) > 1:
            self._shortage = self._shortage or _Shortage(budget, budget, set(rows))
            self._shortage.limit = max(1, min(self._shortage.limit, batch.padded_tokens) // 2)
        self._again(self.spare(rows, said, batch.longest))

    def _again(self, groups: list[tuple[int, ...]]) -> None:
        """Put these in the place of what was next."""
        for group in reversed(groups):
            self._todo.extendleft(reversed(self.prepare(group)))

    def _through(self, rows: Sequence[int]) -> None:
        """These need no memory any more; the last of a shortage says what it was."""
        short = self._shortage
        if short is None:
            return
        short.waiting.difference_update(rows)
        if short.waiting:
            return
        self._shortage = None
        if not short.rejected:
            self.work.encoder.budget.lower(short.budget)

    def spare(self, rows: tuple[int, ...], said: str, tokens: int = 0) -> list[tuple[int, ...]]:
        """What to try instead of `rows`, for which memory was too short: their halves; an item that stands
        alone once more, and then it is rejected. To be called once nobody holds the MemoryError any more.

        Raises InfrastructureError if a known good text, of as many tokens if it can be, finds no memory.
        """
        self.work.relieve()
        if len(rows) > 1:
            return _halves(rows)
        row = rows[0]
        if row not in self._tried:
            self._tried.add(row)
            return [rows]
        self.work.require_sound(tokens)
        device = self.work.encoder.numerics.device
        length = f" of {tokens} tokens" if tokens else ""
        self.reject(row, f"{NO_MEMORY}{device} has too little for this text{length} even alone: {said}")
        return []

    def blame(self, rows: tuple[int, ...], error: Exception) -> list[tuple[int, ...]]:
        """What to try instead of `rows`: their halves; an item that stands alone is rejected. `spare` says it
        where memory was too short.

        Raises the error again if it says nothing about any item.
        """
        if isinstance(error, InfrastructureError):
            raise error
        if len(rows) == 1:
            self.reject(rows[0], f"{type(error).__name__}: {error}")
            return []
        return _halves(rows)

    def reject(self, row: int, reason: str) -> None:
        """Note why an item cannot be taken."""
        self.rejected[row] = " ".join(reason.split())[:REASON_CHARS]
        if self._shortage and row in self._shortage.waiting:
            self._shortage.rejected = True
            self._through([row])


def _asynchronous(encoder: Encoder) -> bool:
    """Whether a pass only starts in `forward`: torch returns from it long before a GPU is done, which shows
    when `finish` fetches the results. onnxruntime waits."""
    return encoder.numerics.device != "cpu" and encoder.numerics.backend != "onnxruntime"


def _halves(rows: tuple[int, ...]) -> list[tuple[int, ...]]:
    return _cut(rows, (len(rows) + 1) // 2)


def _cut(rows: tuple[int, ...], size: int) -> list[tuple[int, ...]]:
    size = max(1, size)
    return [rows[at : at + size] for at in range(0, len(rows), size)]
