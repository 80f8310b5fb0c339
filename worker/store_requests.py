"""What may be asked of the store through the fleet: plain JSON in, plain JSON out."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from registry.codecs import pack_json, unpack_part
from registry.errors import UsageError
from registry.plan import Plan, make_plan
from store.base import CollectionInfo, Sourced, SparseVector, Standing, Store, Vector
from worker.merge import named_vectors
from worker.numerics_record import recorded

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
    """`{collection, names, parts: {model: base64 of a vectors blob of one text}, limit}` → hits, best first.

    The query's named vectors are made of the parts exactly as a chunk's are.
    """
    plan = store.plan(str(asked["collection"]))
    names = [str(name) for name in asked["names"]]
    parts = {str(model): unpack_part(base64.b64decode(blob)) for model, blob in asked["parts"].items()}
    queries = named_vectors(plan, names, parts, 0)
    hits = store.query(str(asked["collection"]), queries, int(asked["limit"]))
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
            for v in info.plan.vectors()
        },
        "numerics": recorded(store.notes(info.name)),
    }


#: Operation name (the task is `v5.store.<name>`) to its work.
OPERATIONS: dict[str, Callable[[Store, dict[str, Any]], bytes]] = {
    "open": _open,
    "describe": _describe,
    "compare": _compare,
    "search": _search,
    "get": _get,
    "scroll": _scroll,
    "delete": _delete,
}
