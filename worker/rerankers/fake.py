"""Made-up relevance for tests and rehearsals: how many of the query's words a document has."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from registry.models import ModelSpec
from registry.settings import Settings
from registry.spaces import FAKE_REVISION
from worker.encoders.base import Numerics
from worker.rerankers.base import Ranking, block_size
from worker.rerankers.blocks import cut

if TYPE_CHECKING:
    from worker.encoders.layers import Layers


class FakeReranker:
    """Scores from word overlap, in blocks as a real one's."""

    layers: Layers | None = None

    def __init__(self, spec: ModelSpec, settings: Settings) -> None:
        self.spec = spec
        self.revision = FAKE_REVISION
        self.numerics = Numerics(backend="fake", device="cpu", dtype="float32")
        self._seconds = settings.fake_seconds

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        block: int,
        between: Callable[[], None] = lambda: None,
    ) -> Ranking:
        """-1 without a word in common, 1 with all of the query's; sleeps `fake_seconds` per document."""
        wanted = _words(query)
        lengths = [len(document) // 4 for document in documents]
        spans = cut(
            lengths,
            len(query) // 4,
            block=block_size(self.spec, block),
            max_tokens=self.spec.max_tokens,
            max_document_tokens=0,
        )
        for span in spans:
            between()
            time.sleep(self._seconds * len(span))
        shares = [len(wanted & _words(document)) / max(1, len(wanted)) for document in documents]
        scores = 2.0 * np.array(shares, np.float64) - 1.0
        order = np.argsort(-scores, kind="stable")
        return Ranking(
            tuple(order.tolist()),
            tuple(scores[order].tolist()),
            tuple(len(span) for span in spans),
            tokens=sum(lengths),
        )

    def close(self) -> None:
        """Nothing to free."""


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))
