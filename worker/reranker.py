"""A resident reranker: one model on one device, answering requests for an order of candidates."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from typing import Any

from ledger.alive import Process
from registry.errors import EncodeError, InfrastructureError, Unanswered, UsageError
from registry.frames import pack_json
from registry.models import reranker
from registry.names import TASK_RERANK, rerank_queue
from registry.progress import beat
from registry.settings import Settings
from worker.answers import Answers
from worker.licence import notice
from worker.process import FleetProcess
from worker.rerankers.base import Reranker, block_size, label
from worker.rerankers.factory import compile_if_faster, load_reranker, warm_up

log = logging.getLogger(__name__)

#: Candidates of one request.
MOST_CANDIDATES = 1000


class RerankWorker(FleetProcess):
    """One thread: a request is one or several passes on the device, and a repeat of one that is being worked
    on waits behind it and finds it answered."""

    threads = 1

    def __init__(self, settings: Settings, model: str, name: str = "") -> None:
        self.model = reranker(model).name
        self.reranker: Reranker | None = None
        process = Process(kind="worker", name=name or f"worker-{model}", model=model, device=settings.device)
        super().__init__(settings, process, [rerank_queue(model)])
        self._answers = Answers(self.ledger, process)

    def register(self) -> None:
        """Requests."""
        self.task(TASK_RERANK, rerank_queue(self.model), self._rerank)

    def prepare(self) -> None:
        """Load the model and prove it with real passes."""
        began = time.monotonic()
        self.wait_for_room()
        if said := notice(reranker(self.model), self.settings):
            log.warning("%s", said)
        loaded = load_reranker(self.model, self.settings)
        warm_up(loaded, trained=not self.settings.fake_weights)
        compile_if_faster(loaded)
        self.reranker = loaded
        self.change(device=loaded.numerics.device, numerics=asdict(loaded.numerics))
        log.info("%s loaded on %s in %.1f s", self.model, loaded.numerics.device, time.monotonic() - began)

    def release(self) -> None:
        """Free the device."""
        if self.reranker is not None:
            self.reranker.close()

    def _rerank(self, **arguments: Any) -> str:
        # The deadline is read only after the message was found to be a request.
        return self._answers.give(arguments, lambda asked: self._rank(asked, float(arguments["deadline"])))

    def _rank(self, asked: dict[str, Any], deadline: float) -> bytes:
        """`{query, documents, block}` → `{model, revision, label, block, blocks, ranking: [[position, score],
        …], truncated, query_truncated, tokens}`, best first."""
        query, documents, block = asked.get("query"), asked.get("documents"), asked.get("block", 0)
        if not isinstance(query, str) or not query.strip():
            raise UsageError("candidates are ordered for a query; this one is empty")
        if not isinstance(documents, list) or not all(isinstance(text, str) for text in documents):
            raise UsageError("candidates are a list of texts")
        if len(documents) > MOST_CANDIDATES:
            raise UsageError(f"{len(documents)} candidates; at most {MOST_CANDIDATES} are ordered at once")
        if not isinstance(block, int) or isinstance(block, bool):
            raise UsageError(f"a block is a number of candidates, not {block!r}")
        serving = self._serving()
        size = block_size(serving.spec, block)

        def between() -> None:
            beat()
            if self.stopping.is_set():
                raise InfrastructureError("the reranker is stopping")
            if time.time() > deadline:
                raise Unanswered("nobody waits for this answer any more")

        try:
            ranking = serving.rank(query, documents, size, between)
        except InfrastructureError as error:
            if not self.stopping.is_set() and not isinstance(error, Unanswered):
                self.give_up(str(error))
            raise
        except MemoryError as error:
            smaller = "smaller blocks (`v5 search --rerank --block N`)" if size > 1 else "shorter candidates"
            raise EncodeError(
                f"{len(documents)} candidates in blocks of {size} need more memory than "
                f"{serving.numerics.device} has; use {smaller}, or a device with more memory"
            ) from error
        return pack_json(
            {
                "model": self.model,
                "revision": serving.revision,
                "label": label(serving, size),
                "block": size,
                "blocks": list(ranking.blocks),
                "ranking": [list(pair) for pair in zip(ranking.order, ranking.scores, strict=True)],
                "truncated": list(ranking.truncated),
                "query_truncated": ranking.query_truncated,
                "tokens": ranking.tokens,
            }
        )

    def _serving(self) -> Reranker:
        if self.reranker is None:
            raise RuntimeError("the model is not loaded")
        return self.reranker
