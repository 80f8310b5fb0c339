"""The reconciler: rings steps that are overdue, so that no message ever has to arrive.

Every aggregator has one; a key with a TTL lets one of them be active.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from ledger.blobs import blob_keys
from ledger.ledger import Ledger
from ledger.server import as_text, named_errors
from registry.names import PREFIX, QUEUE_AGGREGATE

_LOCK = f"{PREFIX}reconciler"
#: Rings of one queue in one round; a larger backlog takes several rounds.
MOST_PER_ROUND = 256
#: Blobs of open batches get a new TTL this often. Seconds.
RENEW_EVERY = 3600.0


class Reconciler:
    """Looks for overdue steps, round after round."""

    def __init__(
        self, ledger: Ledger, ring: Callable[[str, str], object], waiting: Callable[[str], int]
    ) -> None:
        """`ring(batch, step)` sends a doorbell; `waiting(queue)` counts those not yet received."""
        self._ledger = ledger
        self._ring = ring
        self._waiting = waiting
        self._token = secrets.token_hex(8)
        self._renewed = time.monotonic()
        self._ttl_ms = int(ledger.settings.reconcile_seconds * 5000)

    def round(self) -> int:
        """One look, if this reconciler is the active one; returns how many steps it rang."""
        if not self._active():
            return 0
        rung = 0
        with named_errors():
            queues = sorted(name.decode() for name in self._ledger.redis.smembers(f"{PREFIX}queues"))
        for queue in queues:
            for batch in self._ledger.steps.due(queue, self._waiting(queue), MOST_PER_ROUND):
                self._ring(batch, queue)
                rung += 1
        if time.monotonic() - self._renewed > RENEW_EVERY:
            self._renew_blobs()
            self._renewed = time.monotonic()
        return rung

    def _active(self) -> bool:
        with named_errors():
            redis = self._ledger.redis
            standing = redis.set(_LOCK, self._token, nx=True, px=self._ttl_ms, get=True)
            if standing is None:
                return True
            if standing.decode() != self._token:
                return False
            redis.pexpire(_LOCK, self._ttl_ms)
            return True

    def _renew_blobs(self) -> None:
        """Start the TTL of every open batch's blobs again; those of no open batch die alone."""
        for batch in self.open_batches():
            with named_errors():
                fields = as_text(self._ledger.redis.hgetall(f"{PREFIX}batch:{batch}"))
            self._ledger.blobs.renew(batch, blob_keys(batch, fields))

    def open_batches(self) -> list[str]:
        """Every open batch of every unfinished job."""
        found: list[str] = []
        for job in self._ledger.jobs.list():
            if job.open_batches:
                with named_errors():
                    members = self._ledger.redis.smembers(f"{PREFIX}job:{job.id}:open")
                found += [name.decode() for name in members]
        return found

    def newest_idle_batch(self, suits: Callable[[str], bool]) -> str | None:
        """The youngest open batch that suits, is not ready, and nobody has a lease on; None without one."""
        candidates = []
        for batch in filter(suits, self.open_batches()):
            with named_errors():
                fields = self._ledger.redis.hgetall(f"{PREFIX}batch:{batch}")
            if fields and int(fields[b"wait"]) > 0 and not any(k.startswith(b"lease:") for k in fields):
                candidates.append((int(fields[b"created"]), batch))
        return max(candidates)[1] if candidates else None

    def ready_batches(self) -> list[str]:
        """Batches that have all their parts, oldest first."""
        with named_errors():
            names = self._ledger.redis.zrange(f"{PREFIX}steps:{QUEUE_AGGREGATE}", 0, -1)
        return [name.decode() for name in names]
