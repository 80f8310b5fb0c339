"""The producer's view of the fleet: the ledger, the doorbell, and requests with an answer."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ledger.blobs import REQUEST_TTL
from ledger.doorbell import Doorbell
from ledger.ledger import Ledger
from registry import errors
from registry.celery_app import make_app, send
from registry.errors import (
    CodecError,
    FleetError,
    InfrastructureError,
    LedgerFull,
    Unanswered,
    UsageError,
    V5Error,
)
from registry.frames import pack_json, unpack_json
from registry.messages import Request
from registry.models import DEFAULT_RERANKER, RERANKERS, OutputKind, reranker
from registry.names import (
    QUEUE_STORE,
    TASK_EMBED_QUERY,
    TASK_RERANK,
    TASK_STORE,
    query_queue,
    request_model,
    rerank_queue,
)
from registry.plan import Plan, make_plan
from registry.settings import Settings

#: A request that was not answered for this long is sent again: its message may be lost. Seconds.
REPEAT = 10.0
#: A process that nobody has seen for this long is not coming back by itself. Seconds.
ABSENT = 20.0
#: A request to the store is made anew so often after its arguments or its answer arrived damaged.
MOST_DAMAGED = 2


@dataclass(frozen=True)
class Collection:
    """A collection as the store describes it."""

    name: str
    points: int
    plan: Plan
    #: How the numbers came about, by named vector: model, backend, device, dtype, tf32, quantization.
    numerics: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """A vector that a migration removes and has embedded anew; `standing` and `offered` are fingerprints."""

    name: str
    standing: str
    offered: str
    #: The facts that differ, for people.
    difference: str


@dataclass(frozen=True)
class Indexing:
    """How far a collection's indexes are."""

    #: Qdrant's: `green` all built, `yellow` being built, `grey` put off for now, `red` failed.
    status: str
    #: Why, in the store's words.
    failure: str
    #: Vectors in built indexes, and how many there are at most; those of small segments need none.
    indexed: int
    vectors: int
    #: The jobs that load in bulk, and since when, in Unix milliseconds: nothing is built meanwhile.
    loads: list[dict[str, Any]]


@dataclass(frozen=True)
class Order:
    """An order of candidates as a reranker gives it."""

    model: str
    #: Model, revision and block; scores under different labels cannot be compared.
    label: str
    #: Candidates of one pass at most, and how many each pass saw.
    block: int
    blocks: tuple[int, ...]
    #: Position of each candidate in the list given, and its relevance in [-1, 1]; best first.
    ranking: tuple[tuple[int, float], ...]
    #: Positions of the candidates that were cut at the model's limit.
    truncated: tuple[int, ...]
    query_truncated: bool


@dataclass(frozen=True)
class Pending:
    """A request under way."""

    id: str
    task: str
    queue: str
    deadline: float
    #: Kept, since Redis may lose them.
    arguments: bytes


