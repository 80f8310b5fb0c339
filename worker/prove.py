"""The proof of an embedding model on this machine: real weights against the numbers that are known of it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from registry.codecs import Dense, Multi, Part, Sparse, Vectors
from registry.errors import GoldenMismatch
from registry.examples import EXAMPLES, Example
from registry.models import ModelSpec, OutputKind, Published
from registry.settings import Settings
from registry.spaces import VectorSpace, space_of
from worker.encoders.base import Encoder
from worker.encoders.encode import encode
from worker.encoders.factory import load_encoder, warm_up
from worker.encoders.goldens import AGREEMENT, TEXTS, Golden, agreement, measure
from worker.encoders.minilm_goldens import shipped
from worker.merge import prefix

#: Upstream printed four decimals of a pass in bfloat16 or float16.
TOLERANCE = 5e-3
#: How far from 1 the norm of a prefix may be after it was normalised again, in float32.
NORM_TOLERANCE = 1e-4

Verdict = Literal["ok", "wrong", "not checked"]


@dataclass(frozen=True)
class Finding:
    """One thing held against what is known of it."""

    what: str
    verdict: Verdict
    value: float | None = None
    expected: float | None = None
    tolerance: float | None = None
    #: What the number means, or why there is none.
    said: str = ""


@dataclass
class Proof:
    """What was found, and the goldens that were measured on the way."""

    findings: list[Finding] = field(default_factory=list)
    goldens: dict[VectorSpace, Golden] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return all(finding.verdict != "wrong" for finding in self.findings)

    @property
    def numbers(self) -> int:
        """How many published numbers, or goldens that come with this program, the model was found to give."""
        return sum(finding.verdict == "ok" and finding.expected is not None for finding in self.findings)


def near(what: str, value: float, expected: float, tolerance: float, said: str = "") -> Finding:
    """A number that must be another; NaN never is."""
    verdict: Verdict = "ok" if abs(value - expected) <= tolerance else "wrong"
    return Finding(what, verdict, value, expected, tolerance, said)


def at_least(what: str, value: float, least: float, said: str = "") -> Finding:
    """A number with a lower limit; NaN is under it."""
    return Finding(what, "ok" if value >= least else "wrong", value, None, least, f"{said}; at least {least}")


def prove(spec: ModelSpec, task: str, settings: Settings) -> tuple[Encoder, Proof]:
    """Load the model and hold it against everything that is known of it; the caller closes the encoder.

    Raises WeightsError (absent or contradicting weights), FleetError (libraries or device are missing),
    PlanError (a task it does not know).
    """
    kinds = [output.kind for output in spec.outputs]
    example = EXAMPLES.get(spec.name)
    task = task or (example.task if example else "") or spec.default_task
    encoder = load_encoder(spec.name, task, settings, kinds)
    proof = Proof()
    # Of golden vectors that are not given, the numbers are shown below.
    with contextlib.suppress(GoldenMismatch):
        warm_up(encoder, kinds)
    proof.findings += _published(encoder, spec, task, example)
    given = measure(encoder, kinds)
    proof.goldens = {encoder.space(kind): given[kind] for kind in kinds}
    proof.findings += _shipped(spec, task, given)
    proof.findings += _batches(encoder, kinds, given)
    proof.findings += _prefixes(spec, given)
    proof.findings += _prompts(encoder, spec, task)
    others = [name for name in spec.prompts if name not in ("", task)]
    if others:
        said = "each is proved by itself, with --task"
        proof.findings.append(Finding(f"tasks {', '.join(others)}", "not checked", said=said))
    return encoder, proof


def similarities(queries: Vectors, documents: Vectors) -> npt.NDArray[np.float64]:
    """Scores `[queries, documents]` as upstream defines them: cosine (of unit vectors), the product of sparse
    weights, the mean over a query's rows of their best cosine among a document's."""
    found = np.zeros((len(queries), len(documents)))
    for q in range(len(queries)):
        for d in range(len(documents)):
            found[q, d] = _similarity(queries, q, documents, d)
    return found


def _similarity(queries: Vectors, q: int, documents: Vectors, d: int) -> float:
    if isinstance(queries, Dense) and isinstance(documents, Dense):
        return float(queries.values[q] @ documents.values[d])
    if isinstance(queries, Multi) and isinstance(documents, Multi):
        return float((queries.row(q) @ documents.row(d).T).max(axis=1).mean())
    if isinstance(queries, Sparse) and isinstance(documents, Sparse):
        (mine, weights), (theirs, others) = queries.row(q), documents.row(d)
        _, at, there = np.intersect1d(mine, theirs, return_indices=True)
        return float(weights[at] @ others[there])
    raise TypeError("two outputs of different kinds cannot be compared")


def _published(encoder: Encoder, spec: ModelSpec, task: str, example: Example | None) -> Iterator[Finding]:
    """Every number that upstream's card shows for its own example."""
    shown = {published.kind for published in spec.published}
    for output in spec.outputs:
        if output.kind not in shown or example is None:
            said = "upstream's card shows no numbers for this output of a text"
            yield Finding(f"published {output.kind} numbers", "not checked", said=said)
    if example is None or not spec.published:
        return
    if example.task and task != example.task:
        said = f"upstream shows numbers for the task {example.task!r} only"
        yield Finding("published numbers", "not checked", said=said)
        return
    kinds = [published.kind for published in spec.published]
    queries = _encoded(encoder, example.queries, "query", kinds)
    documents = _encoded(encoder, example.documents, "document", kinds)
    longest = int(max(queries.tokens_seen.max(), documents.tokens_seen.max()))
    for published in spec.published:
        yield from _numbers(published, queries, documents, longest)


