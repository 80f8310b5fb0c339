"""How candidates are cut into blocks of one pass each, and how the blocks' vectors become scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def cut(
    lengths: Sequence[int], query_tokens: int, *, block: int, max_tokens: int, max_document_tokens: int
) -> list[range]:
    """Positions of each block's candidates, in order.

    A block ends at `block` candidates, or once another document of full length might not fit. The query
    stands twice in a prompt; the template's own tokens are left to that reserve. All lengths in tokens.
    """
    blocks = []
    first, room = 0, max_tokens - 2 * query_tokens
    for position, length in enumerate(lengths):
        room -= length
        if position + 1 - first >= block or room <= max_document_tokens:
            blocks.append(range(first, position + 1))
            first, room = position + 1, max_tokens - 2 * query_tokens
    if first < len(lengths):
        blocks.append(range(first, len(lengths)))
    return blocks


def join(queries: Sequence[FloatArray], documents: Sequence[FloatArray]) -> npt.NDArray[np.float64]:
    """Scores `[n]` of all documents, in order, from the projected vectors of each block.

    A block has its own query vector `[d]` beside its documents' `[k, d]`, since the query reads the passages
    before it. All documents are compared with one query vector: the mean over blocks, each weighted by its
    best candidate's score, moved to [0, 1].
    """
    weights = [float(((1.0 + _cosines(q, d)) / 2.0).max()) for q, d in zip(queries, documents, strict=True)]
    if not sum(weights) > 0:
        weights = [1.0] * len(weights)
    query = np.average(np.stack(queries).astype(np.float64), axis=0, weights=weights)
    return np.clip(_cosines(query, np.concatenate(documents)), -1.0, 1.0)


def _cosines(query: npt.NDArray[np.floating], documents: FloatArray) -> npt.NDArray[np.float64]:
    """`[k]`; NaN where a vector is zero or not finite."""
    one, many = query.astype(np.float64), documents.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: npt.NDArray[np.float64] = (many @ one) / (np.linalg.norm(many, axis=1) * np.linalg.norm(one))
    return found
