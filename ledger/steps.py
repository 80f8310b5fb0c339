"""Batches and their steps: opening, taking and renewing leases, recording parts, closing."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal

from ledger.blobs import Blobs, part_key, text_key
from ledger.jobs import DeadLetter
from ledger.scripts import Scripts, decoded
from ledger.work import moves
from registry import spaces
from registry.chunks import Chunk
from registry.errors import BlobLost, CodecError, JobClosed, LedgerRewound, SpaceMismatch
from registry.frames import unpack_chunks
from registry.names import QUEUE_AGGREGATE, embed_queue, step_model
from registry.plan import Plan, plan_from_json
from registry.settings import Settings

#: What a batch's chunks lack: everything, some vectors of standing points, or only the payload.
Kind = Literal["upsert", "update", "payload"]


#: `kept`; `lost`: somebody else works on the step, too; `recorded` or `closed`: the work is not wanted.
Renewal = Literal["kept", "lost", "recorded", "closed"]


@dataclass(frozen=True)
class PartRecord:
    """What the ledger keeps of one model's part: which attempt's blob holds it, and how it was made."""

    token: str
    bytes: int
    seconds: float
    worker: str
    #: What it took, by the names of `ledger.work.QUANTITIES`.
    notes: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Taken:
    """A step whose lease this process holds."""

    batch: str
    step: str
    token: str
    job: str
    collection: str
    plan: Plan
    started: int
    kind: Kind
    #: Named vectors that the batch's chunks lack.
    names: tuple[str, ...]
    models: tuple[str, ...]
    #: Attempts at this step, this one included.
    tries: int
    parts: dict[str, PartRecord]
    #: The blob of its chunks.
    text: str
    #: Whether an earlier attempt vanished: its lease ran out, and its holder said no word since.
    vanished: bool = False
    #: By index, the chunks that such attempts were at, alone, and how many of them.
    strikes: Mapping[int, int] = field(default_factory=dict)
    #: The blob itself, where it came with the lease: None if it is gone.
    fetched: tuple[bytes | None] | None = field(default=None, repr=False)

    @property
    def copies(self) -> bool:
        """Whether its chunks take the vectors of others, and no model's."""
        return bool(self.names) and not self.models

    def part_key(self, model: str) -> str:
        """The blob of the recorded part of a model."""
        return part_key(self.batch, model, self.parts[model].token)


@dataclass(frozen=True)
class Refused:
    """Why a step was not taken: `closed`, `recorded`, `live` or `early`. All mean: nothing to do."""

    why: str


@dataclass(frozen=True)
class Full:
    """The in-flight budget has no room; `used` bytes are reserved."""

    used: int


def space_mark(plan: Plan, model: str) -> str:
    """What a worker must serve to embed for a plan: the fingerprints of all outputs taken from a model."""
    return spaces.space_mark(plan.space(model, kind) for kind in plan.kinds(model))


