"""Reciprocal rank fusion as every store does it: the constant, how deep to look, and a stable order."""

from __future__ import annotations

from collections.abc import Iterable

#: A point at rank r (from 0) of one list scores 1 / (RRF_K + r). 2 is the default of a Qdrant server.
RRF_K = 2
#: Candidates of each vector, at least.
MIN_PREFETCH = 100
#: Candidates of each vector per result asked for.
PREFETCH_PER_RESULT = 4


def depth(limit: int, prefetch: int) -> int:
    """How many candidates each vector contributes: as asked, else the default; never fewer than `limit`."""
    return max(limit, prefetch or max(MIN_PREFETCH, PREFETCH_PER_RESULT * limit))


def best(scored: Iterable[tuple[str, float]], limit: int) -> list[tuple[str, float]]:
    """The best ids and scores, equal scores by id.

    Engines order equal fused scores by chance, so that a cut at `limit` before this would answer the same
    query differently each time: fuse without a cut, then cut here.
    """
    return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:limit]
