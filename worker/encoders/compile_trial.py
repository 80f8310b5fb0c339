"""Whether an encoder is right and faster with its layers compiled (see `worker.encoders.layers`)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from registry.models import OutputKind
from worker.encoders.base import Encoder
from worker.encoders.goldens import Golden, agreement, measure
from worker.encoders.loop import PROBE, Work
from worker.encoders.probe import TEXT_TOKENS

#: Words that make a text longer than another, in numbers that no shape of a model has.
_MORE = (" the" * 11, " the" * 37)


def compile_if_faster(encoder: Encoder, kinds: Sequence[OutputKind]) -> None:
    """Compile the encoder's layers where settings say so; noted in its numerics.

    To be called before anything else uses the encoder. Raises as `Layers.settle`, and as Encoder.forward.
    """
    if encoder.layers is not None and encoder.layers.settle(_EncoderTrial(encoder, kinds)):
        encoder.numerics = replace(encoder.numerics, compiled=True)


class _EncoderTrial:
    """See Trial."""

    def __init__(self, encoder: Encoder, kinds: Sequence[OutputKind]) -> None:
        self._encoder, self._kinds = encoder, kinds
        self._work = Work(encoder, "document", kinds, threading.Lock(), lambda: None, lambda: None)

    def shapes(self) -> None:
        """A text alone, texts of one length, texts of several; each twice, for what one length has in common
        with the model's own sizes is not what another has."""
        short, long = (PROBE + more for more in _MORE)
        for texts in ([short], [long], [short] * 3, [long] * 5, [short, long, long], [short] * 4 + [long]):
            self._pass(texts)

    def load(self) -> None:
        """A micro-batch of texts about as long as a function."""
        texts = max(1, self._encoder.budget.tokens // TEXT_TOKENS)
        # A prefix may be as long as the rest; what does not fit goes in the next micro-batch.
        self._pass([PROBE + " the" * (TEXT_TOKENS - 16)] * texts)

    def answer(self) -> list[dict[OutputKind, Golden]]:
        """The golden texts' vectors, in batches and each alone."""
        return [measure(self._encoder, self._kinds, alone=alone) for alone in (False, True)]

    def problem(self, eager: list[dict[OutputKind, Golden]], compiled: list[dict[OutputKind, Golden]]) -> str:
        """What does not agree of the golden texts' vectors."""
        found = (agreement(a[kind], b[kind]) for a, b in zip(eager, compiled, strict=True) for kind in a)
        return next((one.problem for one in found if one.problem), "")

    def _pass(self, texts: list[str]) -> None:
        for batch in self._work.prepare(texts).micro_batches:
            self._work.run(batch)
