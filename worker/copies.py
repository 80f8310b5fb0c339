"""Copies take the vectors that stand in the store for their text, so that each text is embedded once.

The producer names the original of each (`producer/originals.py`), whichever worker embedded it. A batch of
copies takes its turn when the batches of its originals have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ledger.jobs import DeadLetter
from registry.chunks import Chunk
from registry.plan import Plan
from store.base import SparseVector, Store, StoredPoint, Vector
from store.points import CONTENT_HASH, tokens_of
from worker.encoders.encode import most_rows
from worker.merge import Merged

#: Points read by one request. An engine may hand out each value as an object of 32 bytes: of multi-vectors at
#: the store's ceiling, 32 MiB a point.
_POINTS, _POINTS_OF_MULTI = 128, 4


def copied(
    store: Store,
    collection: str,
    plan: Plan,
    names: Sequence[str],
    chunks: Sequence[Chunk],
    letters: Callable[[Sequence[str]], Mapping[str, DeadLetter]],
) -> Merged | None:
    """The vectors `names` of chunks of which each names its original; None if one of them must be embedded.

    An original serves if it stands with the same text, with all these vectors, and with its token counts.
    `letters` gives the dead letters among ids: a text that a model did not take once is not tried again.
    Raises as `Store.get`.
    """
    models = plan.models_for(list(names))
    originals = {chunk.id: chunk.original.id for chunk in chunks if chunk.original is not None}
    points = _read(store, collection, plan, names, sorted(set(originals.values())))
    found = Merged(vectors={}, chunks=[], rejected=[], tokens={})
    missing, shortened = [], 0
    for chunk in chunks:
        point = points.get(originals.get(chunk.id, ""))
        if point is None or not _serves(point, chunk, names, models):
            missing.append(chunk)
            continue
        found.chunks.append(chunk)
        found.vectors[chunk.id] = {name: point.vectors[name] for name in names}
        found.tokens[chunk.id] = _tokens(point, models)
        shortened += _shortened(plan, found.vectors[chunk.id], found.tokens[chunk.id])
    dead = letters([originals[chunk.id] for chunk in missing if chunk.id in originals])
    for chunk in missing:
        letter = dead.get(originals.get(chunk.id, ""))
        if letter is None or letter.stage != "embed":
            return None
        found.rejected.append((chunk, f"{letter.reason} (as {letter.id}, which has the same text)"))
    return replace(found, shortened=shortened)


def _read(
    store: Store, collection: str, plan: Plan, names: Sequence[str], ids: Sequence[str]
) -> dict[str, StoredPoint]:
    multi = any(plan.vector(name).kind == "multi" for name in names)
    step = _POINTS_OF_MULTI if multi else _POINTS
    pages = (store.get(collection, ids[at : at + step], names) for at in range(0, len(ids), step))
    return {point.id: point for page in pages for point in page}


def _serves(point: StoredPoint, chunk: Chunk, names: Sequence[str], models: Sequence[str]) -> bool:
    return (
        point.payload.get(CONTENT_HASH) == chunk.content_hash
        and point.vectors.keys() >= set(names)
        and len(_tokens(point, models)) == len(models)
    )


def _tokens(point: StoredPoint, models: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Tokens seen and kept, by model."""
    found = {model: tokens_of(point.payload, model) for model in models}
    return {model: counts for model, counts in found.items() if counts is not None}


def _shortened(plan: Plan, vectors: Mapping[str, Vector], tokens: Mapping[str, tuple[int, int]]) -> int:
    """Multi-vectors that end at the store's ceiling, of a text that the model itself read whole."""
    count = 0
    for name, vector in vectors.items():
        if not isinstance(vector, SparseVector) and vector.ndim == 2:
            seen, kept = tokens[plan.vector(name).models[0]]
            count += seen == kept and len(vector) >= most_rows(vector.shape[1])
    return count
