"""How much of a batch goes through a device at once, and what was learned of the device's memory."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from registry.models import ModelSpec
from registry.settings import Settings
from worker.encoders.learned import Learned, subject

logger = logging.getLogger(__name__)

#: No budget is lowered further than this: what does not fit then is one text's matter. Padded tokens.
FLOOR = 64
#: Name of the file of learned budgets in the data directory: those that were lowered and, with `FASTEST`
#: after the name, those that a probe found. Padded tokens.
FILE = "budgets.json"
#: What is added to a name for what a probe found, before memory was short.
FASTEST = ", fastest"
#: The part of the budget that a micro-batch takes while queries come. They come for so long after one did,
#: in seconds.
BESIDE_QUERIES = 0.5
QUERIES_COME = 10.0


class Budget:
    """Padded tokens of one encoder's micro-batches; what its threads share about its device's memory.

    What did not fit is halved at once, for the call that found it (see `Loop`). The budget itself is halved
    only when that call has taken every text of the micro-batch through in smaller ones: then it was their
    number that the device had no room for. A text that fails even alone, for whatever reason, leaves the
    budget as it was.

    While queries come, micro-batches are smaller than it, for a query waits for the one on the device.
    """

    def __init__(self, tokens: int, name: str = "", learned: Learned | None = None) -> None:
        """`name` says whose budget it is; `learned` remembers what becomes of it."""
        self.tokens = tokens
        #: Tokens of the longest text that went through since the model was loaded.
        self.widest = 0
        #: Called when the budget was lowered.
        self.told: Callable[[], None] = lambda: None
        #: Whether there is nothing to find out by a probe.
        self.known = learned is None
        self._name = name
        self._learned = learned
        self._lock = threading.Lock()
        #: When the last query came.
        self._asked = float("-inf")
        if learned is not None and (fastest := learned.get(name + FASTEST)):
            self.tokens, self.known = fastest, True
        self._first = tokens = self.tokens
        if learned is not None and 0 < (found := learned.get(name)) < tokens:
            self.known = True
            self.tokens = found
            logger.warning(
                "%s: micro-batches of %d tokens instead of %d, as more did not fit into memory (%s)",
                name, found, tokens, learned.path,
            )  # fmt: skip

    @property
    def remark(self) -> str:
        """What people should know of it; empty while it is what it was meant to be."""
        if self.tokens == self._first:
            return ""
        return f"out of memory: micro-batches of {self.tokens} tokens instead of {self._first}"

    @property
    def now(self) -> int:
        """Padded tokens of the next micro-batch."""
        queries_come = time.monotonic() - self._asked < QUERIES_COME
        return int(self.tokens * BESIDE_QUERIES) if queries_come else self.tokens

    def query_came(self) -> None:
        """There may be more: until none has come for a while, nobody is to wait for long."""
        self._asked = time.monotonic()

    def settle(self, tokens: int) -> None:
        """Take what a probe found to be fastest; remembered for the next start."""
        self.tokens = self._first = tokens
        self.known = True
        if self._learned is not None:
            self._learned.note_least(self._name + FASTEST, tokens)

    def lower(self, tried: int) -> None:
        """Halve the budget, unless it is no longer `tried`: of two threads that found it too large, one
        halves it. Said, and remembered for the next start."""
        with self._lock:
            lower = tried // 2
            if self.tokens != tried or lower < FLOOR:
                return
            self.tokens = lower
        logger.warning(
            "%s: micro-batches of %d tokens did not fit into memory; %d from now on", self._name, tried, lower
        )
        if self._learned is not None:
            self._learned.note_least(self._name, lower)
        self.told()


def budget_of(
    spec: ModelSpec, settings: Settings, tokens: int, *, hardware: str, dtype: str, backend: str
) -> Budget:
    """The budget of an encoder: as set by hand, else what was learned on such a device, else `tokens`, the
    encoder's own, until a probe knows better."""
    if settings.micro_batch_tokens:
        return Budget(settings.micro_batch_tokens, f"{spec.name} on {hardware}")
    name = subject(spec, settings, dtype=dtype, how=backend, hardware=hardware)
    return Budget(tokens, name, Learned(settings.data_dir / FILE))
