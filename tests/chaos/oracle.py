"""What must come of a run, known without the fleet: chunks from the readers, vectors from the encoder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ledger.ledger import Ledger
from ledger.orphans import Orphans
from producer.corpus import open_corpus
from registry.chunks import RESERVED_KEYS, Chunk
from registry.codecs import Dense, Multi, Sparse, Vectors
from registry.names import BROKER_PREFIX, PREFIX
from registry.plan import Plan
from registry.settings import Settings
from store.base import SparseVector, Vector
from store.factory import open_store
from worker.encoders.fake import POISON, FakeEncoder

#: Largest difference of a derived vector's value: its formula is computed here in float64.
DERIVED_TOLERANCE = 1e-6
#: Points read from the store by one request.
_AT_ONCE = 50
#: Keys that stay when all is done: history, what the fleet is, what its processes say of themselves.
_STAY = (
    "job:", "jobs", "dead:", "started", "queues", "credit", "fleet:plan", "golden:", "rates", "alive",
    "failed", "reconciler",
)  # fmt: skip
#: The broker's own: the names of its queues, and the messages of control commands.
_BROKER_STAYS = ("_kombu.binding", "unacked_mutex")

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Expected:
    """A corpus as the collection must have it."""

    chunks: dict[str, Chunk]
    poison: frozenset[str]
    #: Chunks that were good and are poison now: what stood stays.
    kept: dict[str, Chunk]

    @property
    def good(self) -> dict[str, Chunk]:
        """Those that go through."""
        return {id_: chunk for id_, chunk in self.chunks.items() if id_ not in self.poison}

    @property
    def standing(self) -> dict[str, Chunk]:
        """What the collection must hold, and nothing else."""
        return self.good | self.kept


@dataclass
class Findings:
    """What is not as it must be. Empty lists: all is well."""

    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    counters: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    dead: list[str] = field(default_factory=list)
    #: Blobs of attempts that died at the wrong moment; they have a TTL, and `v5 gc` takes them.
    orphans: int = 0

    def __iter__(self) -> Any:
        for kind in ("lost", "wrong", "extra", "counters", "keys", "dead"):
            for what in getattr(self, kind):
                yield f"{kind}: {what}"


def read_expected(paths: Sequence[Path], settings: Settings, before: Expected | None) -> Expected:
    """What the corpus holds now; `before` was all through."""
    items = list(open_corpus(paths, root=None, settings=settings).items())
    chunks = {item.id: item for item in items if isinstance(item, Chunk)}
    assert len(chunks) == len(items), [item for item in items if not isinstance(item, Chunk)]
    poison = frozenset(id_ for id_, chunk in chunks.items() if POISON in chunk.text)
    stood = before.standing if before else {}
    return Expected(chunks, poison, {id_: stood[id_] for id_ in poison & stood.keys()})


class Encoders:
    """A direct forward pass: one text at a time, no batching, no blobs, no merge."""

    def __init__(self, plan: Plan, settings: Settings) -> None:
        quick = settings.model_copy(update={"fake_seconds": 0.0})
        self._plan = plan
        self._encoders = {m: FakeEncoder(plan.served(m), plan.tasks.get(m, ""), quick) for m in plan.models}

    def vectors(self, text: str) -> dict[str, Vector]:
        """Every named vector of the plan for a text, as the store must hold it."""
        outputs: dict[str, dict[Any, Vectors]] = {}
        for model, encoder in self._encoders.items():
            (batch,) = encoder.prepare([text], "document").micro_batches
            outputs[model] = encoder.finish(batch, encoder.forward(batch), self._plan.kinds(model))
        found: dict[str, Vector] = {}
        for model in self._plan.models:
            suffixes = {"dense": "", "sparse": "-sparse", "multi": "-colbert"}
            for kind, vectors in outputs[model].items():
                found[model + suffixes[kind]] = _stored(vectors)
            for width in self._plan.matryoshka.get(model, ()):
                found[f"{model}-{width}"] = _unit(found[model][:width])  # type: ignore[index]
        if self._plan.ensemble is not None:
            assert self._plan.ensemble.method == "weighted_average"
            members = [_unit(found[member]) for member in self._plan.ensemble.members]  # type: ignore[arg-type]
            width = min(len(member) for member in members)
            found["ensemble"] = _unit(np.mean([member[:width] for member in members], axis=0))
        return found

    def staged(self, expected: Expected, before: Expected | None) -> list[Chunk]:
        """What a submission must stage: what is new, changed, or dead before."""
        standing = before.standing if before else {}
        return [
            chunk
            for chunk in expected.chunks.values()
            if chunk.id not in standing or standing[chunk.id].payload_hash != chunk.payload_hash
        ]

    def embedded(self, expected: Expected, before: Expected | None) -> int:
        """Texts that a submission must take through models, once for each model: a text that has vectors
        takes none, and of equal texts one does."""
        standing = {chunk.text for chunk in before.standing.values()} if before else set()
        fresh = {chunk.text for chunk in expected.good.values()} - standing
        # Poison is never copied from: each of its texts is tried by itself.
        return (len(fresh) + len(expected.poison)) * len(self._encoders)

    def tokens(self, texts: Iterable[str]) -> int:
        """Tokens of texts over all models."""
        encoders = self._encoders.values()
        return sum(int(e.prepare([text], "document").tokens_seen[0]) for text in texts for e in encoders)


def _stored(vectors: Vectors) -> Vector:
    match vectors:
        case Dense(values):
            return np.asarray(values[0], np.float32)
        case Multi():
            # The plan's index keeps rows in half precision.
            return np.asarray(vectors.row(0), np.float16).astype(np.float32)
        case Sparse():
            return SparseVector(*vectors.row(0))
    raise AssertionError(vectors)


def _unit(values: Any) -> Floats:
    exact = np.asarray(values, np.float64)
    return np.asarray(exact / np.linalg.norm(exact), np.float32)


def check_store(
    settings: Settings, collection: str, expected: Expected, encoders: Encoders, plan: Plan, found: Findings
) -> None:
    """Hold the collection against the oracle, point by point and value by value."""
    derived = {vector.name for vector in plan.vectors() if vector.derived}
    store = open_store(settings)
    try:
        store.connect()
        ids, after = [], ""
        while True:
            page, after = store.scroll(collection, after, 1000)
            ids += [point.id for point in page]
            if not after:
                break
        good = expected.standing
        if len(set(ids)) != len(ids):
            found.extra.append(f"{len(ids) - len(set(ids))} points stand twice")
        found.lost += [f"{id_} {good[id_].where}" for id_ in sorted(good.keys() - set(ids))]
        found.extra += sorted(set(ids) - good.keys())
        there = sorted(good.keys() & set(ids))
        for at in range(0, len(there), _AT_ONCE):
            for point in store.get(collection, there[at : at + _AT_ONCE], with_vectors=True):
                chunk = good[point.id]
                wanted = encoders.vectors(chunk.text)
                found.wrong += [f"{point.id} {what}" for what in _payload_faults(point.payload, chunk)]
                found.wrong += [
                    f"{point.id} {what}" for what in _vector_faults(point.vectors, wanted, derived)
                ]
    finally:
        store.close()


def _payload_faults(payload: Mapping[str, Any], chunk: Chunk) -> list[str]:
    about = payload.get("v5", {})
    wanted = {
        "text": chunk.text,
        "content_hash": chunk.content_hash,
        **{key: value for key, value in chunk.payload.items() if key not in RESERVED_KEYS},
    }
    found = [key for key, value in wanted.items() if payload.get(key) != value]
    if about.get("payload_hash") != chunk.payload_hash or about.get("source") != chunk.source:
        found.append("v5")
    return [f"payload: {key}" for key in found]


def _vector_faults(standing: Mapping[str, Vector], wanted: dict[str, Vector], derived: set[str]) -> list[str]:
    if standing.keys() != wanted.keys():
        return [f"vectors: {', '.join(sorted(standing.keys() ^ wanted.keys()))}"]
    return [
        f"vector {name}"
        for name, vector in wanted.items()
        if not _equal(standing[name], vector, DERIVED_TOLERANCE if name in derived else 0.0)
    ]


def _equal(standing: Vector, wanted: Vector, tolerance: float) -> bool:
    if isinstance(wanted, SparseVector):
        if not isinstance(standing, SparseVector):
            return False
        order = np.argsort(standing.indices)
        return np.array_equal(standing.indices[order], wanted.indices) and np.array_equal(
            standing.values[order], wanted.values
        )
    if isinstance(standing, SparseVector) or standing.shape != wanted.shape:
        return False
    return bool(np.abs(np.asarray(standing, np.float64) - wanted).max() <= tolerance)


def check_ledger(
    ledger: Ledger, job: str, expected: Expected, found: Findings, *, wiped: bool = False
) -> None:
    """Hold jobs, dead letters and whatever is left in Redis against the oracle. The fleet must be quiet.

    With `wiped`, the last job may be gone, too: it had ended when Redis lost its data.
    """
    jobs = ledger.jobs.list()
    for one in jobs:
        accounted = one.done + one.dead + one.lost
        if one.open_batches or one.staged != accounted:
            found.counters.append(
                f"job {one.id} ({one.state}): {one.staged} staged, {one.done} done, {one.dead} dead, "
                f"{one.lost} lost, {one.open_batches} batches open"
            )
    letters = {letter.id: letter for letter in ledger.jobs.dead(job)}
    if not wiped or job in {one.id for one in jobs}:
        unnamed = sorted(expected.poison - letters.keys())
        found.dead += [f"{id_} is poison and not among them" for id_ in unnamed]
    found.dead += [f"{id_}: {letters[id_].reason}" for id_ in sorted(letters.keys() - expected.poison)]
    if ledger.reserved():
        found.counters.append(f"{ledger.reserved()} bytes of the budget are still reserved")
    _check_keys(ledger, found)


def _check_keys(ledger: Ledger, found: Findings) -> None:
    for raw in sorted(ledger.redis.scan_iter(count=1000)):
        key = raw.decode()
        if key.startswith(BROKER_PREFIX):
            name = key.removeprefix(BROKER_PREFIX)
            # Replies to control commands, and what expires.
            stays = name.startswith(_BROKER_STAYS) or "pidbox" in name
        else:
            name = key.removeprefix(PREFIX)
            stays = name.startswith(_STAY) and not (name.startswith("job:") and name.count(":") > 1)
        if stays:
            continue
        if key.startswith(f"{PREFIX}blob:") and ledger.redis.ttl(key) > 0:
            found.orphans += 1
        # -2: it has gone by now, as what a consumer had just taken.
        elif ledger.redis.ttl(key) == -1:
            found.keys.append(f"{key} ({ledger.redis.type(key).decode()})")
    # What expires by itself is no leak; of the rest `v5 gc` must know every one.
    orphans = Orphans(ledger, grace=0.0)
    for orphan in list(orphans.find()):
        if orphan.kind not in ("blob", "alive", "hold"):
            found.keys.append(f"{orphan.kind} {orphan.name} {orphan.inner}")
        orphans.remove(orphan)
    if left := [o for o in orphans.find() if o.kind != "alive"]:
        found.keys.append(f"gc leaves {len(left)}: {left[0]}")


def read_job(ledger: Ledger, job: str) -> dict[str, Any]:
    """A job's record, for messages."""
    return json.loads(json.dumps(ledger.jobs.get(job).summary(), default=str))
