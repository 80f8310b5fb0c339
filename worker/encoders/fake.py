"""Made-up vectors for any model: fast, deterministic, in spaces of their own, with faults on demand."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from registry.codecs import Dense, Multi, Sparse, Vectors
from registry.models import ModelSpec, OutputKind
from registry.settings import Settings
from registry.spaces import VectorSpace, space_of
from worker.encoders.base import MicroBatch, Numerics, Prepared, Side, Window
from worker.encoders.budget import budget_of
from worker.encoders.pooling import unit
from worker.encoders.tokens import pack

if TYPE_CHECKING:
    from worker.encoders.layers import Layers

#: A text that contains one of these makes the encoder fail in that way, whatever else stands in it.
POISON = "\x02POISON:"
#: Its forward pass raises ValueError.
POISON_RAISE = POISON + "raise"
#: Its vectors are NaN.
POISON_NAN = POISON + "nan"
#: The vectors of its whole micro-batch are one value too wide.
POISON_SHAPE = POISON + "shape"
#: Its forward pass ends the process with SIGKILL.
POISON_KILL = POISON + "kill"
#: Its forward pass never ends.
POISON_HANG = POISON + "hang"
#: Its forward pass raises MemoryError.
POISON_OOM = POISON + "oom"
#: From its forward pass on, the encoder gives every text another vector, as a damaged device might.
POISON_DRIFT = POISON + "drift"

#: Padded tokens of a micro-batch, a token being four characters: a batch of 256 functions makes several.
BUDGET = 4096
#: Non-zero values of a sparse vector, and rows of a multi-vector at most (real ones have one per token).
SPARSE_VALUES = 8
MULTI_ROWS = 4

Seeds = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class _Tokens:
    """What stands for a micro-batch's tokens: a seed and a length per text, and their poisons."""

    seeds: Seeds
    lengths: npt.NDArray[np.int32]
    poisons: tuple[str, ...]


