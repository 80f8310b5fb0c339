"""Real processes of a fleet under strain: `python -m tests.soak.process aggregator | worker MODEL`.

The aggregator writes nothing while there is room in the budget, so that the budget is full all the time. The
worker's made-up multi-vectors have a row per token, as real ones do.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from registry.console import start_logging
from registry.models import embedder
from registry.settings import load_settings
from worker.aggregator import Aggregator
from worker.embedder import EmbedWorker
from worker.encoders import fake

#: Share of the budget that is to be reserved before anything is written.
FULL = 0.95
#: A write waits no longer than this: the end of a corpus does not fill the budget. Seconds.
PATIENCE = 1.0


class SlowAggregator(Aggregator):
    """Slower than everything before it."""

    def prepare(self) -> None:
        super().prepare()
        assert self.store is not None
        enough = FULL * self.ledger.blobs.budget(self.settings.inflight_bytes)
        write = self.store.upsert

        def slow(*arguments: Any) -> Any:
            end = time.monotonic() + PATIENCE
            while self.ledger.reserved() < enough and time.monotonic() < end:
                time.sleep(0.005)
            return write(*arguments)

        self.store.upsert = slow  # type: ignore[method-assign]


def main(kind: str, *arguments: str) -> int:
    """Serve until SIGTERM."""
    settings = load_settings()
    start_logging(settings)
    if kind == "aggregator":
        return SlowAggregator(settings).run()
    (model,) = arguments
    fake.MULTI_ROWS = embedder(model).max_tokens
    return EmbedWorker(settings, model).run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
