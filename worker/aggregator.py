"""The aggregator: merges the parts of ready batches, writes them to the store, and answers for the store.

It is the only process that opens the store.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

from redis.exceptions import RedisError

from ledger.alive import Process
from ledger.jobs import DeadLetter
from ledger.reconciler import Reconciler
from ledger.server import named_errors
from ledger.steps import Taken, read_chunks
from ledger.work import moves
from registry.chunks import Chunk
from registry.codecs import Part, unpack_part
from registry.errors import (
    CodecError,
    FleetError,
    InfrastructureError,
    JobUnknown,
    SpaceMismatch,
    StoreRefused,
    StoreUnavailable,
    StoreUnfit,
    UsageError,
    V5Error,
)
from registry.names import PREFIX, QUEUE_AGGREGATE, QUEUE_STORE, TASK_AGGREGATE, TASK_STORE, embed_queue
from registry.settings import Settings
from store.base import Point, Store
from store.factory import open_store
from store.points import build_point
from worker.answers import Answers
from worker.copies import copied
from worker.counters import Counters
from worker.golden_record import GoldenRecords
from worker.merge import Merged, merge
from worker.numerics_record import NumericsRecords
from worker.process import FleetProcess
from worker.store_requests import OPERATIONS

log = logging.getLogger(__name__)

#: A full Redis in which nothing is ready is emptied down to this share of its maxmemory.
ROOM_SHARE = 0.85
#: How often an idle aggregator looks for something to index. Seconds.
MAINTAIN_EVERY = 60.0
#: Characters of a dead letter's text that are kept.
DEAD_TEXT = 2000
#: A collection is looked at again before a write if the last look is older than this: another process may
#: have migrated it, or made it anew. Seconds.
LOOK_AGAIN = 5.0
#: A step of a migration whose aggregator died keeps others from going on for so long at least. Seconds.
MIGRATION_LOCK = 60.0


class Aggregator(FleetProcess):
    """Threads write different batches at once; requests to the store have threads of their own."""

    threads = 3
    answering = 4

    def __init__(self, settings: Settings, name: str = "aggregator") -> None:
        super().__init__(settings, Process(kind="aggregator", name=name), [QUEUE_AGGREGATE], [QUEUE_STORE])
        self.store: Store | None = None
        self._records: GoldenRecords | None = None
        self._numbers: NumericsRecords | None = None
        self._answers = Answers(self.ledger)
        self._reconciler = Reconciler(self.ledger, self.doorbell.ring, self.doorbell.waiting)
        #: By collection and plan: what the collection was filled with at the last look, and when that was.
        self._opened: dict[tuple[str, str], tuple[str, float]] = {}
        self._counters = Counters()
        # Since when Redis is full and nothing could be written; None while it is not so.
        self._stuck: float | None = None

    def register(self) -> None:
        """Aggregate steps and the requests to the store."""
        self.task(TASK_AGGREGATE, QUEUE_AGGREGATE, self._aggregate)
        for operation, work in OPERATIONS.items():
            self.task(f"{TASK_STORE}.{operation}", QUEUE_STORE, self._store_task(operation, work))

    def _store_task(
        self, operation: str, work: Callable[[Store, dict[str, Any]], bytes]
    ) -> Callable[..., str]:
        def on_store(asked: dict[str, Any]) -> bytes:
            if operation == "migrate":
                with self._one_migration(str(asked["collection"])):
                    return work(self._open_store(), asked)
            if operation == "indexing":
                self._settle_bulk(self._open_store(), str(asked["collection"]))
                asked = {**asked, "begin": self._is_idle()}
            answer = work(self._open_store(), asked)
            if operation == "open":
                # Before the first batch is staged: a worker of other numerics leaves without one.
                collection = str(asked["collection"])
                self._goldens().settle(collection, self._open_store().plan(collection))
                self._settle_bulk(self._open_store(), collection)
            return answer

        def answer(**arguments: Any) -> str:
            return self._answers.give(arguments, on_store)

        # Named: Celery reads a task's signature by its name.
        return answer

    @contextmanager
    def _one_migration(self, collection: str) -> Iterator[None]:
        """One aggregator at a time: two that began at once would not agree on what is older. Raises
        StoreUnavailable while another is at it."""
        # Longer than a step on a slow server, of several requests.
        seconds = max(MIGRATION_LOCK, 4 * self.settings.qdrant_seconds)
        lock = self.ledger.redis.lock(f"{PREFIX}migrating:{collection}", timeout=seconds)
        with named_errors():
            mine = lock.acquire(blocking=False)
        if not mine:
            raise StoreUnavailable(f"another aggregator is migrating collection {collection!r} right now")
        try:
            yield
        finally:
            # It runs out by itself.
            with suppress(RedisError):
                lock.release()

    def prepare(self) -> None:
        """Open the store; if Redis is full, empty it before anything is consumed; start the reconciler."""
        self.store = open_store(self.settings)
        self._records = GoldenRecords(self.store, self.ledger.goldens)
        self._numbers = NumericsRecords(self.store)
        self._wait_for_store(self.store)
        self.wait_for_room(self.relieve)
        threading.Thread(target=self._reconcile, name="reconcile", daemon=True).start()
        threading.Thread(target=self._maintain, name="maintain", daemon=True).start()

    def release(self) -> None:
        """Flush and close the store."""
        if self.store is not None:
            self.store.close()

    def _wait_for_store(self, store: Store) -> None:
        """Wait for a server that is not there yet. Raises FleetError if waiting would not mend it."""
        told = False
        while not self.stopping.is_set():
            try:
                store.connect()
                break
            except StoreUnfit as error:
                raise FleetError(str(error)) from error
            except StoreUnavailable as error:
                if not told:
                    self.say("waiting", str(error))
                    log.warning("%s; waiting for it", error)
                    told = True
                self.stopping.wait(1.0)
        if told:
            self.say("starting")

    def relieve(self) -> bool:
        """Free memory in a full Redis, without a message: write what is ready. Where nothing is for a while,
        vectors cannot be written either: drop the youngest batches nobody works on, until there is room;
        their chunks are staged again. Says whether it freed anything."""
        try:
            ready = self._reconciler.ready_batches()
            outcomes = [self.edge.step(batch, QUEUE_AGGREGATE, self._work) for batch in ready]
            if "written" in outcomes:
                self._stuck = None
                return True
            now = time.monotonic()
            self._stuck = self._stuck or now
            return now - self._stuck >= self.settings.ring_seconds and self._drop_youngest()
        except InfrastructureError as error:
            log.warning("could not relieve Redis: %s", error)
            return False

    def _drop_youngest(self) -> bool:
        dropped = False
        for server in self.ledger.servers.full():
            relieves = partial(self.ledger.relieves, server=server)
            while server.is_full(ROOM_SHARE):
                victim = self._reconciler.newest_idle_batch(relieves)
                if victim is None:
                    break
                log.warning("%s is full, no batch is ready: %s is dropped and staged again", server, victim)
                dropped = self.ledger.jobs.drop(victim) or dropped
        return dropped

    def _reconcile(self) -> None:
        while not self.stopping.wait(self.settings.reconcile_seconds):
            try:
                if self.ledger.servers.full():
                    self.relieve()
                else:
                    self._stuck = None
                rung = self._reconciler.round()
                if rung:
                    log.info("rang %d overdue steps", rung)
            except InfrastructureError as error:
                log.warning("reconciling waits: %s", error)
            except Exception:
                log.exception("reconciling failed; it goes on")

    def _maintain(self) -> None:
        """End what bulk loads left behind; index what was written whenever nothing is to be done."""
        self._settle_all()
        self._settle_bulk_loads()
        while not self.stopping.wait(MAINTAIN_EVERY):
            try:
                self._settle_bulk_loads()
                if self._is_idle():
                    self._each_collection("indexing it waits", self._index)
            except V5Error as error:
                log.warning("indexing waits: %s", error)
            except Exception:
                log.exception("indexing failed; it is tried again")

    def _index(self, store: Store, collection: str) -> None:
        if self._is_idle():
            store.maintain(collection)

    def _is_idle(self) -> bool:
        return not any(self.ledger.depths().values())

    def _settle_bulk_loads(self) -> None:
        self._each_collection("its bulk loads are looked at again", self._settle_bulk)

    def _settle_bulk(self, store: Store, collection: str) -> None:
        """Have the collection indexed as before where the jobs that loaded in bulk have ended, or nobody
        works on them any more."""
        store.settle_bulk(collection, self._is_under_way)

    def _is_under_way(self, job: str) -> bool:
        try:
            return self.ledger.jobs.get(job).under_way
        except JobUnknown:
            return False

    def _settle_all(self) -> None:
        """Put the collections' golden vectors where the workers look: the ledger may have been lost."""
        self._each_collection(
            "its golden vectors are looked at when it is next opened",
            lambda store, collection: self._goldens().settle(collection, store.plan(collection)),
        )

    def _each_collection(self, failed: str, work: Callable[[Store, str], object]) -> None:
        """Do something with every collection; one that fails keeps no other from its turn."""
        store = self._open_store()
        try:
            collections = store.collections()
        except V5Error as error:
            log.warning("the collections cannot be listed: %s", error)
            return
        for collection in collections:
            if self.stopping.is_set():
                return
            try:
                work(store, collection)
            except V5Error as error:
                log.warning("collection %r: %s: %s", collection, failed, error)
            except Exception:
                log.exception("collection %r: %s", collection, failed)

    def _goldens(self) -> GoldenRecords:
        if self._records is None:
            raise RuntimeError("the store is not open")
        return self._records

    def _numerics(self) -> NumericsRecords:
        if self._numbers is None:
            raise RuntimeError("the store is not open")
        return self._numbers

    def _open_store(self) -> Store:
        if self.store is None:
            raise RuntimeError("the store is not open")
        return self.store

    def _aggregate(self, **arguments: Any) -> str:
        return self.edge.run(arguments, self._work)

    def _work(self, taken: Taken) -> str:
        """One batch: parts in, points out, closed."""
        store = self._open_store()
        self._look_at(store, taken)
        found = self._copied(store, taken) if taken.copies else self._merged(taken)
        if found is None:
            return "incomplete"
        merged, parts = found
        points = [
            build_point(
                chunk, merged.vectors[chunk.id], taken.job, taken.started, merged.tokens.get(chunk.id) or None
            )
            for chunk in merged.chunks
        ]
        write = {
            "upsert": store.upsert,
            "update": store.update_vectors,
            "payload": store.update_payload,
        }[taken.kind]
        try:
            self._look_at(store, taken)
            self._numerics().settle(taken.collection, taken.plan, taken.names if parts else (), parts)
            refused, lost = self._write(
                lambda some: write(taken.collection, some, taken.started),
                points,
                {chunk.id: chunk for chunk in merged.chunks},
            )
        except (StoreUnavailable, UsageError, SpaceMismatch):
            # It may have been removed from the server: the next try makes it anew.
            self._forget(taken)
            raise
        if lost:
            log.warning(
                "%d points that batch %s was to update are not there as they were: its producer looks again",
                lost,
                taken.batch,
            )
        dead = [_letter(chunk, why, "embed") for chunk, why in merged.rejected] + refused
        seen, kept, truncated = _token_totals(merged)
        done = len(points) - len(refused) - lost
        copies = done if taken.copies else 0
        work = _work_on_copies(taken, copies, self.process.id)
        woken = self.ledger.steps.close(taken, done, seen, kept, truncated, dead, lost, work)
        if woken is not None:
            self._counters.add(cached=copies)
            for batch in woken:
                self.doorbell.ring(batch, QUEUE_AGGREGATE)
        return "written"

    def _merged(self, taken: Taken) -> tuple[Merged, dict[str, Part]] | None:
        """What the parts of a batch come to; None if one must be computed again."""
        fetched = self._fetch(taken)
        if fetched is None:
            return None
        chunks, parts = fetched
        return merge(taken.plan, taken.names, chunks, parts), parts

    def _copied(self, store: Store, taken: Taken) -> tuple[Merged, dict[str, Part]] | None:
        """What a batch of copies comes to; None while a batch that has an original is open, and where one
        does not stand: then the batch is embedded."""
        chunks = self.ledger.steps.chunks(taken)
        # Looked at before the store is: what has ended by now stands there, or never will.
        if self.ledger.steps.wait(taken, {c.original.batch for c in chunks if c.original is not None}):
            return None
        letters = partial(self.ledger.jobs.letters, taken.job)
        merged = copied(store, taken.collection, taken.plan, taken.names, chunks, letters)
        if merged is not None:
            return merged, {}
        log.warning("batch %s is embedded: the original of a copy in it does not stand", taken.batch)
        for step in self.ledger.steps.embed(taken):
            self.doorbell.ring(taken.batch, step)
        return None

    def refresh(self) -> None:
        """See FleetProcess.refresh."""
        self.change(counters={"cached": self._counters.totals().get("cached", 0)})

    def _look_at(self, store: Store, taken: Taken) -> None:
        """Make sure that the collection is there and is what the batch's plan says; little work if it was
        looked at a moment ago. Raises SpaceMismatch, UsageError, and as Store.open."""
        key = (taken.collection, taken.plan.fingerprint)
        made, seen = self._opened.get(key, ("", 0.0))
        now = time.monotonic()
        if key in self._opened and now - seen < LOOK_AGAIN:
            return
        if key not in self._opened or not self._is_still(store, taken.collection, made):
            self._forget(taken)
            store.open(taken.collection, taken.plan)
            self._goldens().settle(taken.collection, taken.plan)
            made = store.binding(taken.collection).made
        self._opened[key] = (made, now)

    def _is_still(self, store: Store, collection: str, made: str) -> bool:
        try:
            return store.binding(collection).made == made
        except UsageError:
            # It was removed.
            return False

    def _forget(self, taken: Taken) -> None:
        self._opened.pop((taken.collection, taken.plan.fingerprint), None)
        self._goldens().forget(taken.collection)
        self._numerics().forget(taken.collection)

    def _fetch(self, taken: Taken) -> tuple[list[Chunk], dict[str, Part]] | None:
        """Text and parts in one round trip; a part that is lost, damaged, or of a worker with other golden
        vectors than the collection's is due again, and there is nothing yet.

        Raises BlobLost if the text is gone.
        """
        keys = [taken.text, *(taken.part_key(model) for model in taken.models)]
        text, *blobs = self.ledger.blobs.get(taken.batch, keys)
        chunks = read_chunks(taken.batch, text)
        parts: dict[str, Part] = {}
        for model, blob in zip(taken.models, blobs, strict=True):
            try:
                if blob is None:
                    raise CodecError("it is gone")
                part = unpack_part(blob)
                if len(part) != len(chunks):
                    raise CodecError(f"it is for {len(part)} texts, the batch has {len(chunks)}")
                if refused := self._goldens().refuses(taken.collection, taken.plan, model, part):
                    raise CodecError(refused)
                parts[model] = part
            except CodecError as error:
                log.warning("the part of %s in batch %s is computed again: %s", model, taken.batch, error)
                self.ledger.steps.unrecord(taken, model)
                self.doorbell.ring(taken.batch, embed_queue(model))
        return (chunks, parts) if len(parts) == len(taken.models) else None

    def _write(
        self, write: Callable[[list[Point]], list[str] | None], points: list[Point], chunks: dict[str, Chunk]
    ) -> tuple[list[DeadLetter], int]:
        """Write points; what the store refuses for good is narrowed down to the points concerned. Also says
        how many were not there to be updated."""
        if not points:
            return [], 0
        try:
            return [], len(write(points) or ())
        except StoreRefused as error:
            if len(points) == 1:
                return [_letter(chunks[points[0].id], str(error), "store")], 0
            half = len(points) // 2
            refused, lost = self._write(write, points[:half], chunks)
            more_refused, more_lost = self._write(write, points[half:], chunks)
            return refused + more_refused, lost + more_lost


def _letter(chunk: Chunk, reason: str, stage: str) -> DeadLetter:
    return DeadLetter(chunk.id, reason, stage, chunk.where, chunk.text[:DEAD_TEXT])


def _work_on_copies(taken: Taken, copies: int, process: str) -> dict[str, float]:
    """What the job's totals move by for chunks that no model had to take."""
    moved: dict[str, float] = {}
    for model in taken.plan.models_for(taken.names) if copies else ():
        moved |= moves(model, process, {"chunks": copies, "cached": copies})
    return moved


def _token_totals(merged: Merged) -> tuple[int, int, int]:
    """Tokens seen and kept over all models, and vectors made of a cut text."""
    pairs = [pair for models in merged.tokens.values() for pair in models.values()]
    truncated = sum(s > k for s, k in pairs) + merged.shortened
    return sum(s for s, _ in pairs), sum(k for _, k in pairs), truncated
