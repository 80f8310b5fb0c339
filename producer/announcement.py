"""A producer announces itself in the ledger, so that `v5 ps` shows it and how far it is."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from types import TracebackType
from typing import Self

from ledger.alive import Alive, Condition, Process
from producer.submission import Progress
from registry.errors import V5Error

log = logging.getLogger(__name__)


class Announcement:
    """Announces this process for as long as the `with` lasts."""

    def __init__(self, alive: Alive, collection: str, seconds: float) -> None:
        """It is announced anew every third of `seconds`, the time for which the ledger believes it."""
        self._alive = alive
        self._every = seconds / 3
        self._process = Process(kind="producer", name=f"submit-{collection}")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._announce, name="announce", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        # Where Redis hangs it runs out by itself; the end does not wait for that.
        self._thread.join(1.0)
        if self._thread.is_alive():
            return
        try:
            self._alive.withdraw(self._process)
        except V5Error as failure:
            log.info("could not sign off: %s", failure)

    def show(self, progress: Progress) -> None:
        """How far it is, from the next announcement on."""
        finished = progress.skipped + progress.done
        known = f"{progress.read:,}" if progress.complete else f"{max(progress.read, finished):,}+"
        note = f"job {progress.job}: {finished:,} of {known} chunks"
        if progress.waiting:
            note += f"; waiting: {progress.waiting}"
        condition: Condition = "waiting" if progress.waiting else "ready" if progress.job else "starting"
        self._process = replace(self._process, note=note, condition=condition)

    def _announce(self) -> None:
        while True:
            try:
                self._alive.announce(self._process)
            except V5Error as error:
                log.debug("could not announce: %s", error)
            if self._ended.wait(self._every):
                return