def _numbers(published: Published, queries: Part, documents: Part, longest: int) -> Iterator[Finding]:
    kind = published.kind
    if published.max_tokens and longest > published.max_tokens:
        said = f"the example has {longest} tokens here, and the reference cut at {published.max_tokens}"
        yield Finding(f"published {kind} numbers", "wrong", said=said)
        return
    found = similarities(queries.vectors[kind], documents.vectors[kind])
    for q, row in enumerate(published.similarities):
        for d, expected in enumerate(row):
            what = f"{kind} similarity of the card's query {q + 1} and document {d + 1}"
            yield near(what, float(found[q, d]), expected, TOLERANCE, "published")


def _shipped(spec: ModelSpec, task: str, given: dict[OutputKind, Golden]) -> Iterator[Finding]:
    for kind, golden in given.items():
        known = shipped(space_of(spec, kind, task))
        if known is not None:
            found = agreement(known, golden)
            tolerance = 1.0 - AGREEMENT
            said = found.problem or "smallest cosine with the golden vectors that come with this program"
            yield near(f"golden {kind} vectors", found.worst, 1.0, tolerance, said)


def _batches(
    encoder: Encoder, kinds: Sequence[OutputKind], given: dict[OutputKind, Golden]
) -> Iterator[Finding]:
    alone = measure(encoder, kinds, alone=True)
    for kind in kinds:
        found = agreement(given[kind], alone[kind])
        said = found.problem or "smallest cosine between a text alone and the same text in a padded batch"
        yield at_least(f"{kind} vectors at two batch shapes", found.worst, AGREEMENT, said)


def _prefixes(spec: ModelSpec, given: dict[OutputKind, Golden]) -> Iterator[Finding]:
    if "dense" not in given or not spec.matryoshka:
        return
    values = np.asarray(given["dense"].vectors.values, np.float32)
    for width in spec.matryoshka:
        cut = prefix(values, width)
        worst = float(np.abs(np.linalg.norm(cut, axis=1) - 1.0).max())
        bare = float(np.linalg.norm(values[:, :width], axis=1).mean())
        said = f"how far the norm of the prefix is from 1, normalised again; it was {bare:.3f} before"
        verdict: Verdict = "ok" if worst <= NORM_TOLERANCE else "wrong"
        yield Finding(f"Matryoshka {width}", verdict, worst, None, NORM_TOLERANCE, said)


def _prompts(encoder: Encoder, spec: ModelSpec, task: str) -> Iterator[Finding]:
    prompt = spec.prompts[task]
    what = "the prompt changes the vector"
    if prompt.query == prompt.document:
        said = "the model has none" if not prompt.query else f"task {task!r} has one for both sides"
        yield Finding(what, "not checked", said=said)
        return
    text = TEXTS[0][1]
    sides = [_encoded(encoder, [text], side, ["dense"]) for side in ("query", "document")]
    a, b = (part.vectors["dense"].values[0] for part in sides)
    cosine = float(a @ b)
    said = f"cosine of one text as a query and as a document, at most {AGREEMENT}"
    yield Finding(what, "ok" if cosine <= AGREEMENT else "wrong", cosine, None, AGREEMENT, said)


def _encoded(encoder: Encoder, texts: Sequence[str], side: Any, kinds: Sequence[OutputKind]) -> Part:
    return encode(encoder, texts, side, kinds, device_lock=threading.Lock())