class Fleet:
    """Talks to the fleet through Redis alone."""

    def __init__(self, settings: Settings) -> None:
        """Connect. Raises LedgerUnavailable, saying what to do."""
        self.settings = settings
        self.ledger = Ledger(settings)
        self.ledger.check()
        self.app = make_app(settings)
        self.doorbell = Doorbell(self.app, settings)

    def close(self) -> None:
        """Close all connections."""
        self.ledger.close()
        self.app.close()

    def ask(self, task: str, queue: str, arguments: dict[str, Any]) -> Pending:
        """Send a request; `answer` waits for what comes back."""
        deadline = time.time() + self.settings.request_seconds
        pending = Pending(uuid.uuid4().hex, task, queue, deadline, pack_json(arguments))
        self._send(pending)
        return pending

    def answer(self, pending: Pending) -> bytes:
        """Wait for an answer, asking again where a message may be lost or the store was away.

        Raises the error that the fleet answered with, or Unanswered if nobody answered in time.
        """
        began = time.time()
        last: V5Error | None = None
        while True:
            blob = self.ledger.requests.wait(pending.id, min(REPEAT, pending.deadline - time.time()))
            if blob is not None:
                failure = _failure(blob)
                if failure is None:
                    self.ledger.requests.forget(pending.id)
                    return blob
                if not isinstance(failure, InfrastructureError):
                    self.ledger.requests.forget(pending.id)
                    raise failure
                last = failure
                time.sleep(1.0)
            if time.time() >= pending.deadline:
                raise last or Unanswered(
                    f"no answer to {pending.task} in {self.settings.request_seconds:.0f} s; "
                    + self._absent(pending)
                )
            if time.time() - began > ABSENT and not self._served(pending):
                raise last or Unanswered(f"nobody answers {pending.task}; {self._absent(pending)}")
            self._send(pending)

    def _send(self, pending: Pending) -> None:
        seconds = int(self.settings.request_seconds) + REQUEST_TTL
        self.ledger.requests.ask(pending.id, pending.arguments, seconds)
        request = Request(id=pending.id, deadline=pending.deadline)
        send(
            self.app,
            pending.task,
            kwargs=request.model_dump(),
            queue=pending.queue,
            # A request nobody took in time is not worth a worker's while.
            expires=max(1.0, pending.deadline - time.time()),
            kwargsrepr=pending.id,
        )

    def _served(self, pending: Pending) -> bool:
        model = request_model(pending.queue)
        return any(
            process.model == model if model else process.kind == "aggregator"
            for process in self.ledger.alive.list()
        )

    def _absent(self, pending: Pending) -> str:
        if self._served(pending):
            return "its process is alive but busy; try again, or raise V5_REQUEST_SECONDS"
        if pending.queue == QUEUE_STORE:
            return "no aggregator is alive: start the fleet with `v5 up`, or one with `v5 aggregator`"
        return _no_worker(request_model(pending.queue))

    def _store(self, operation: str, arguments: dict[str, Any]) -> Any:
        task, left = f"{TASK_STORE}.{operation}", MOST_DAMAGED
        while True:
            try:
                return unpack_json(self.answer(self.ask(task, QUEUE_STORE, arguments)))
            except CodecError:
                # Arguments or answer were damaged on their way: both are made anew.
                left -= 1
                if left < 0:
                    raise

    def open_collection(self, name: str, plan: Plan) -> Collection:
        """Create the collection for the plan, or check that it fits. Raises SpaceMismatch, UsageError."""
        return _collection(self._store("open", {"collection": name, "plan": plan.model_dump(mode="json")}))

    def describe(self, name: str) -> Collection:
        """The collection's plan and size. Raises UsageError if it does not exist."""
        return _collection(self._store("describe", {"collection": name}))

    def plan(self, name: str) -> Plan:
        """The collection's plan alone. Raises UsageError if it does not exist."""
        answer = self._store("plan", {"collection": name})
        found: Plan = make_plan(**answer["plan"])
        return found

    def changes(self, name: str, plan: Plan) -> tuple[int, list[Change]]:
        """How many points the collection has, and which of its vectors a migration to the plan would have
        embedded anew. Raises UsageError if it cannot be migrated to the plan."""
        answer = self._store("changes", {"collection": name, "plan": plan.model_dump(mode="json")})
        return int(answer["points"]), [Change(**row) for row in answer["changes"]]

    def migrate(self, name: str, plan: Plan, started: int) -> bool:
        """Remove what stands in other spaces than the plan's, for a job of that start; to be called until it
        says that it is done. Raises as `changes`."""
        asked = {"collection": name, "plan": plan.model_dump(mode="json"), "started": started}
        return bool(self._store("migrate", asked)["done"])

    def begin_bulk(self, name: str, job: str) -> None:
        """Have none of the collection's indexes built while that job, which must be held, loads."""
        self._store("bulk", {"collection": name, "job": job})

    def indexing(self, name: str) -> Indexing:
        """How far the collection's indexes are; those of ended bulk loads begin to be built."""
        return Indexing(**self._store("indexing", {"collection": name}))

    def lacking(self, name: str, names: Sequence[str]) -> dict[str, int]:
        """How many points of the collection lack each of the named vectors."""
        found: dict[str, int] = self._store("lacking", {"collection": name, "names": list(names)})
        return found

    def compare(self, name: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[Any]]:
        """What each of `[id, content_hash, payload_hash]` lacks: `same`, `absent`, `changed`, `payload`, or
        `lacking` with the vector names."""
        found: list[list[Any]] = self._store(
            "compare", {"collection": name, "names": list(names), "chunks": [list(row) for row in rows]}
        )
        return found

    def search(
        self, name: str, vectors: Mapping[str, str], parts: dict[str, str], limit: int
    ) -> list[dict[str, Any]]:
        """The best hits; `vectors` are fingerprints by name, `parts` the models' query vectors, as text (see
        `v5 search`). Raises SpaceMismatch if other vectors stand there."""
        found: list[dict[str, Any]] = self._store(
            "search", {"collection": name, "vectors": dict(vectors), "parts": parts, "limit": limit}
        )
        return found

    def points(self, name: str, ids: Sequence[str], vectors: bool) -> list[dict[str, Any]]:
        """The points with these ids that stand."""
        found: list[dict[str, Any]] = self._store(
            "get", {"collection": name, "ids": list(ids), "vectors": vectors}
        )
        return found

    def scroll(self, name: str, after: str, limit: int) -> tuple[list[tuple[str, str]], str]:
        """A page of all points as `(id, source)`, and what to pass as `after` next; empty: begin, or end."""
        answer = self._store("scroll", {"collection": name, "after": after, "limit": limit})
        return [(identity, source) for identity, source in answer["points"]], str(answer["next"])

    def delete(self, name: str, points: Sequence[tuple[str, str]], started: int) -> int:
        """Remove points `(id, source)` still of one of the sources and no newer; says how many are gone."""
        rows = [list(point) for point in points]
        answer = self._store("delete", {"collection": name, "points": rows, "started": started})
        return int(answer["deleted"])

    def embed_query(self, plan: Plan, models: Sequence[str], text: str) -> dict[str, bytes]:
        """The query's vectors blob from each model, all models at once."""
        pending = {}
        for model in models:
            kinds: tuple[OutputKind, ...] = plan.kinds(model)
            spaces = {kind: plan.space(model, kind).fingerprint for kind in kinds}
            arguments = {"texts": [text], "kinds": list(kinds), "spaces": spaces}
            pending[model] = self.ask(TASK_EMBED_QUERY, query_queue(model), arguments)
        return {model: self.answer(request) for model, request in pending.items()}

    def require_reranker(self, model: str = DEFAULT_RERANKER) -> None:
        """Raise FleetError, saying how to start one, unless a worker for the reranker is alive."""
        name = reranker(model).name
        if not any(process.model == name for process in self.ledger.alive.list()):
            raise FleetError(_no_worker(name))

    def rerank(
        self, query: str, documents: Sequence[str], block: int = 0, model: str = DEFAULT_RERANKER
    ) -> Order:
        """Order texts by their relevance for the query; `block` 0 is the model's own.

        Raises what the reranker answers with, or Unanswered.
        """
        arguments = {"query": query, "documents": list(documents), "block": block}
        answer = unpack_json(
            self.answer(self.ask(TASK_RERANK, rerank_queue(reranker(model).name), arguments))
        )
        return Order(
            model=answer["model"],
            label=answer["label"],
            block=int(answer["block"]),
            blocks=tuple(answer["blocks"]),
            ranking=tuple((int(position), float(score)) for position, score in answer["ranking"]),
            truncated=tuple(answer["truncated"]),
            query_truncated=bool(answer["query_truncated"]),
        )

    def unserved(self, plan: Plan) -> dict[str, str]:
        """Models of the plan that no living worker serves in the plan's space, and what to do."""
        living = [process for process in self.ledger.alive.list() if process.kind == "worker"]
        found = {}
        for model in plan.models:
            mine = [process for process in living if process.model == model]
            wanted = {kind: plan.space(model, kind).fingerprint for kind in plan.kinds(model)}
            if not mine:
                found[model] = f"no worker for {model} is alive; start one with `v5 worker {model}`"
            elif not any(
                all(p.spaces.get(kind, space) == space for kind, space in wanted.items()) for p in mine
            ):
                how = " ".join(["v5 worker", model, *plan.worker_options(model)])
                found[model] = f"the workers for {model} serve another space; start one with `{how}`"
        return found


def _no_worker(model: str) -> str:
    if model in RERANKERS:
        return (
            f"no worker for the reranker {model} is alive: start one with `v5 worker {model}`, "
            "or the fleet with `v5 up --rerank`"
        )
    return f"no worker for {model} is alive: start one with `v5 worker {model}`"


def _collection(answer: dict[str, Any]) -> Collection:
    return Collection(
        answer["collection"],
        int(answer["points"]),
        make_plan(**answer["plan"]),
        answer.get("numerics", {}),
    )


def _failure(blob: bytes) -> V5Error | None:
    """The error that an answer carries, as the class of that name; None for a real answer."""
    try:
        answer = unpack_json(blob)
    except CodecError:
        return None
    if not isinstance(answer, dict) or "error" not in answer:
        return None
    kind = getattr(errors, str(answer["error"]), FleetError)
    if not (isinstance(kind, type) and issubclass(kind, V5Error)):
        kind = FleetError
    if kind is LedgerFull:
        kind = InfrastructureError
    failure: V5Error = kind(str(answer["message"]))
    if kind is UsageError or not answer.get("again"):
        return failure
    return failure if isinstance(failure, InfrastructureError) else InfrastructureError(str(failure))
