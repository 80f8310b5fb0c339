"""The fleet's queues for Flower's broker page."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from ledger.doorbell import Doorbell
from ledger.ledger import Ledger
from registry.models import RERANKERS
from registry.names import QUEUE_AGGREGATE, QUEUE_STORE, embed_queue, query_queue, rerank_queue


class Queues:
    """The fleet's queues as the broker page shows them.

    Flower's own broker clients know neither the fleet's TLS settings nor a socket's user, and learn the
    names of queues only from workers that were up before it.
    """

    def __init__(self, ledger: Ledger, doorbell: Doorbell) -> None:
        self._ledger = ledger
        self._doorbell = doorbell

    async def queues(self, _names: list[str]) -> list[dict[str, Any]]:
        """Per queue: messages that wait, and processes that take from it."""
        return await asyncio.get_running_loop().run_in_executor(None, self._look)

    def _look(self) -> list[dict[str, Any]]:
        takers = Counter(dict.fromkeys([*self._ledger.depths(), QUEUE_AGGREGATE, QUEUE_STORE], 0))
        for process in self._ledger.alive.list():
            if process.model in RERANKERS:
                takers[rerank_queue(process.model)] += 1
            elif process.kind == "worker":
                takers.update([embed_queue(process.model), query_queue(process.model)])
            elif process.kind == "aggregator":
                takers.update([QUEUE_AGGREGATE, QUEUE_STORE])
        return [
            {"name": name, "messages": self._doorbell.waiting(name), "consumers": takers[name]}
            for name in sorted(takers)
        ]
