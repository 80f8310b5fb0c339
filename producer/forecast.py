"""What submitting a corpus would take: read and cut as a submission does, with nothing sent anywhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ledger.alive import Process
from ledger.blobs import DEFAULT_BUDGET
from ledger.rates import Rate, rated_as
from producer.batching import cut_batches, windows
from producer.corpus import Corpus
from producer.credit import BATCHES_AT_LEAST, vector_bytes, vector_cost
from producer.draft import text_bytes
from producer.originals import Originals
from producer.problem import Problem
from registry import footprint
from registry.chunks import STORED, Chunk
from registry.footprint import Footprint
from registry.frames import pack_chunks
from registry.models import embedder
from registry.plan import Plan
from registry.settings import Settings

#: UTF-8 bytes of text per token where no worker has measured it, by the tokenizer that comes with an
#: architecture. Measured on source code for BERT's WordPiece (3.9; prose of this kind 3.5); the others have
#: larger vocabularies and are guesses on the safe side: more tokens than there will be.
BYTES_PER_TOKEN = {"BertModel": 3.5, "XLMRobertaModel": 3.2, "Qwen2Model": 3.2, "Qwen2_5_VLModel": 3.2}
_FALLBACK = 3.0
#: What a point's payload holds beside text and the chunk's own keys: hashes, job, token counts. Bytes.
_OWN_PAYLOAD = 250
#: Bytes per value of a vector, and in Redis per sparse entry (an int64 id, a float32 weight).
_FLOAT, _SPARSE = 4, 12


@dataclass(frozen=True)
class Speed:
    """What is known about a model's speed."""

    #: Over all its living workers, or of one worker where none lives; None: never measured.
    tokens_per_second: float | None
    #: Living workers with a measured rate; 0 where the rate is an old one.
    workers: int
    bytes_per_token: float
    #: Whether bytes_per_token was measured, and not assumed.
    measured: bool


@dataclass
class ModelForecast:
    """One model's share of the work."""

    #: Estimated tokens through the model: after truncation at its limit; a copy of a text takes none.
    tokens: int
    speed: Speed
    #: Those with vectors in the end, of copies too: rows of a multi-vector, weights of a sparse one.
    stored_tokens: int = 0

    @property
    def hours(self) -> float | None:
        """None where the model's speed was never measured."""
        rate = self.speed.tokens_per_second
        return self.tokens / rate / 3600 if rate else None


@dataclass
class Forecast:
    """What reading the corpus found, and what follows from it. Sizes are bytes."""

    plan: Plan
    models: dict[str, ModelForecast]
    files: int = 0
    chunks: int = 0
    #: Chunks with the text of an earlier one, whose vectors they take.
    copies: int = 0
    #: Chunks or files that would be dead letters, and what a rule leaves out, each by reason.
    rejected: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    batches: int = 0
    text_bytes: int = 0
    #: Chunks as they stand in Redis: text, payload and id, compressed.
    packed_bytes: int = 0
    payload_bytes: int = 0
    #: All vectors as workers put them into Redis.
    vector_bytes: int = 0
    #: The most that one batch reserves of the in-flight budget.
    largest_batch: int = 0
    vectors: dict[str, Footprint] = field(default_factory=dict)

    @property
    def redis_bytes(self) -> int:
        """What goes through Redis from beginning to end."""
        return self.packed_bytes + self.vector_bytes

    def in_flight(self, budget: int) -> int:
        """The most that is in Redis at once; one batch is always allowed."""
        return min(self.redis_bytes, max(budget, self.largest_batch))

    @property
    def stored_payload_bytes(self) -> int:
        """Payloads as JSON, before the store compresses them, with ids and payload indexes."""
        return self.payload_bytes + self.chunks * footprint.POINT_BYTES

    @property
    def qdrant_bytes(self) -> int:
        """The collection on disk, without Qdrant's write-ahead log."""
        return self.stored_payload_bytes + sum(vector.total for vector in self.vectors.values())

    @property
    def hours(self) -> float | None:
        """The slowest model's, for the models run side by side; None if any is not known."""
        known = [model.hours for model in self.models.values() if model.hours is not None]
        return max(known) if len(known) == len(self.models) else None

    def as_json(self, budget: int) -> dict[str, Any]:
        """For `--json`."""
        return {
            "plan": self.plan.describe(),
            "files": self.files,
            "chunks": self.chunks,
            "copies": self.copies,
            "rejected": self.rejected,
            "left_out": self.left_out,
            "batches": self.batches,
            "text_bytes": self.text_bytes,
            "packed_bytes": self.packed_bytes,
            "redis": {
                "bytes": self.redis_bytes,
                "vector_bytes": self.vector_bytes,
                "in_flight_bytes": self.in_flight(budget),
                "budget_bytes": budget,
            },
            "qdrant": {
                "bytes": self.qdrant_bytes,
                "payload_bytes": self.stored_payload_bytes,
                "vectors": {name: {**asdict(v), "total": v.total} for name, v in self.vectors.items()},
            },
            "models": {
                name: {"tokens": model.tokens, **asdict(model.speed), "hours": model.hours}
                for name, model in self.models.items()
            },
            "hours": self.hours,
        }


