"""Which micro-batch is fastest on this device: found out once, by some passes at a worker's first start."""

from __future__ import annotations

import logging
import statistics
import threading
import time
from collections.abc import Sequence

from registry.models import OutputKind
from worker.encoders.base import Encoder
from worker.encoders.learned import GAIN, TURNS
from worker.encoders.loop import PROBE, Work

logger = logging.getLogger(__name__)

#: Tokens of the texts it is tried with, about those of a function.
TEXT_TOKENS = 128
#: What has not been found out after this, is not. Seconds.
MOST_SECONDS = 10.0
#: No size is larger than the usual one by more than this.
MOST_TIMES = 8


def probe(encoder: Encoder, kinds: Sequence[OutputKind]) -> None:
    """Let the encoder's budget be the fastest that fits: its own number, doubled or halved while that gains.

    Does nothing where it is known already, was set by hand, or was lowered for want of memory. To be called
    before anything else uses the encoder. Raises as Encoder.forward, but for MemoryError.
    """
    budget = encoder.budget
    if budget.known:
        return
    usual, begun = budget.tokens, time.perf_counter()
    trial = _Trial(encoder, kinds, begun + MOST_SECONDS)
    try:
        trial.run()
    except TimeoutError:
        # Nothing is remembered of a machine that was too busy to tell.
        if trial.size == usual:
            return
    finally:
        budget.tokens = usual
    budget.settle(trial.size)
    logger.info(
        "%s on %s: micro-batches of %d padded tokens, as a probe of %.1f s found",
        encoder.model, encoder.numerics.device, trial.size, time.perf_counter() - begun,
    )  # fmt: skip


class _Trial:
    """`size` is the best so far."""

    def __init__(self, encoder: Encoder, kinds: Sequence[OutputKind], end: float) -> None:
        self.size = encoder.budget.tokens
        self._encoder = encoder
        self._end = end
        self._seconds_per_token = 0.0
        self._work = Work(encoder, "document", kinds, threading.Lock(), lambda: None, lambda: None)
        words = TEXT_TOKENS - self._width_of(PROBE)
        self._text = PROBE + " the" * max(0, words)
        self._width = self._width_of(self._text)

    def run(self) -> None:
        """Find `size`. Raises TimeoutError."""
        usual = self.size
        if self._fits(usual) and not self._climb(2, MOST_TIMES * usual):
            self._climb(0.5, MOST_TIMES * usual)

    def _fits(self, usual: int) -> bool:
        """Whether there is memory for the usual size, tried from small ones on, as a pass may take minutes;
        otherwise `size` is what there is memory for."""
        size = fitting = min(usual, self._width)
        while self._timed(size) is not None:
            if size == usual:
                return True
            fitting, size = size, min(2 * size, usual)
        self.size = fitting
        return False

    def _climb(self, factor: float, most: int) -> bool:
        """Go on by a factor at a time for as long as that gains; whether it did."""
        before = self.size
        while self._width <= (other := int(self.size * factor)) <= most and self._gains(other):
            self.size = other
        return self.size != before

    def _gains(self, other: int) -> bool:
        """Whether another size is faster in each of some turns with `size` on the same texts."""
        smaller, larger = sorted((self.size, other))
        texts = larger // smaller * (smaller // self._width)
        # A shape's first pass takes longer than the next.
        if self._timed(other, texts) is None:
            return False
        gains = []
        for _ in range(TURNS):
            here, there = self._timed(self.size, texts), self._timed(other, texts)
            if here is None or there is None or there >= here:
                return False
            gains.append(here / there)
        return statistics.median(gains) >= GAIN

    def _timed(self, size: int, texts: int = 1) -> float | None:
        """Seconds for so many texts, or as many as fill one micro-batch of that size; None if there is no
        memory. Raises TimeoutError if it would be over the end."""
        self._encoder.budget.tokens = size
        batches = self._work.prepare([self._text] * max(texts, size // self._width)).micro_batches
        tokens = sum(batch.padded_tokens for batch in batches)
        begun = time.perf_counter()
        if begun + tokens * self._seconds_per_token > self._end:
            raise TimeoutError
        try:
            for batch in batches:
                self._work.run(batch)
        except MemoryError:
            pass
        else:
            seconds = time.perf_counter() - begun
            self._seconds_per_token = seconds / tokens
            return seconds
        self._work.relieve()
        return None

    def _width_of(self, text: str) -> int:
        (batch,) = self._work.prepare([text]).micro_batches
        return batch.longest