class FakeEncoder:
    """Vectors from a hash of text, model, task and output: equal for equal texts, on either side."""

    layers: Layers | None = None

    def __init__(self, spec: ModelSpec, task: str, settings: Settings) -> None:
        self.model = spec.name
        self.numerics = Numerics(backend="fake", device="cpu", dtype="float32")
        self.truncation = spec.truncation
        self._spec = spec
        self._spaces = {o.kind: space_of(spec, o.kind, task, fake=True) for o in spec.outputs}
        self._seconds = settings.fake_seconds
        self._memory = settings.fake_memory_tokens
        self.budget = budget_of(spec, settings, BUDGET, hardware="cpu", dtype="float32", backend="fake")
        self._salts = {kind: np.uint64(int(space.fingerprint, 16)) for kind, space in self._spaces.items()}

    def space(self, kind: OutputKind) -> VectorSpace:
        """The fake space of an output; raises UnknownModel if the model has none of that kind."""
        return self._spaces[self._spec.output(kind).kind]

    def prepare(self, texts: Sequence[str], side: Side) -> Prepared:  # noqa: ARG002
        """Hash the texts; a token is four characters and two are special. No prefix: sides do not differ."""
        seen = np.fromiter((len(t) // 4 + 2 for t in texts), np.int32, len(texts))
        kept = np.minimum(seen, self._spec.max_tokens).astype(np.int32)
        batches = [_micro_batch(rows, texts, kept) for rows in pack(kept, self.budget.now)]
        return Prepared(batches, seen, kept)

    def windows(self, text: str, side: Side) -> list[Window]:  # noqa: ARG002
        """See Encoder.windows; the special tokens are only counted."""
        room = 4 * (self._spec.max_tokens - 2)
        pieces = [text[at : at + room] for at in range(0, max(len(text), 1), room)]
        return [Window(piece, max(1, len(piece) // 4)) for piece in pieces]

    def pack(self, windows: Sequence[Window]) -> list[MicroBatch]:
        """See Encoder.pack."""
        texts = [window.tokens for window in windows]
        lengths = np.fromiter((len(t) // 4 + 2 for t in texts), np.int32, len(texts))
        at_once = max(1, self.budget.now // int(lengths.max(initial=1)))
        starts = range(0, len(texts), at_once)
        return [_micro_batch(tuple(range(len(texts))[at : at + at_once]), texts, lengths) for at in starts]

    def forward(self, batch: MicroBatch) -> _Tokens:
        """Sleep `fake_seconds` per text, and fail where a text says so or the made-up memory is too small."""
        tokens: _Tokens = batch.tokens
        if 0 < self._memory < batch.padded_tokens:
            raise MemoryError(f"made up: {batch.padded_tokens} tokens, and room for {self._memory}")
        if self._seconds:
            time.sleep(self._seconds * len(batch.rows))
        for text in filter(None, tokens.poisons):
            if POISON_KILL in text:
                os.kill(os.getpid(), signal.SIGKILL)
            if POISON_HANG in text:
                threading.Event().wait()
            if POISON_DRIFT in text:
                self._salts = {kind: ~np.uint64(int(s.fingerprint, 16)) for kind, s in self._spaces.items()}
            if POISON_OOM in text:
                raise MemoryError("made up, as the text asks")
            if POISON_RAISE in text:
                raise ValueError("made up, as the text asks")
        return tokens

    def finish(
        self,
        batch: MicroBatch,  # noqa: ARG002
        raw: _Tokens,
        kinds: Sequence[OutputKind],
    ) -> dict[OutputKind, Vectors]:
        """Draw the vectors of each output from the texts' seeds."""
        return {kind: self._vectors(kind, raw) for kind in kinds}

    def free(self) -> None:
        """Nothing to free."""

    def close(self) -> None:
        """Nothing to free."""

    def _vectors(self, kind: OutputKind, tokens: _Tokens) -> Vectors:
        seeds = tokens.seeds ^ self._salts[kind]
        width = self._spec.output(kind).dimension
        if any(POISON_SHAPE in text for text in tokens.poisons):
            width += 1
        bad = np.array([POISON_NAN in text for text in tokens.poisons], bool)
        if kind == "dense":
            values = unit(_uniform(seeds, width))
            values[bad] = np.nan
            return Dense(values)
        if kind == "multi":
            rows = np.minimum(tokens.lengths, MULTI_ROWS)
            each = np.concatenate([np.arange(r, dtype=np.uint64) for r in rows.tolist()])
            values = unit(_uniform(_mix(np.repeat(seeds, rows) + each), width))
            values[np.repeat(bad, rows)] = np.nan
            return Multi(values, np.concatenate([[0], np.cumsum(rows)]).astype(np.int64))
        return self._sparse(seeds, bad, width)

    def _sparse(self, seeds: Seeds, bad: npt.NDArray[np.bool_], surplus: int) -> Sparse:
        """Ascending distinct token ids, one from each of SPARSE_VALUES slices of the vocabulary."""
        slice_size = self._spec.architecture.vocabulary // SPARSE_VALUES
        drawn = _draw(seeds, SPARSE_VALUES)
        starts = np.arange(SPARSE_VALUES, dtype=np.uint64) * np.uint64(slice_size)
        indices = (drawn % np.uint64(slice_size) + starts).astype(np.int64)
        values = np.abs(_uniform(_mix(seeds), SPARSE_VALUES)) + np.float32(0.01)
        values[bad] = np.nan
        # A sparse vector has no width to get wrong; one text too many is its wrong shape.
        offsets = np.arange(len(seeds) + 1 + surplus, dtype=np.int64) * SPARSE_VALUES
        return Sparse(indices.reshape(-1), values.reshape(-1), offsets)


def _micro_batch(rows: tuple[int, ...], texts: Sequence[str], lengths: npt.NDArray[np.int32]) -> MicroBatch:
    """These of the texts, the first the longest."""
    index = list(rows)
    digests = b"".join(hashlib.blake2b(texts[row].encode(), digest_size=8).digest() for row in rows)
    poisons = tuple(texts[row] if POISON in texts[row] else "" for row in rows)
    tokens = _Tokens(np.frombuffer(digests, np.uint64), lengths[index], poisons)
    longest = int(lengths[rows[0]])
    return MicroBatch(rows, tokens, int(lengths[index].sum()), len(rows) * longest, longest)


def _mix(x: Seeds) -> Seeds:
    """splitmix64's finaliser (Steele, Lea, Flood 2014): each output bit depends on each input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _draw(seeds: Seeds, width: int) -> Seeds:
    """`[n, width]` words, a stream per seed: splitmix64, whose steps can be taken all at once.

    Not numpy's generators: theirs start slowly, and their streams may change between versions.
    """
    steps = np.arange(1, width + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mix(_mix(seeds)[:, None] + steps)


def _uniform(seeds: Seeds, width: int) -> npt.NDArray[np.float32]:
    """`[n, width]` float32 in [-1, 1), two values from each word."""
    words = _draw(seeds, (width + 1) // 2).view(np.int32)[:, :width]
    return words.astype(np.float32) * np.float32(2.0**-31)