def speeds(plan: Plan, rates: Mapping[tuple[str, str], Rate], living: Sequence[Process]) -> dict[str, Speed]:
    """What the workers' measurements say about each model of the plan."""
    found = {}
    for name in plan.models:
        rated = rated_as(name, made_up=plan.fake)
        known = {device: rate for (model, device), rate in rates.items() if model == rated}
        alive = [
            known[p.device] for p in living if p.kind == "worker" and p.model == name and p.device in known
        ]
        newest = max(known.values(), key=lambda rate: rate.at, default=None)
        assumed = BYTES_PER_TOKEN.get(embedder(name).architecture.type, _FALLBACK)
        found[name] = Speed(
            tokens_per_second=(
                sum(rate.tokens_per_second for rate in alive)
                or (newest.tokens_per_second if newest else None)
            ),
            workers=len(alive),
            bytes_per_token=newest.bytes_per_token if newest else assumed,
            measured=newest is not None,
        )
    return found


def forecast(
    corpus: Corpus,
    plan: Plan,
    settings: Settings,
    speed: Mapping[str, Speed],
    report: Callable[[Forecast], None] = lambda _forecast: None,
    *,
    budget: int = DEFAULT_BUDGET,
) -> Forecast:
    """Read and cut the whole corpus for an in-flight `budget`; memory is bounded by a window, as in a
    submission.

    It is taken to be new: what the collection has of it already would be skipped. `report` sees the forecast
    grow, after each window.
    """
    found = Forecast(plan, {name: ModelForecast(0, speed[name]) for name in plan.models})
    names = [vector.name for vector in plan.vectors()]
    cost = vector_cost(plan, names)
    originals = Originals()
    embedded, copied = dict.fromkeys(plan.models, 0.0), dict.fromkeys(plan.models, 0.0)
    for window in windows(corpus.items(), settings):
        _count(found, window.problems)
        fresh, copies = originals.split(window.chunks)
        originals.note(fresh, STORED)
        found.chunks += len(window.chunks)
        found.copies += len(copies)
        for chunks, sums in ((fresh, embedded), (copies, copied)):
            for batch in cut_batches(chunks, settings, cost, budget // BATCHES_AT_LEAST, found.chunks):
                _add(found, batch, names)
            for name in plan.models:
                most = sys.maxsize if plan.truncate == "split-and-pool" else embedder(name).max_tokens
                sums[name] += _tokens(chunks, most, speed[name].bytes_per_token)
        report(found)
    for name, model in found.models.items():
        model.tokens = round(embedded[name])
        model.stored_tokens = round(embedded[name] + copied[name])
    found.files = corpus.estimate().files
    found.vector_bytes = sum(_in_redis(found, name) for name in plan.models)
    found.vectors = _in_qdrant(found)
    return found


def _count(found: Forecast, problems: Sequence[Problem]) -> None:
    for problem in problems:
        table = found.left_out if problem.severity == "skipped" else found.rejected
        table[problem.reason] = table.get(problem.reason, 0) + 1


def _add(found: Forecast, batch: list[Chunk], names: Sequence[str]) -> None:
    packed = len(pack_chunks(batch))
    reserved = packed + vector_bytes(found.plan, names, batch)
    text = sum(text_bytes(chunk.text) for chunk in batch)
    found.batches += 1
    found.text_bytes += text
    found.packed_bytes += packed
    found.payload_bytes += text + sum(len(chunk.body) + len(chunk.source) + _OWN_PAYLOAD for chunk in batch)
    found.largest_batch = max(found.largest_batch, reserved)


def _tokens(chunks: Sequence[Chunk], most: int, bytes_per_token: float) -> float:
    return sum(min(most, max(1.0, text_bytes(chunk.text) / bytes_per_token)) for chunk in chunks)


def _in_redis(found: Forecast, name: str) -> int:
    tokens, texts, total = found.models[name].tokens, found.chunks - found.copies, 0
    for kind in found.plan.kinds(name):
        width = embedder(name).output(kind).dimension
        match kind:
            case "dense":
                total += texts * width * found.plan.value_bytes
            case "multi":
                total += tokens * width * found.plan.value_bytes
            case "sparse":
                total += tokens * _SPARSE
    return total


def _in_qdrant(found: Forecast) -> dict[str, Footprint]:
    vectors = found.plan.vectors()
    rows = {
        v.name: found.models[v.models[0]].stored_tokens if v.kind == "multi" else found.chunks
        for v in vectors
        if v.kind != "sparse"
    }
    indexed = any(rows.get(v.name, 0) * v.dimension * _FLOAT >= footprint.INDEXED_FROM for v in vectors)
    sizes = {}
    for vector in vectors:
        model = vector.models[0]
        if vector.kind == "sparse":
            # A token that comes twice in a text is one entry: an upper bound.
            entries, vocabulary = found.models[model].stored_tokens, embedder(model).architecture.vocabulary
            sizes[vector.name] = footprint.sparse(found.chunks, entries, vocabulary)
        else:
            index = found.plan.index_of(vector)
            sizes[vector.name] = footprint.stored(
                found.chunks, rows[vector.name], vector.dimension, index, indexed=indexed
            )
    return sizes
