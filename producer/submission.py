"""A submission: read a corpus, ask what the collection lacks, stage that, wait until it is done."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from ledger.jobs import DeadLetter, Job, State
from ledger.steps import Full, Kind
from ledger.work import Work, since
from producer.batching import cut_batches, windows
from producer.corpus import Corpus
from producer.credit import BATCHES_AT_LEAST, vector_bytes, vector_cost
from producer.fleet import Fleet
from producer.originals import Originals
from producer.problem import Problem
from producer.pruning import Pruning
from registry.chunks import STORED, Chunk, chunk_id
from registry.errors import FleetError, InfrastructureError, JobClosed, JobUnknown, LedgerRewound, V5Error
from registry.frames import pack_chunks
from registry.index import Index
from registry.names import QUEUE_AGGREGATE, embed_queue
from registry.plan import Plan

log = logging.getLogger(__name__)

T = TypeVar("T")

#: How often the ledger is asked how far the job is. Seconds.
LOOK = 0.25
#: Passes over the corpus: a further one is needed only where text was lost on the way.
MOST_PASSES = 10


@dataclass
class Progress:
    """How far a submission is; counts are chunks."""

    job: str = ""
    read: int = 0
    #: Already in the collection, with every vector of the plan.
    skipped: int = 0
    staged: int = 0
    done: int = 0
    dead: int = 0
    #: Files and records left out by a rule.
    ignored: int = 0
    #: The whole corpus has been read, so `read` is its size.
    complete: bool = False
    #: What it waits for, if it does.
    waiting: str = ""
    #: An earlier, unfinished submission is being finished.
    adopted: bool = False
    #: Seconds in which this process was busy and nothing waited for any process of the fleet.
    limiting: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def finished(self) -> int:
        """Chunks that need nothing more."""
        return self.skipped + self.done + self.dead


@dataclass(frozen=True)
class Summary:
    """What a submission came to; `chunks` = `skipped` + `done` + `dead`."""

    job: str
    collection: str
    chunks: int
    skipped: int
    done: int
    dead: int
    seconds: float
    chunks_per_second: float
    ignored: int
    ignored_reasons: dict[str, int]
    tokens_seen: int
    tokens_kept: int
    truncated: int
    state: str
    plan: str
    #: Points removed because the corpus has them no more; None if it was not asked for, or not done.
    pruned: int | None = None
    #: What is to be said about it: why it was not done, or what was left.
    prune_note: str = ""
    #: After a migration, by named vector of the plan: points of the collection that lack it.
    lacking: dict[str, int] = field(default_factory=dict)
    #: What each worker did for it meanwhile; its device's share of `seconds` is `device_busy`.
    workers: list[dict[str, Any]] = field(default_factory=list)
    #: Share of the time in which the producer was the limit: busy, while nothing waited for the fleet.
    producer_limited: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


class Submission:
    """One run of `v5 submit`."""

    def __init__(
        self,
        fleet: Fleet,
        corpus: Corpus,
        collection: str,
        plan: Plan,
        report: Callable[[Progress], None] = lambda _progress: None,
        *,
        pruning: Pruning | None = None,
        migrate: bool = False,
        bulk: bool = False,
    ) -> None:
        """With `pruning`, what the collection has of the corpus' sources and the corpus has not, goes. With
        `migrate`, so do vectors that stand in other spaces than the plan's, before anything is staged. With
        `bulk`, no index is built before the job has ended."""
        self._fleet = fleet
        self._settings = fleet.settings
        self._ledger = fleet.ledger
        self._corpus = corpus
        self._collection = collection
        self._plan = plan
        self._names = [vector.name for vector in plan.vectors()]
        self._report = report
        self._pruning = pruning
        self._migrate = migrate
        self._bulk = bulk
        self._holder = f"{socket.gethostname()}:{os.getpid()}"
        self._looked = 0.0
        #: Seconds that this process waited since, for an answer or for room.
        self._waited = 0.0
        self._queues = [*(embed_queue(model) for model in plan.models), QUEUE_AGGREGATE]
        self._seen: Job | None = None
        self._base = 0
        self._worked: tuple[Work, ...] = ()
        self._next = 0
        self._limit = 0
        self.progress = Progress()

    def run(self) -> Summary:
        """Submit and follow to the end.

        Raises KeyboardInterrupt as it comes, with nothing lost: what is staged goes on, and the same
        submission again finishes the rest.
        """
        began = time.monotonic()
        pruned, prune_note = None, ""
        lacking: dict[str, int] = {}
        migrating = self._migrated() if self._migrate else None
        standing = self._patient(lambda: self._fleet.open_collection(self._collection, self._plan))
        self._say_other_index(standing.plan)
        self._limit = self._patient(lambda: self._ledger.blobs.budget(self._settings.inflight_bytes))
        job = migrating or self._open()
        try:
            for _ in range(MOST_PASSES):
                try:
                    lost = self._look(job.id, force=True).lost
                    self._pass(job.id)
                    seen = self._drain(job.id)
                    if seen.next != self._next:
                        raise LedgerRewound(f"of job {job.id}, batches that were staged are not known")
                    if seen.lost == lost:
                        if self._pruning is not None:
                            pruned, prune_note = self._prune(self._pruning, job.id)
                        if self._migrate:
                            counts = self._patient(lambda: self._fleet.lacking(self._collection, self._names))
                            lacking = {name: count for name, count in counts.items() if count}
                        state = self._seal(job.id)
                        last = self._look(job.id, force=True)
                        break
                    if seen.state == "open":
                        self._start_anew()
                except (LedgerRewound, JobUnknown):
                    self._say_data_lost()
                    job = self._open()
            else:
                raise FleetError(
                    f"in each of {MOST_PASSES} passes Redis lost text on its way, or points vanished that "
                    "were to be updated; mend Redis (`v5 doctor` helps), or end what removes points, then "
                    f"submit again: job {job.id} goes on with what is not stored yet"
                )
        except JobClosed as error:
            last = self._look(job.id, force=True)
            state = last.state
            if state in ("sealed", "done"):
                raise FleetError(f"{error}; another producer ended it. Submit again to go on") from error
            self._say_waiting(str(error))
            if self._pruning is not None:
                prune_note = f"nothing was pruned: job {job.id} did not end ({state})"
        finally:
            with contextlib.suppress(InfrastructureError):
                self._ledger.jobs.let_go(job.id, self._holder)
        seconds = time.monotonic() - began
        progress = self.progress
        return Summary(
            job=job.id,
            collection=self._collection,
            chunks=progress.finished,
            skipped=progress.skipped,
            done=progress.done,
            dead=progress.dead,
            seconds=round(seconds, 3),
            chunks_per_second=round(progress.done / seconds, 1),
            ignored=progress.ignored,
            ignored_reasons=dict(progress.reasons),
            tokens_seen=last.tokens_seen,
            tokens_kept=last.tokens_kept,
            truncated=last.truncated,
            state=state,
            plan=self._plan.describe(),
            pruned=pruned,
            prune_note=prune_note,
            lacking=lacking,
            workers=[one.summary(seconds) for one in since(last.work, self._worked)],
            producer_limited=round(progress.limiting / seconds, 3),
        )

    def _migrated(self) -> Job:
        """Open the job, so that no other plan has the collection, then have the vectors of other spaces
        removed. Raises as Fleet.migrate; a job of which nothing came is cancelled then."""
        job = self._open()
        try:
            while not self._migrates(job.started):
                self._say_waiting("the vectors of the former space are being removed")
                try:
                    self._look(job.id, force=True)
                except JobUnknown:
                    self._say_data_lost()
                    job = self._open()
        except BaseException as error:
            with contextlib.suppress(InfrastructureError, JobUnknown):
                if isinstance(error, V5Error) and not isinstance(error, InfrastructureError) and not job.next:
                    self._ledger.jobs.cancel(job.id)
                self._ledger.jobs.let_go(job.id, self._holder)
            raise
        self.progress.waiting = ""
        # Newer than any migration of another job of this plan that came in between.
        return self._start_anew()[0]

    def _migrates(self, started: int) -> bool:
        """Remove some of the vectors of the former space; says whether none is left."""
        return self._patient(lambda: self._fleet.migrate(self._collection, self._plan, started))

    def _prune(self, pruning: Pruning, job: str) -> tuple[int | None, str]:
        """Remove what the last pass did not have; how many points went, and what is to be said about it."""
        if hindrance := pruning.hindrance:
            return None, f"nothing was pruned: {hindrance}"
        if (seen := self._look(job, force=True)).state != "open":
            raise JobClosed(f"job {job} is {seen.state}")
        self._patient(lambda: pruning.run(seen.started))
        left = (
            f"{pruning.unsourced} points of the collection do not say what they were read from; none of them "
            "was pruned"
        )
        return pruning.deleted, left if pruning.unsourced else ""

    def _say_other_index(self, standing: Plan) -> None:
        """An index that was asked for and is not what the collection has, is not applied: say so."""
        if self._plan.index == Index():
            return
        other = [
            vector.name
            for vector in self._plan.vectors()
            if vector.kind != "sparse" and standing.index_of(vector) != self._plan.index_of(vector)
        ]
        if other:
            log.warning(
                "collection %r stands with another index for %s, which stays; the one asked for would need a "
                "new collection",
                self._collection,
                ", ".join(other),
            )

    def _open(self) -> Job:
        """Adopt or open the job; wait for what an earlier run left in flight."""
        while True:
            try:
                return self._opened()
            except JobUnknown:
                # Lost while it was waited for: then nothing of it is in flight any more.
                self._say_data_lost()

    def _opened(self) -> Job:
        job, adopted = self._start_anew()
        self.progress.job, self.progress.adopted = job.id, adopted
        self._base = job.done
        if self._drain(job.id).state == "open" and adopted:
            self._start_anew()
        job = self._look(job.id, force=True)
        # What an earlier run staged is found in the collection by the coming pass.
        self._base, self._next, self._worked = job.done, job.next, job.work
        if job.plan.transport != self._plan.transport:
            # Its workers go by the job's plan, and so must what is reserved for them.
            log.warning(
                "job %s was begun with vectors sent as %s, and goes on so", job.id, job.plan.transport
            )
            self._plan = self._plan.model_copy(update={"transport": job.plan.transport})
        self.progress.done = 0
        return job

    def _start_anew(self) -> tuple[Job, bool]:
        """Open or adopt the job; says whether it was adopted. Adopted with nothing under way, it starts now:
        newer than what others wrote meanwhile."""
        what = (self._collection, self._plan, self._corpus.sources, self._corpus.part)
        return self._patient(lambda: self._ledger.jobs.open(*what))

    def _pass(self, job: str) -> None:
        """Read the whole corpus once and stage what the collection lacks."""
        progress = self.progress
        progress.read = progress.skipped = progress.ignored = 0
        progress.complete, progress.reasons = False, {}
        written = progress.done
        dead = self._dead_ids(job)
        originals = Originals()
        if self._bulk:
            self._patient(lambda: self._fleet.begin_bulk(self._collection, job))
        if self._pruning is not None:
            self._pruning.begin()
        for window in windows(self._corpus.items(), self._settings):
            if self._pruning is not None:
                self._pruning.note(window)
            self._note_problems(job, window.problems)
            progress.read += len(window.chunks)
            fresh = [chunk for chunk in window.chunks if chunk.id not in dead]
            for (kind, names), chunks in self._lacking(fresh, originals).items():
                self._stage_all(job, kind, names, chunks, originals)
            if self._look(job, reading=True).state == "cancelled":
                raise JobClosed(f"job {job} is cancelled; nothing more can be staged into it")
        # In a further pass, what the first wrote stands in the collection and would count twice.
        progress.skipped -= written
        progress.complete = True
        self._look(job, force=True, reading=True)

    def _note_problems(self, job: str, problems: list[Problem]) -> None:
        """Count what a rule left out; what should have been a chunk goes to the dead letters."""
        for problem in problems:
            if problem.severity == "skipped":
                self.progress.ignored += 1
                self.progress.reasons[problem.reason] = self.progress.reasons.get(problem.reason, 0) + 1
        self._bury(job, [_letter(problem) for problem in problems if problem.severity == "rejected"])

    def _bury(self, job: str, letters: list[DeadLetter]) -> None:
        if not letters:
            return
        state = self._patient(lambda: self._ledger.jobs.bury(job, letters))
        if state == "paused":
            raise JobClosed(
                f"job {job} pauses at {self._settings.max_dead} dead letters; see `v5 dead {job}`, then "
                "submit again to go on (V5_MAX_DEAD raises the limit)"
            )

    def _dead_ids(self, job: str) -> set[str]:
        return self._patient(lambda: {letter.id for letter in self._ledger.jobs.dead(job)})

    def _lacking(
        self, chunks: list[Chunk], originals: Originals
    ) -> dict[tuple[Kind, tuple[str, ...]], list[Chunk]]:
        """Group chunks by what the collection lacks of them; what lacks nothing is skipped."""
        groups: dict[tuple[Kind, tuple[str, ...]], list[Chunk]] = {}
        if not chunks:
            return groups
        rows = [(chunk.id, chunk.content_hash, chunk.payload_hash) for chunk in chunks]
        with self._waiting():
            verdicts = self._patient(lambda: self._fleet.compare(self._collection, self._names, rows))
        for chunk, (verdict, *lacking) in zip(chunks, verdicts, strict=True):
            match verdict:
                case "same":
                    self.progress.skipped += 1
                    originals.note([chunk], STORED)
                case "lacking":
                    groups.setdefault(("update", tuple(lacking[0])), []).append(chunk)
                case "payload":
                    originals.note([chunk], STORED)
                    groups.setdefault(("payload", ()), []).append(chunk)
                case _:
                    groups.setdefault(("upsert", tuple(self._names)), []).append(chunk)
        return groups

    def _stage_all(
        self,
        job: str,
        kind: Kind,
        names: tuple[str, ...],
        chunks: list[Chunk],
        originals: Originals,
    ) -> None:
        """Stage chunks that lack the same; of equal texts, one is embedded and the others copy its vectors.

        Copies are in batches of their own, so that what is embedded waits for nothing.
        """
        cut = partial(
            cut_batches,
            settings=self._settings,
            vectors=vector_cost(self._plan, names),
            most_vectors=self._limit // BATCHES_AT_LEAST,
            staged=self.progress.staged + len(chunks),
        )
        fresh, copies = originals.split(chunks) if names else (chunks, [])
        for batch in cut(fresh):
            number = self._stage(job, kind, names, batch)
            if names:
                originals.note(batch, number)
        for batch in cut(copies):
            named = [replace(chunk, original=originals.of(chunk)) for chunk in batch]
            last = max((chunk.original.batch for chunk in named if chunk.original), default=STORED)
            self._stage(job, kind, names, named, last)

    def _stage(
        self, job: str, kind: Kind, names: tuple[str, ...], batch: list[Chunk], after: int | None = None
    ) -> int:
        """Stage one batch, waiting for room, and ring its first steps; returns its number. Of copies, `after`
        is the last batch that has an original."""
        blob = pack_chunks(batch)
        # For copies, too: where an original does not come, they are embedded after all.
        reserve = vector_bytes(self._plan, names, batch) if kind != "payload" else 0
        what = (job, self._plan, self._next, kind, names, len(batch), blob, reserve, self._limit)
        token = secrets.token_hex(8)
        while True:
            staged = self._patient(lambda: self._ledger.steps.stage(*what, token, after))
            if not isinstance(staged, Full):
                break
            self._say_waiting(
                f"{staged.used >> 20} of {self._limit >> 20} MiB in flight are taken; waiting for the fleet"
            )
            self._look(job, reading=True)
            with self._waiting():
                time.sleep(LOOK)
        for step in staged:
            self._fleet.doorbell.ring(f"{job}.{self._next}", step)
        self._next += 1
        self.progress.staged += len(batch)
        self.progress.waiting = ""
        self._look(job, reading=True)
        return self._next - 1

    def _drain(self, job: str) -> Job:
        """Wait until none of the job's batches is open."""
        while (seen := self._look(job, force=True)).open_batches:
            self._patient(lambda: self._ledger.jobs.await_idle(job, LOOK))
        return seen

    def _seal(self, job: str) -> State:
        return self._patient(lambda: self._ledger.jobs.seal(job))

    def _look(self, job: str, *, force: bool = False, reading: bool = False) -> Job:
        """Ask the ledger how far the job is, at most every LOOK seconds, and report it.

        While the corpus is read, this process is the limit if nothing waits for the fleet.
        """
        now = time.monotonic()
        if not force and now - self._looked < LOOK and self._seen is not None:
            return self._seen
        busy = now - self._looked - self._waited
        self._looked, self._waited = now, 0.0
        if reading and busy > 0 and not self._patient(self._anything_waits):
            self.progress.limiting += busy
        self._patient(lambda: self._ledger.jobs.hold(job, self._holder))
        seen = self._patient(lambda: self._ledger.jobs.get(job))
        self._seen = seen
        self.progress.done = seen.done - self._base
        self.progress.dead = seen.dead
        self._report(self.progress)
        return seen

    @staticmethod
    def _say_data_lost() -> None:
        # The collection is the final ledger.
        log.warning("Redis has lost data; what is not stored yet is staged anew")

    def _anything_waits(self) -> bool:
        """Whether a step was rung for that no process has received yet."""
        return any(self._fleet.doorbell.waiting(queue) for queue in self._queues)

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._waited += time.monotonic() - began

    def _say_waiting(self, reason: str) -> None:
        self.progress.waiting = reason
        self._report(self.progress)

    def _patient(self, work: Callable[[], T]) -> T:
        """Do something with Redis; while it is away or full, wait, say so, and try again."""
        end = time.monotonic() + self._settings.patience_seconds
        wait = LOOK
        while True:
            try:
                return work()
            except InfrastructureError as error:
                if time.monotonic() >= end:
                    raise
                self._say_waiting(str(error))
                time.sleep(wait)
                wait = min(wait * 2, 5.0)


def _letter(problem: Problem) -> DeadLetter:
    # Named by its place: a repeated id belongs to the good chunk that had it first.
    return DeadLetter(chunk_id(f"problem\x00{problem.where}"), problem.reason, "read", problem.where)
