"""What may be asked of the store through the fleet: plain JSON in, plain JSON out."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any

from registry.codecs import unpack_part
from registry.errors import SpaceMismatch, UsageError
from registry.frames import pack_json
from registry.plan import Plan, make_plan
from store.base import CollectionInfo, Sourced, SparseVector, Standing, Store, Vector
from store.binding import WAYS_OUT, Binding, Change
from worker import golden_record, numerics_record
from worker.merge import named_vectors

#: Ids of one request.
MOST_IDS = 10_000


def _open(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection, plan}` → the collection, created or checked."""
    plan: Plan = make_plan(**asked["plan"])
    return pack_json(_described(store, store.open(str(asked["collection"]), plan)))


def _describe(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection}` → its plan and size; without one, the names of all."""
    if not asked.get("collection"):
        return pack_json({"collections": store.collections()})
    return pack_json(_described(store, store.describe(str(asked["collection"]))))


def _plan(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection}` → its plan, without counting or reading anything else."""
    return pack_json({"plan": store.plan(str(asked["collection"])).model_dump(mode="json")})


def _changes(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection, plan}` → `{points, changes: [{name, standing, offered, difference}]}`: what a migration
    to the plan would remove and have embedded anew."""
    collection = str(asked["collection"])
    changes = store.changes(collection, make_plan(**asked["plan"]))
    rows = [
        {
            "name": change.offered.name,
            "standing": change.standing.fingerprint,
            "offered": change.offered.fingerprint,
            "difference": change.difference,
        }
        for change in changes
    ]
    return pack_json({"points": store.describe(collection).points if changes else 0, "changes": rows})


def _migrate(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection, plan, started}` → `{done}`; asked again until it is (see Store.migrate)."""
    collection, plan = str(asked["collection"]), make_plan(**asked["plan"])
    changes = store.changes(collection, plan)
    forget = _former_notes(store, collection, changes) if changes else []
    return pack_json({"done": store.migrate(collection, plan, int(asked["started"]), forget)})


def _former_notes(store: Store, collection: str, changes: list[Change]) -> list[str]:
    """The keys of what was noted about vectors and spaces that the collection will not have any more."""
    changed = {change.offered.name for change in changes}
    binding: Binding = store.binding(collection)
    stay = [vector for name, vector in binding.vectors.items() if name not in changed]
    stay += [change.offered for change in changes]
    spaces = {space.fingerprint for change in changes for space in change.standing.spaces}
    spaces -= {space.fingerprint for vector in stay for space in vector.spaces}
    numerics = numerics_record.notes_of(store.notes(collection), changed)
    return [*numerics, *golden_record.notes_of(sorted(spaces))]


def _bulk(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection, job}` → `{}`: no index is built while that job loads (see Store.begin_bulk)."""
    store.begin_bulk(str(asked["collection"]), str(asked["job"]), int(time.time() * 1000))
    return pack_json({})


def _indexing(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection, begin}` → `{status, failure, indexed, vectors, loads: [{job, since}]}`."""
    found = store.indexing(str(asked["collection"]), bool(asked.get("begin")))
    loads = [{"job": load.job, "since": load.since} for load in found.loads]
    return pack_json(
        {
            "status": found.status,
            "failure": found.failure,
            "indexed": found.indexed,
            "vectors": found.vectors,
            "loads": loads,
        }
    )


