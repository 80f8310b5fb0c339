"""A text over the model's limit, embedded whole: in windows, whose vectors are pooled into one as they come.

Nothing grows with the text but its tokens: a megabyte in a thousand windows holds one sum, one set of weights
and at most as many rows as the store takes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from registry.codecs import Dense, Multi, Sparse, Vectors
from registry.models import OutputKind
from worker.encoders.base import MicroBatch, Window
from worker.encoders.loop import Loop, Work
from worker.encoders.pooling import unit


class Pool:
    """One text's vectors of its windows, given in the order of the text.

    Dense: the mean, weighted by the windows' own tokens, then L2. Sparse: the largest weight of each token.
    Multi: the rows of all windows, up to `most_rows`.
    """

    def __init__(self, most_rows: int) -> None:
        #: Rows that did not fit any more.
        self.rows_cut = 0
        self._most_rows = most_rows
        self._rows = 0
        self._dense: npt.NDArray[np.float64] | None = None
        self._multi: list[npt.NDArray[np.float32]] = []
        self._sparse: tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]] | None = None

    def add(self, own_tokens: Sequence[int], vectors: dict[OutputKind, Vectors]) -> None:
        """Take the vectors of the next windows."""
        for each in vectors.values():
            match each:
                case Dense():
                    weights = np.asarray(own_tokens, np.float64)
                    added = weights @ each.values.astype(np.float64)
                    self._dense = added if self._dense is None else self._dense + added
                case Sparse():
                    self._add_sparse(each)
                case Multi():
                    self._add_multi(each)

    def _add_sparse(self, added: Sparse) -> None:
        standing = self._sparse or (np.empty(0, np.int64), np.empty(0, np.float32))
        indices, where = np.unique(
            np.concatenate([standing[0], np.asarray(added.indices, np.int64)]), return_inverse=True
        )
        values = np.zeros(len(indices), np.float32)
        np.maximum.at(values, where, np.concatenate([standing[1], added.values]).astype(np.float32))
        self._sparse = indices, values

    def _add_multi(self, added: Multi) -> None:
        kept = added.values[: self._most_rows - self._rows]
        self._multi.append(np.array(kept, np.float32))
        self._rows += len(kept)
        self.rows_cut += len(added.values) - len(kept)

    def result(self) -> dict[OutputKind, Vectors]:
        """The vectors of the one text."""
        found: dict[OutputKind, Vectors] = {}
        if self._dense is not None:
            found["dense"] = Dense(unit(self._dense[None].astype(np.float32)))
        if self._sparse is not None:
            indices, values = self._sparse
            found["sparse"] = Sparse(indices, values, np.array([0, len(indices)], np.int64))
        if self._multi:
            found["multi"] = Multi(np.concatenate(self._multi), np.array([0, self._rows], np.int64))
        return found


class Windows(Loop):
    """One text's windows through the encoder; it ends with the first that fails, as the text then does."""

    def __init__(self, work: Work, windows: Sequence[Window], most_rows: int) -> None:
        super().__init__(work)
        self.pool = Pool(most_rows)
        self._windows = windows

    def prepare(self, rows: tuple[int, ...]) -> list[tuple[MicroBatch, tuple[int, ...]]]:
        """See Loop.prepare."""
        batches = self.work.encoder.pack([self._windows[row] for row in rows])
        return [(batch, tuple(rows[row] for row in batch.rows)) for batch in batches]

    def keep(self, rows: tuple[int, ...], vectors: dict[OutputKind, Vectors]) -> None:
        """See Loop.keep. The encoder packs windows in their order, and halving keeps it."""
        self.pool.add([self._windows[row].own_tokens for row in rows], vectors)

    def reject(self, row: int, reason: str) -> None:
        """See Loop.reject."""
        super().reject(row, f"window {row + 1} of {len(self._windows)}: {reason}")
        self.give_up()
