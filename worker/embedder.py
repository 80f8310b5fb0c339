"""A resident worker: one model on one device, serving its `embed` and `query` queues."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

from ledger.alive import Process
from ledger.rates import Rate, rated_as
from ledger.steps import PartRecord, Taken, space_mark
from ledger.work import QUANTITIES
from registry import spaces
from registry.codecs import Part, pack_part
from registry.errors import DeviceFailed, GoldenMismatch, SpaceMismatch, UsageError
from registry.models import OutputKind, embedder
from registry.names import QUEUE_AGGREGATE, TASK_EMBED, TASK_EMBED_QUERY, embed_queue, query_queue
from registry.progress import Turn
from registry.settings import Settings
from worker.answers import Answers
from worker.counters import Counters
from worker.edge import Abandoned
from worker.encoders.base import Encoder, Side
from worker.encoders.compile_trial import compile_if_faster
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder, warm_up
from worker.encoders.loop import PROBE
from worker.encoders.probe import probe
from worker.golden_gate import GoldenGate
from worker.half_precision import halved
from worker.isolation import Gate, Isolation
from worker.licence import notice
from worker.pace import Pace
from worker.process import FleetProcess

log = logging.getLogger(__name__)

#: Texts of one query request; more are a usage error.
MOST_QUERIES = 64


class EmbedWorker(FleetProcess):
    """Two threads run the steps of neighbouring batches against each other; a lock keeps one forward pass on
    the device. Queries have threads of their own, and go before the next micro-batch of a step. A batch at
    which an earlier attempt vanished goes through chunk by chunk, each alone in this process (see
    `worker.isolation`)."""

    threads = 2

    def __init__(
        self,
        settings: Settings,
        model: str,
        task: str = "",
        name: str = "",
        *,
        variant: str = "",
        truncation: str = "cut",
    ) -> None:
        spec = embedder(model)
        self.model = spec.name
        self.model_task = task
        self._served = {"variant": variant, "truncation": truncation}
        self.encoder: Encoder | None = None
        self._gate: GoldenGate | None = None
        self._device = Turn()
        process = Process(kind="worker", name=name or f"worker-{model}", model=model, device=settings.device)
        super().__init__(settings, process, [embed_queue(model)], [query_queue(model)])
        self._answers = Answers(self.ledger, process)
        self._isolation = Isolation(self.ledger.steps, settings.lease_seconds, self.stopping)
        self._pace = Pace(self._note_rate)
        self._counters = Counters()

    def register(self) -> None:
        """Bulk steps and queries."""
        self.task(TASK_EMBED, embed_queue(self.model), self._embed)
        self.task(TASK_EMBED_QUERY, query_queue(self.model), self._query)

    def prepare(self) -> None:
        """Load the model, warm it, hold it against the golden vectors of its spaces."""
        began = time.monotonic()
        self.wait_for_room()
        spec = embedder(self.model)
        if said := notice(spec, self.settings):
            log.warning("%s", said)
        kinds = [output.kind for output in spec.outputs]
        encoder = load_encoder(self.model, self.model_task, self.settings, kinds, **self._served)
        warm_up(encoder, kinds)
        compile_if_faster(encoder, kinds)
        if not self.settings.made_up:
            probe(encoder, kinds)
        gate = GoldenGate(encoder, kinds, self.ledger.goldens, self._device, self.settings.golden_batches)
        gate.enter()
        self.encoder, self._gate = encoder, gate
        encoder.budget.told = self._note_budget
        self._note_budget()
        self.change(
            device=encoder.numerics.device,
            spaces={kind: encoder.space(kind).fingerprint for kind in kinds},
            numerics=asdict(encoder.numerics),
        )
        log.info("%s loaded on %s in %.1f s", self.model, encoder.numerics.device, time.monotonic() - began)

    def release(self) -> None:
        """Free the device."""
        if self.encoder is not None:
            self.encoder.close()

    def _embed(self, **arguments: Any) -> str:
        self._isolation.say()
        with self._counters.work.running():
            return self.edge.run(arguments, self._work)

    def _work(self, taken: Taken) -> str:
        """One part: chunks in, vectors out, recorded."""
        encoder = self._serving()
        kinds = taken.plan.kinds(self.model)
        mark = spaces.space_mark(encoder.space(kind) for kind in kinds)
        wanted = space_mark(taken.plan, self.model)
        if mark != wanted:
            how = " ".join(["v5 worker", self.model, *taken.plan.worker_options(self.model)])
            raise SpaceMismatch(
                f"batch {taken.batch} wants {self.model} in space {wanted}; this worker serves {mark}. Start "
                f"one as the plan wants it (`{how}`), or submit with this fleet's plan"
            )
        chunks = self.ledger.steps.chunks(taken)
        began = time.monotonic()
        texts = [chunk.text for chunk in chunks]
        with self._gated() as gate:
            with self._isolation.gate.shared():
                gate.enter()
            passed = gate.passed()
            part = self._part(taken, encoder, texts, kinds)
            with self._isolation.gate.shared():
                gate.leave()
        part = replace(part, notes={**part.notes, "goldens": passed})
        blob = pack_part(halved(part) if taken.plan.transport == "float16" else part)
        record = PartRecord(
            token=taken.token,
            bytes=len(blob),
            seconds=round(time.monotonic() - began, 4),
            worker=self.process.id,
            notes={"chunks": len(texts)}
            | {name: part.notes[name] for name in QUANTITIES if name in part.notes},
        )
        self._counters.add(chunks=len(texts))
        if self.ledger.steps.record(taken, mark, record, blob):
            self.doorbell.ring(taken.batch, QUEUE_AGGREGATE)
        return "embedded"

    def _part(
        self,
        taken: Taken,
        encoder: Encoder,
        texts: Sequence[str],
        kinds: Sequence[OutputKind],
    ) -> Part:
        """The part of a batch: beside whatever else this process is at, or one chunk at a time, which says
        nothing of this worker's rate."""
        through = partial(
            encode, encoder, side="document", kinds=kinds, device_lock=self._device, counters=self._counters
        )
        if taken.vanished:
            with self._isolation.singly(taken, len(texts), lambda: through([PROBE])) as singly:
                return through(texts, should_stop=self.stopping.is_set, singly=singly)
        with self._isolation.gate.shared(), self._pace.working():
            renewal = _Renewal(self, taken, self._isolation.gate)
            part = through(texts, should_stop=self.stopping.is_set, on_progress=renewal)
        self._pace.finished(texts, part)
        return part

    def refresh(self) -> None:
        """See FleetProcess.refresh."""
        if self.encoder is not None:
            budget = {"micro_batch_tokens": self.encoder.budget.tokens}
            self.change(counters=self._counters.totals() | budget)

    def _note_budget(self) -> None:
        """Let `v5 ps` say that less goes through at once than was meant to."""
        self.remark = self._serving().budget.remark
        self.change(note=self.remark)

    def _note_rate(self, rate: Rate) -> None:
        name = rated_as(self.model, made_up=self.settings.made_up)
        self.ledger.rates.note(name, self.process.device, rate)

    def _query(self, **arguments: Any) -> str:
        return self._answers.give(arguments, self._embed_texts)

    def _embed_texts(self, asked: dict[str, Any]) -> bytes:
        """Texts of a request to a vectors blob; waits for one micro-batch of bulk work at most."""
        texts, side = asked.get("texts"), asked.get("side", "query")
        kinds = cast("Sequence[OutputKind]", asked.get("kinds", ["dense"]))
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise UsageError("a query needs a list of texts")
        if len(texts) > MOST_QUERIES:
            raise UsageError(f"{len(texts)} texts in one query; at most {MOST_QUERIES} are answered at once")
        if side not in ("query", "document"):
            raise UsageError(f"a text is a query or a document, not {side!r}")
        encoder = self._serving()
        encoder.budget.query_came()
        for kind, fingerprint in dict(asked.get("spaces", {})).items():
            serving = encoder.space(kind).fingerprint
            if serving != fingerprint:
                raise SpaceMismatch(
                    f"the collection holds {self.model} {kind} vectors of space {fingerprint}; this worker "
                    f"serves {serving}: they cannot be compared"
                )
        with self._isolation.gate.shared():
            with self._gated() as gate:
                gate.enter()
            try:
                part = encode(
                    encoder,
                    texts,
                    cast("Side", side),
                    kinds,
                    device_lock=self._device.first,
                    counters=self._counters,
                )
            except DeviceFailed as error:
                self.give_up(str(error))
                raise
        if part.rejected:
            raise UsageError(f"the text cannot be embedded: {next(iter(part.rejected.values()))}")
        return pack_part(part)

    @contextmanager
    def _gated(self) -> Iterator[GoldenGate]:
        """The gate; an encoder that is found not to give its golden vectors meanwhile ends the process."""
        if self._gate is None:
            raise RuntimeError("the model is not loaded")
        try:
            yield self._gate
        except GoldenMismatch as error:
            self.resign(str(error))

    def _serving(self) -> Encoder:
        if self.encoder is None:
            raise RuntimeError("the model is not loaded")
        return self.encoder


class _Renewal:
    """After micro-batches: lets a chunk go alone that waits for that, and renews the lease before it runs
    out; raises Abandoned if nobody wants the work."""

    def __init__(self, worker: EmbedWorker, taken: Taken, gate: Gate) -> None:
        self._worker = worker
        self._taken = taken
        self._gate = gate
        self._every = worker.settings.lease_seconds / 4
        self._last = time.monotonic()

    def __call__(self) -> None:
        self._gate.step_aside()
        now = time.monotonic()
        if now - self._last < self._every:
            return
        self._last = now
        # Where another worker has the lease, too, the first to finish wins: if each gave up for the next, a
        # text slower than a lease would never end.
        if self._worker.ledger.steps.renew(self._taken) in ("recorded", "closed"):
            raise Abandoned