def _lacking(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection, names}` → how many points lack each of the named vectors."""
    return pack_json(store.lacking(str(asked["collection"]), [str(name) for name in asked["names"]]))


def _compare(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection, names, chunks: [[id, content_hash, payload_hash], …]}` → per chunk what it lacks.

    Each answer is `["same"]`, `["absent"]`, `["changed"]` (another text stands), `["lacking", names]` or
    `["payload"]` (only the payload differs).
    """
    rows, names = asked["chunks"], list(asked["names"])
    if len(rows) > MOST_IDS:
        raise UsageError(f"{len(rows)} chunks in one comparison; at most {MOST_IDS}")
    standing = store.standing(str(asked["collection"]), [row[0] for row in rows])
    return pack_json([_verdict(standing.get(row[0]), row[1], row[2], names) for row in rows])


def _verdict(found: Standing | None, content: str, payload: str, names: list[str]) -> list[Any]:
    if found is None:
        return ["absent"]
    if found.content_hash != content:
        return ["changed"]
    lacking = [name for name in names if name not in found.vectors]
    if lacking:
        return ["lacking", lacking]
    return ["same"] if found.payload_hash == payload else ["payload"]


def _search(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection, vectors: {name: fingerprint}, parts: {model: base64 of a vectors blob}, limit}` → hits,
    best first.

    Each part is of one text, and the query's named vectors are made of the parts exactly as a chunk's are.
    Raises SpaceMismatch if the caller made them for other vectors than those that stand.
    """
    collection = str(asked["collection"])
    binding = store.binding(collection)
    for name, fingerprint in asked["vectors"].items():
        standing = binding.vectors.get(name)
        if standing is not None and standing.fingerprint != fingerprint:
            raise SpaceMismatch(
                f"collection {collection!r} holds {name!r} as {standing.fingerprint} and was asked with a "
                f"query of {fingerprint}: they cannot be compared. Search again if it was migrated just now; "
                f"where this program makes other vectors than the one that filled it, {WAYS_OUT}"
            )
    parts = {str(model): unpack_part(base64.b64decode(blob)) for model, blob in asked["parts"].items()}
    queries = named_vectors(binding.plan, list(asked["vectors"]), parts, 0)
    hits = store.query(collection, queries, int(asked["limit"]))
    return pack_json([{"id": hit.id, "score": hit.score, "payload": hit.payload} for hit in hits])


def _get(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection, ids, vectors: bool}` → the points that stand."""
    ids = [str(identity) for identity in asked["ids"]]
    if len(ids) > MOST_IDS:
        raise UsageError(f"{len(ids)} ids in one request; at most {MOST_IDS}")
    points = store.get(str(asked["collection"]), ids, bool(asked.get("vectors")))
    return pack_json(
        [
            {
                "id": point.id,
                "payload": point.payload,
                "vectors": {name: write_vector(vector) for name, vector in point.vectors.items()},
            }
            for point in points
        ]
    )


def _scroll(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection, after, limit}` → `{points: [[id, source], …], next}`: a page of all points by id."""
    limit = int(asked["limit"])
    if limit > MOST_IDS:
        raise UsageError(f"{limit} points in one page; at most {MOST_IDS}")
    points, following = store.scroll(str(asked["collection"]), str(asked["after"]), limit)
    return pack_json({"points": [[point.id, point.source] for point in points], "next": following})


def _delete(store: Store, asked: dict[str, Any]) -> bytes:
    """`{collection, points: [[id, source], …], started}` → `{deleted}`: how many of them are gone.

    Only what is still of one of the sources and no newer than `started` goes.
    """
    points = [Sourced(str(identity), str(source)) for identity, source in asked["points"]]
    if len(points) > MOST_IDS:
        raise UsageError(f"{len(points)} points to delete in one request; at most {MOST_IDS}")
    return pack_json({"deleted": store.delete(str(asked["collection"]), points, int(asked["started"]))})


def write_vector(vector: Vector) -> Any:
    """A vector as JSON: a list, a list of rows, or `{indices, values}`."""
    if isinstance(vector, SparseVector):
        return {"indices": vector.indices.tolist(), "values": vector.values.tolist()}
    return vector.tolist()


def _described(store: Store, info: CollectionInfo) -> dict[str, Any]:
    return {
        "collection": info.name,
        "points": info.points,
        "plan": info.plan.model_dump(mode="json"),
        "vectors": {
            v.name: {"kind": v.kind, "dimension": v.dimension, "fingerprint": v.fingerprint}
            for v in store.binding(info.name).vectors.values()
        },
        "numerics": numerics_record.recorded(store.notes(info.name)),
    }


#: Operation name (the task is `v5.store.<name>`) to its work.
OPERATIONS: dict[str, Callable[[Store, dict[str, Any]], bytes]] = {
    "open": _open,
    "describe": _describe,
    "plan": _plan,
    "changes": _changes,
    "migrate": _migrate,
    "bulk": _bulk,
    "indexing": _indexing,
    "lacking": _lacking,
    "compare": _compare,
    "search": _search,
    "get": _get,
    "scroll": _scroll,
    "delete": _delete,
}