class Steps:
    """The life of batches, one script per move. Raises LedgerFull or LedgerUnavailable everywhere."""

    def __init__(self, settings: Settings, scripts: Scripts, blobs: Blobs) -> None:
        self._scripts = scripts
        self._run = scripts.run
        self._blobs = blobs
        self._lease_ms = int(settings.lease_seconds * 1000)
        self._ring_ms = int(settings.ring_seconds * 1000)

    def stage(
        self,
        job: str,
        plan: Plan,
        n: int,
        kind: Kind,
        names: Sequence[str],
        count: int,
        blob: bytes,
        vector_bytes: int,
        limit: int,
        token: str = "",
        after: int | None = None,
    ) -> list[str] | Full:
        """Open batch `n` of a job: its text blob first, then the ledger, under the in-flight budget.

        `blob` holds `count` chunks that lack the vectors `names`; `vector_bytes` is reserved for the vectors
        to come. Whoever repeats a failed staging passes the same `token`, so that only one text blob comes of
        it. Where each chunk names an original, `after` is the last batch of these, and no model takes the
        batch; it waits until that one has ended. Returns the steps to ring, or Full. Raises JobClosed if the
        job takes no more, LedgerRewound if Redis lost the job or went back in time.
        """
        batch, token = f"{job}.{n}", token or secrets.token_hex(8)
        models = plan.models_for(list(names)) if kind != "payload" and after is None else ()
        digest = hashlib.blake2b(blob, digest_size=8).hexdigest()
        outcome, *rest = self._blobs.put_and_run(
            self._scripts,
            batch,
            text_key(batch, token),
            blob,
            "open_batch",
            job,
            n,
            digest,
            count,
            len(blob) + vector_bytes,
            limit,
            self._ring_ms,
            kind,
            json.dumps(list(names)),
            json.dumps(list(models)),
            json.dumps([space_mark(plan, model) for model in models]),
            token,
            "" if after is None else after,
        )
        if outcome == "waits":
            return []
        if outcome != "opened" and rest != [token]:
            self._blobs.delete(batch, [text_key(batch, token)])
        if outcome in ("opened", "already"):
            return [embed_queue(model) for model in models] or [QUEUE_AGGREGATE]
        if outcome == "full":
            return Full(int(rest[0]))
        if outcome == "closed":
            raise JobClosed(f"job {job} is {rest[0]}; nothing more can be staged into it")
        raise LedgerRewound(
            f"the ledger does not know batch {n} of job {job} as its next ({outcome}): Redis has lost data"
        )

    def take(self, batch: str, step: str) -> Taken | Refused:
        """Take the lease of a step, if there is something to do; for a model, with the text, where one server
        has both."""
        token = secrets.token_hex(8)
        here = self._blobs.beside(self._scripts, batch)
        texts = text_key(batch, "") if here and step != QUEUE_AGGREGATE else ""
        answer = self._scripts.run_raw("take", batch, step, token, self._lease_ms, texts)
        blob = answer.pop() if texts and answer[0] == b"taken" else None
        outcome, *rest = decoded(answer)
        if outcome != "taken":
            return Refused(outcome)
        flat, (collection, plan, started) = rest
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        parts = {
            name.removeprefix("part:"): PartRecord(**json.loads(value))
            for name, value in fields.items()
            if name.startswith("part:")
        }
        strikes = Counter(int(value) for name, value in fields.items() if name.startswith(f"strike:{step}:"))
        return Taken(
            batch=batch,
            step=step,
            token=token,
            job=fields["job"],
            collection=collection,
            plan=plan_from_json(plan),
            started=int(started),
            kind=fields["kind"],
            names=tuple(json.loads(fields["names"])),
            models=tuple(json.loads(fields["models"])),
            tries=int(fields[f"tries:{step}"]),
            parts=parts,
            text=text_key(batch, fields["text"]),
            vanished=bool(strikes) or f"vanished:{step}" in fields,
            strikes=dict(strikes),
            fetched=(blob,) if texts else None,
        )

    def renew(self, taken: Taken) -> Renewal:
        """Keep the lease for another period, or take it back if it ran out and nobody has it."""
        outcome: Renewal = self._run("renew", taken.batch, taken.step, taken.token, self._lease_ms)
        return outcome

    def name(self, taken: Taken, chunk: int | None) -> Renewal:
        """Renew the lease and say which chunk goes through alone from now on; None: none does any more.

        Should this process vanish, that chunk is what it was at. Only `kept` means that it was noted.
        """
        named = "" if chunk is None else chunk
        outcome: Renewal = self._run("renew", taken.batch, taken.step, taken.token, self._lease_ms, named)
        return outcome

    def defer(self, taken: Taken, delay: float) -> None:
        """Give the lease back; the step is due again after `delay` seconds."""
        self._run("defer", taken.batch, taken.step, taken.token, int(delay * 1000))

    def wait(self, taken: Taken, batches: Iterable[int]) -> bool:
        """Give the lease of copies back until the last of these batches of their job that is open has ended.

        False if none is open, and there is something to do.
        """
        others = [f"{taken.job}.{number}" for number in sorted(batches)]
        return bool(self._run("await", taken.batch, taken.token, *others) != "ended")

    def embed(self, taken: Taken) -> list[str]:
        """Have copies embedded like others, for an original will not come; returns the steps to ring."""
        models = taken.plan.models_for(taken.names)
        spaces = [space_mark(taken.plan, model) for model in models]
        what = (json.dumps(list(models)), json.dumps(spaces), self._ring_ms)
        due = self._run("embed", taken.batch, taken.token, *what) == "due"
        return [embed_queue(model) for model in models] if due else []

    def chunks(self, taken: Taken) -> list[Chunk]:
        """The batch's chunks. Raises BlobLost if they are gone or damaged."""
        (blob,) = taken.fetched or self._blobs.get(taken.batch, [taken.text])
        return read_chunks(taken.batch, blob)

    def record(self, taken: Taken, space: str, part: PartRecord, blob: bytes) -> bool:
        """Write this attempt's vectors and record its part; True if the batch is now ready to be aggregated.

        A part that is not needed any more loses its blob. Raises SpaceMismatch if the batch wants another
        space than the one the vectors are in.
        """
        model = step_model(taken.step)
        key = part_key(taken.batch, model, taken.token)
        outcome, *rest = self._blobs.put_and_run(
            self._scripts,
            taken.batch,
            key,
            blob,
            "record",
            taken.batch,
            model,
            taken.token,
            json.dumps(asdict(part)),
            space,
            self._ring_ms,
        )
        if outcome in ("closed", "other", "space"):
            self._blobs.delete(taken.batch, [key])
        if outcome == "space":
            raise SpaceMismatch(
                f"batch {taken.batch} wants {model} in space {rest[0]}; this worker serves {space}"
            )
        return bool(outcome == "ready")

    def unrecord(self, taken: Taken, model: str) -> None:
        """The blob of a recorded part is gone or of no use: that model's step is due again."""
        self._run("unrecord", taken.batch, model, taken.parts[model].token)
        # Of a batch that was closed meanwhile, too: nobody reads it any more.
        self._blobs.delete(taken.batch, [taken.part_key(model)])

    def close(
        self,
        taken: Taken,
        done: int,
        tokens_seen: int,
        tokens_kept: int,
        truncated: int,
        dead: Sequence[DeadLetter],
        lost: int = 0,
        work: Mapping[str, float] | None = None,
    ) -> list[str] | None:
        """End the batch after the store's acknowledgement, then delete its blobs. Returns the batches that
        waited for it and are due now; None if it had ended.

        `lost` of its chunks were not written: what they were to update had gone. Their producer looks again.
        `work` is what was done for it beside its parts (see `ledger.work.moves`).
        """
        letters = {letter.id: json.dumps(asdict(letter)) for letter in dead}
        moved: dict[str, float] = dict(work or {})
        for model, part in taken.parts.items():
            moved |= moves(model, part.worker, part.notes)
        blobs = [taken.text, *(taken.part_key(model) for model in taken.parts)]
        here = self._blobs.beside(self._scripts, taken.batch)
        outcome, *woken = self._run(
            "close",
            taken.batch,
            done,
            tokens_seen,
            tokens_kept,
            truncated,
            json.dumps(letters),
            lost,
            json.dumps(moved),
            *(blobs if here else ()),
        )
        if not here:
            self._blobs.delete(taken.batch, blobs)
        return woken[0] if outcome == "done" else None

    def due(self, step: str, waiting: int, most: int) -> list[str]:
        """Overdue batches of a step, oldest first, less than `waiting` rings already in its queue."""
        found: list[str] = self._run("due", step, waiting, most, self._ring_ms)
        return found


def read_chunks(batch: str, blob: bytes | None) -> list[Chunk]:
    """Decode a text blob. Raises BlobLost if it is gone or damaged: both end the same way."""
    if blob is None:
        raise BlobLost(f"the text of batch {batch} is gone")
    try:
        return unpack_chunks(blob)
    except CodecError as error:
        raise BlobLost(f"the text of batch {batch} is damaged: {error}") from error
