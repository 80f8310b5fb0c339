"""Jobs: one submission of a corpus to a collection under a plan, its totals and its dead letters."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

from ledger.blobs import Blobs, blob_keys
from ledger.scripts import Scripts
from ledger.server import Redis, as_text, named_errors
from ledger.work import Work, work_of
from registry.errors import FleetError, JobUnknown, UsageError
from registry.names import PREFIX
from registry.plan import Plan, plan_from_json

State = Literal["open", "paused", "sealed", "done", "cancelled"]
#: A producer that has not renewed its hold for this long has let go of its job. Seconds.
PRODUCER_TTL = 150
#: How long a finished job stays in the list. Seconds.
HISTORY_TTL = 30 * 86400


@dataclass(frozen=True)
class DeadLetter:
    """A chunk that did not make it: why, at which stage, and enough to find it again."""

    id: str
    reason: str
    #: `read`, `embed` or `store`.
    stage: str
    where: str = ""
    text: str = ""


@dataclass(frozen=True)
class Job:
    """A job as the ledger has it; counts are chunks unless named otherwise."""

    id: str
    collection: str
    state: State
    plan: Plan
    sources: tuple[str, ...]
    #: Milliseconds since the epoch by Redis' clock; orders writes to the collection.
    started: int
    created: int
    finished: int
    #: The number the next batch must have.
    next: int
    staged: int
    done: int
    dead: int
    lost: int
    batches: int
    open_batches: int
    tokens_seen: int
    tokens_kept: int
    truncated: int
    #: Whether a producer holds it now.
    held: bool
    #: Which part of the sources it is for, such as `shard 1/4`; empty: all of them.
    part: str = ""
    #: What each worker did for it.
    work: tuple[Work, ...] = ()

    @property
    def seconds(self) -> float:
        """From its beginning to its end, or until now."""
        return (self.finished or time.time() * 1000) / 1000 - self.created / 1000

    @property
    def interrupted(self) -> bool:
        """Left unsealed by a producer that is gone: `v5 submit` with the same arguments goes on."""
        return self.state == "open" and not self.held

    @property
    def under_way(self) -> bool:
        """Whether anybody stages for it, or anything staged is not stored yet."""
        return self.state in ("open", "sealed") and (self.held or self.open_batches > 0)

    def summary(self) -> dict[str, Any]:
        """For `--json`."""
        fields = asdict(self)
        fields["plan"] = self.plan.describe()
        fields["job"] = fields.pop("id")
        fields["workers"] = [one.summary(self.seconds) for one in self.work]
        del fields["work"]
        fields["interrupted"] = self.interrupted
        return fields


def signature(collection: str, plan: Plan, sources: Sequence[str], part: str = "") -> str:
    """What makes two submissions the same: collection, plan, sources, and which part of them."""
    text = json.dumps([collection, plan.fingerprint, sorted(sources), *([part] if part else [])])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


class Jobs:
    """Opens, adopts, lists, seals and cancels jobs."""

    def __init__(self, client: Redis, scripts: Scripts, blobs: Blobs, max_dead: int) -> None:
        """A job pauses at `max_dead` dead letters."""
        self._redis = client
        self._max_dead = max_dead
        self._run = scripts.run
        self._blobs = blobs

    def open(self, collection: str, plan: Plan, sources: Sequence[str], part: str = "") -> tuple[Job, bool]:
        """Adopt the unfinished job of the same submission, else open one; says whether it was adopted.

        An adopted job that had paused forgets its dead letters: they are tried again. Raises UsageError if
        an unfinished job with another plan has the collection.
        """
        fresh = f"{time.strftime('%y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(3)}"
        outcome, job = self._run(
            "open_job",
            fresh,
            signature(collection, plan, sources, part),
            collection,
            plan.fingerprint,
            plan.model_dump_json(),
            json.dumps(list(sources)),
            socket.gethostname(),
            self._max_dead,
            part,
        )
        if outcome == "busy":
            raise UsageError(
                f"collection {collection!r} has an unfinished job {job} with another plan; finish it by "
                f"submitting it again, or end it with `v5 cancel {job}`"
            )
        return self.get(job), outcome == "adopted"

    def get(self, job: str) -> Job:
        """The job of that id. Raises JobUnknown if there is none."""
        with named_errors():
            pipe = self._redis.pipeline(transaction=False)
            pipe.hgetall(f"{PREFIX}job:{job}")
            pipe.scard(f"{PREFIX}job:{job}:open")
            pipe.exists(f"{PREFIX}job:{job}:producer")
            fields, open_batches, held = pipe.execute()
        if not fields:
            raise JobUnknown(f"there is no job {job!r}; `v5 jobs` lists those there are")
        text = as_text(fields)
        counts = {
            name: int(text.get(name, 0))
            for name in (
                "started", "created", "finished", "next", "staged", "done", "dead", "lost", "batches",
                "tokens_seen", "tokens_kept", "truncated",
            )
        }  # fmt: skip
        return Job(
            id=job,
            collection=text["collection"],
            state=cast("State", text["state"]),
            plan=plan_from_json(text["plan"]),
            sources=tuple(json.loads(text["sources"])),
            open_batches=int(open_batches),
            held=bool(held),
            part=text.get("part", ""),
            work=work_of(text),
            **counts,
        )

    def list(self) -> list[Job]:
        """All jobs, newest first; those finished long ago are forgotten on the way."""
        with named_errors():
            oldest = (time.time() - HISTORY_TTL) * 1000
            for name in self._redis.zrangebyscore(f"{PREFIX}jobs", "-inf", oldest):
                job = name.decode()
                if self.get(job).state in ("done", "cancelled"):
                    # The list first: what it names must exist.
                    self._redis.zrem(f"{PREFIX}jobs", job)
                    self._redis.unlink(f"{PREFIX}job:{job}", f"{PREFIX}dead:{job}")
            names = [name.decode() for name in self._redis.zrevrange(f"{PREFIX}jobs", 0, -1)]
        return [self.get(name) for name in names]

    def hold(self, job: str, holder: str) -> None:
        """Take or keep the producer's hold on a job; `holder` is `host:pid`.

        A hold whose process is gone from this machine is taken over. Raises FleetError if another producer
        has the job.
        """
        key = f"{PREFIX}job:{job}:producer"
        with named_errors():
            standing = self._redis.set(key, holder, nx=True, ex=PRODUCER_TTL, get=True)
            if standing is None:
                return
            if standing.decode() != holder and not _is_gone(standing.decode()):
                raise FleetError(
                    f"job {job} is being submitted by {standing.decode()}; follow it with `v5 watch {job}` "
                    f"(if that producer died, its hold ends within {PRODUCER_TTL} s)"
                )
            self._redis.set(key, holder, ex=PRODUCER_TTL)

    def let_go(self, job: str, holder: str) -> None:
        """Give the producer's hold back, if it is still `holder`'s."""
        self._run("let_go", job, holder)

    def await_idle(self, job: str, seconds: float) -> None:
        """Wait until a job that is held has no open batch, or that long; then `get` says which. What became
        so in the last second, as the job was held, counts."""
        with named_errors():
            self._redis.blpop([f"{PREFIX}job:{job}:idle"], timeout=seconds)

    def seal(self, job: str) -> State:
        """Nothing more will be staged. Returns the state it is in then."""
        state: State = self._run("seal", job)
        return state

    def cancel(self, job: str) -> tuple[State, int]:
        """End a job: drop its open batches and their blobs.

        Returns the state it is in then (`done` if it had ended before) and how many batches were dropped.
        """
        outcome, *rest = self._run("cancel", job)
        if outcome == "gone":
            raise JobUnknown(f"there is no job {job!r}; `v5 jobs` lists those there are")
        batches = rest[0] if rest else []
        for batch in batches:
            self.drop(batch)
        return outcome, len(batches)

    def drop(self, batch: str) -> bool:
        """Give up a batch: free its credit, count its chunks as lost, delete its blobs.

        False if it had ended already.
        """
        with named_errors():
            # Should the script's answer be lost, its repetition finds nothing.
            fields = as_text(self._redis.hgetall(f"{PREFIX}batch:{batch}"))
        outcome, flat = self._run("drop", batch)
        fields |= dict(zip(flat[::2], flat[1::2], strict=True))
        self._blobs.delete(batch, blob_keys(batch, fields))
        return bool(outcome == "dropped")

    def bury(self, job: str, letters: Sequence[DeadLetter]) -> State:
        """Put chunks that never reached a batch on the dead-letter list; returns the job's state then."""
        pairs = [part for letter in letters for part in (letter.id, json.dumps(asdict(letter)))]
        state, _ = self._run("bury", job, *pairs)
        return state  # type: ignore[no-any-return]

    def forgive(self, job: str, letters: Sequence[str]) -> int:
        """Take letters off the job's dead-letter list by id; says how many were on it."""
        return int(self._run("forgive", job, *letters))

    def dead(self, job: str) -> Iterator[DeadLetter]:
        """The job's dead letters."""
        with named_errors():
            for _, letter in self._redis.hscan_iter(f"{PREFIX}dead:{job}"):
                yield DeadLetter(**json.loads(letter))

    def letters(self, job: str, ids: Sequence[str]) -> dict[str, DeadLetter]:
        """Those of the job's dead letters that are of these chunks, by id."""
        if not ids:
            return {}
        with named_errors():
            found = self._redis.hmget(f"{PREFIX}dead:{job}", list(ids))
        pairs = zip(ids, found, strict=True)
        return {id_: DeadLetter(**json.loads(letter)) for id_, letter in pairs if letter}


def _is_gone(holder: str) -> bool:
    """Whether a holder `host:pid` is of this machine and its process has ended."""
    host, _, pid = holder.rpartition(":")
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
