"""Windows and batches: chunks read ahead, sorted by length, and cut by cost instead of count."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from producer.draft import text_bytes
from producer.problem import Problem
from registry.chunks import Chunk
from registry.settings import Settings

#: A batch holds no more than one part in so many of what its job has staged: a small job is to keep several
#: workers busy, and in a large one each batch costs every process some milliseconds, however few its chunks.
SPREAD = 16
#: For that reason alone no batch is cut below this.
LEAST_CHUNKS = 64
#: Chunks of the first window; each further one may have twice as many: the fleet is to have work soon.
FIRST_WINDOW = 256


@dataclass
class Window:
    """What was read ahead: neighbouring chunks of the corpus, and the problems met among them."""

    chunks: list[Chunk] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def windows(items: Iterable[Chunk | Problem], settings: Settings) -> Iterator[Window]:
    """Read ahead lazily. A window closes at `window_chunks` items, the first ones sooner, or before it would
    pass `window_bytes`.

    Text and payload both count as bytes, for both are held; one chunk larger than that is a window alone.
    Problems count as items, so that a corpus of nothing but problems is bounded, too.
    """
    window, held = Window(), 0
    most = min(settings.window_chunks, FIRST_WINDOW)
    for item in items:
        if isinstance(item, Problem):
            window.problems.append(item)
        else:
            size = text_bytes(item.text) + len(item.body)
            if window.chunks and held + size > settings.window_bytes:
                yield window
                window, held = Window(), 0
            window.chunks.append(item)
            held += size
        if len(window.chunks) + len(window.problems) >= most:
            yield window
            window, held = Window(), 0
            most = min(settings.window_chunks, 2 * most)
    if window.chunks or window.problems:
        yield window


def cut_batches(
    chunks: Iterable[Chunk],
    settings: Settings,
    vectors: Callable[[int], int] = lambda _size: 0,
    most_vectors: int = sys.maxsize,
    staged: int = sys.maxsize,
) -> Iterator[list[Chunk]]:
    """Batches of texts of similar length, shortest first: little padding, and equal cost per batch.

    A batch closes at `batch_chunks` or at its share of the chunks that its job has `staged`, these included;
    before its text would pass `batch_bytes`; or before its vectors would pass `most_vectors` bytes, where
    `vectors(bytes of text)` are those of one chunk. A chunk with more than that is a batch alone. Texts of a
    size are ordered by themselves, equal ones by id, so the order of `chunks` does not matter.
    """
    most_chunks = min(settings.batch_chunks, max(LEAST_CHUNKS, staged // SPREAD))
    batch: list[Chunk] = []
    held = vector_bytes = 0
    for size, chunk in sorted(
        ((text_bytes(c.text), c) for c in chunks), key=lambda pair: (pair[0], pair[1].text, pair[1].id)
    ):
        cost = vectors(size)
        if batch and (
            len(batch) >= most_chunks
            or held + size > settings.batch_bytes
            or vector_bytes + cost > most_vectors
        ):
            yield batch
            batch, held, vector_bytes = [], 0, 0
        batch.append(chunk)
        held += size
        vector_bytes += cost
    if batch:
        yield batch
