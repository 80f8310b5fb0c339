"""One collection on a Qdrant server: its plan beside it, its layout, its reads and conditional writes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

from qdrant_client import models

from registry.errors import PlanError, StoreRefused, UsageError
from registry.plan import Plan
from store.base import Point, Vector
from store.binding import Binding
from store.engine import Record
from store.fusion import RRF_K, depth
from store.layout import OVERSAMPLING, Layout, VectorLayout, layout, quantized
from store.server_connection import CollectionExists, CollectionMissing, Connection, RequestTooLarge
from store.server_wire import ORDERING, GrpcWire, RestWire, Row, Wire, cut, payload_rows, send_payloads
from store.server_words import (
    PAYLOAD_SCHEMAS,
    contradictions,
    creation,
    dense_params,
    from_model,
    names,
    of_sources,
    sparse_params,
    to_model,
    tuning,
    with_vector,
)

#: New named vectors on a standing collection came with this version.
ADDING_VERSION = (1, 18)
#: Under this key of the collection's metadata stands the binding.
_METADATA = "v5"
#: Keys of the metadata that begin so are notes.
_NOTES = "v5/"
_VERSION = 1

_T = TypeVar("_T")


class ServerCollection:
    """A collection that this fleet made (see store.engine); `binding` is as it was when last looked at."""

    def __init__(self, name: str, connection: Connection, wire: Wire, binding: Binding) -> None:
        self.name = name
        self.binding = binding
        self._connection = connection
        self._client = connection.client
        self._wire = wire

    @classmethod
    def find(cls, name: str, connection: Connection, wire: Wire) -> ServerCollection | None:
        """The collection; None if there is none. Raises UsageError if it is not one of a fleet's."""
        client = connection.client
        try:
            about = connection.call(
                f"looking for collection {name!r}", lambda: client.get_collection(name)
            ).config
        except CollectionMissing:
            return None
        record = (about.metadata or {}).get(_METADATA)
        if record is None:
            has = ", ".join(sorted(names(about.params))) or "one without a name"
            raise UsageError(
                f"collection {name!r} at {connection.url} was not made by this fleet (its vectors: {has}); "
                "name another with --collection"
            )
        binding = _read(name, record)
        if wrong := contradictions(layout(binding), about.params):
            raise UsageError(
                f"collection {name!r} at {connection.url} has another schema than its own record: "
                f"{'; '.join(wrong)}; index into another collection"
            )
        return cls(name, connection, wire, binding)

    @classmethod
    def create(cls, name: str, connection: Connection, wire: Wire, plan: Plan) -> ServerCollection:
        """Make the collection; if another process is first, take its."""
        binding = Binding.of(plan)
        wanted = layout(binding)
        with contextlib.suppress(CollectionExists):
            connection.call(
                f"creating collection {name!r}",
                lambda: connection.client.create_collection(
                    name,
                    vectors_config=dense_params(wanted),
                    sparse_vectors_config=sparse_params(wanted),
                    on_disk_payload=wanted.payload_on_disk,
                    metadata={_METADATA: _write(binding)},
                ),
            )
        found = cls.find(name, connection, wire)
        if found is None:
            raise CollectionMissing(f"collection {name!r} at {connection.url} was removed while it was made")
        return found

    @property
    def notes(self) -> dict[str, Any]:
        """See EngineCollection.notes."""
        about = self._call("reading", lambda: self._client.get_collection(self.name)).config
        return {
            key.removeprefix(_NOTES): value
            for key, value in (about.metadata or {}).items()
            if key.startswith(_NOTES)
        }

    def note(self, key: str, value: Any) -> None:
        """See EngineCollection.note; the server merges metadata by key."""
        added = {_NOTES + key: value}
        self._call("noting a fact of", lambda: self._client.update_collection(self.name, metadata=added))

    @property
    def points(self) -> int:
        """See EngineCollection.points."""
        return self._call("counting", lambda: self._client.count(self.name, exact=True).count)

    def extend(self, plan: Plan) -> None:
        """See EngineCollection.extend. Also finishes what a crash of it, or of `create`, left undone."""
        binding = self.binding.extended(plan, f"collection {self.name!r}")
        about = self._call("reading", lambda: self._client.get_collection(self.name))
        wanted = layout(binding)
        if wrong := contradictions(wanted, about.config.params):
            raise UsageError(
                f"collection {self.name!r} at {self._connection.url} cannot take the plan's vectors: "
                f"{'; '.join(wrong)}; index into another collection"
            )
        self._add(wanted, names(about.config.params))
        # Before the first point, so that every segment is born with them.
        for path in PAYLOAD_SCHEMAS.keys() - about.payload_schema.keys():
            self._index_payload(path)
        if binding is not self.binding:
            # Last: a vector that stands here can be written to.
            record = {_METADATA: _write(binding)}
            self._call(
                "adding vectors to", lambda: self._client.update_collection(self.name, metadata=record)
            )
            self.binding = binding

    def _index_payload(self, path: str) -> None:
        self._call(
            f"indexing {path} of",
            lambda: self._client.create_payload_index(self.name, path, PAYLOAD_SCHEMAS[path], wait=True),
        )

    def _add(self, wanted: Layout, there: set[str]) -> None:
        lacking = [vector for vector in wanted.vectors if vector.name not in there]
        if not lacking:
            return
        said = ", ".join(vector.name for vector in lacking)
        if self._connection.version < ADDING_VERSION:
            raise UsageError(
                f"collection {self.name!r} stands without {said}, and the Qdrant server at "
                f"{self._connection.url} is older than 1.18, which is the first that adds named vectors to a "
                "standing collection: upgrade the server, or index into a new collection"
            )
        for vector in lacking:
            with contextlib.suppress(CollectionExists):
                self._call(f"adding {vector.name} to", partial(self._create_vector, vector))
        added = {vector.name for vector in lacking}
        sparse = {name: params for name, params in sparse_params(wanted).items() if name in added}
        self._call(
            f"tuning {said} of",
            lambda: self._client.update_collection(
                self.name,
                vectors_config=tuning(lacking) or None,
                sparse_vectors_config=sparse or None,
            ),
        )

    def _create_vector(self, vector: VectorLayout) -> None:
        self._client.create_vector_name(self.name, vector.name, creation(vector), wait=True)

    def retrieve(self, ids: Sequence[str], keys: Sequence[str] | None, vectors: bool) -> list[Record]:
        """See EngineCollection.retrieve."""
        if not ids:
            return []
        found = self._call(
            "reading",
            lambda: self._client.retrieve(
                self.name,
                [*ids],
                with_payload=True if keys is None else [*keys],
                with_vectors=vectors,
            ),
        )
        return [Record(str(point.id), point.payload or {}, _vectors(point.vector)) for point in found]

    def having(self, ids: Sequence[str], name: str) -> set[str]:
        """See EngineCollection.having."""
        found, _ = self._call(
            "reading",
            lambda: self._client.scroll(
                self.name, scroll_filter=with_vector(ids, name), limit=len(ids), with_payload=False
            ),
        )
        return {str(point.id) for point in found}

    def page(self, after: str, limit: int, keys: Sequence[str]) -> tuple[list[Record], str]:
        """See EngineCollection.page."""
        found, following = self._call(
            "reading",
            lambda: self._client.scroll(
                self.name, limit=limit, offset=after or None, with_payload=[*keys], with_vectors=False
            ),
        )
        records = [Record(str(point.id), point.payload or {}, {}) for point in found]
        return records, "" if following is None else str(following)

    def nearest(self, queries: dict[str, Vector], limit: int, prefetch: int) -> Iterable[tuple[str, float]]:
        """See EngineCollection.nearest."""
        vectors = {name: to_model(vector) for name, vector in queries.items()}
        if len(vectors) == 1:
            ((name, vector),) = vectors.items()
            request: dict[str, Any] = {
                "query": vector,
                "using": name,
                "limit": limit,
                "search_params": self._params(name),
            }
        else:
            each = depth(limit, prefetch)
            request = {
                "prefetch": [
                    models.Prefetch(query=vector, using=name, limit=each, params=self._params(name))
                    for name, vector in vectors.items()
                ],
                "query": models.RrfQuery(rrf=models.Rrf(k=RRF_K)),
                "limit": each * len(vectors),
            }
        found = self._call(
            "searching", lambda: self._client.query_points(self.name, with_payload=False, **request).points
        )
        return [(str(point.id), point.score) for point in found]

    def reading(self) -> nullcontext[None]:
        """See EngineCollection.reading; a server's reads each see their own moment."""
        return nullcontext()

    @contextmanager
    def writing(self) -> Iterator[ServerCollection]:
        """See EngineCollection.writing; a server judges the conditions itself, whoever else writes."""
        yield self

    def upsert(self, points: Sequence[Point], started: int) -> None:
        """See Writer.upsert."""
        self._send(
            self._wire.points(points), lambda rows: self._wire.upsert(self.name, rows, started), "writing to"
        )

    def update_vectors(self, points: Sequence[Point], started: int) -> None:
        """See Writer.update_vectors. A payload never claims vectors that are not written yet."""
        rows = self._wire.vectors(point for point in points if point.vectors)
        self._send(rows, lambda some: self._wire.update_vectors(self.name, some, started), "writing to")
        self.update_payload(points, started)

    def update_payload(self, points: Sequence[Point], started: int) -> None:
        """See Writer.update_payload."""
        self._send(
            payload_rows(points, started),
            lambda rows: send_payloads(self._client, self.name, rows),
            "writing to",
        )

    def delete(self, ids: Sequence[str], sources: Sequence[str], started: int) -> None:
        """See Writer.delete."""
        selected = models.FilterSelector(filter=of_sources(ids, sources, started))
        self._call(
            "deleting from",
            lambda: self._client.delete(self.name, selected, wait=True, ordering=ORDERING),
        )

    def _send(self, rows: Iterable[Row], send: Callable[[Sequence[Row]], None], what: str) -> None:
        for some in cut(rows, self._connection.request_bytes):
            self._send_halving(some, send, what)

    def _send_halving(self, rows: Sequence[Row], send: Callable[[Sequence[Row]], None], what: str) -> None:
        """Send rows; where the server takes less at once than it was thought to, send halves."""
        try:
            self._call(what, lambda: send(rows))
        except RequestTooLarge as error:
            if len(rows) == 1:
                raise StoreRefused(f"point {rows[0].id} of {rows[0].nbytes} bytes: {error}") from error
            size = sum(row.nbytes for row in rows)
            self._connection.request_bytes = min(self._connection.request_bytes, max(size // 2, 1 << 16))
            middle = len(rows) // 2
            self._send_halving(rows[:middle], send, what)
            self._send_halving(rows[middle:], send, what)

    def _params(self, name: str) -> models.SearchParams | None:
        if not quantized(self.binding, name):
            return None
        rescored = models.QuantizationSearchParams(rescore=True, oversampling=OVERSAMPLING)
        return models.SearchParams(quantization=rescored)

    def _call(self, what: str, work: Callable[[], _T]) -> _T:
        return self._connection.call(f"{what} collection {self.name!r}", work)


def wire_of(connection: Connection, seconds: float) -> Wire:
    """How points travel on this connection."""
    if connection.grpc:
        return GrpcWire(connection.client, seconds)
    return RestWire(connection.client)


def _write(binding: Binding) -> dict[str, Any]:
    return {"version": _VERSION, **binding.to_json()}


def _read(name: str, record: Any) -> Binding:
    try:
        if record["version"] != _VERSION:
            raise ValueError(f"version {record['version']}; this program reads {_VERSION}")
        return Binding.from_json(record)
    except (KeyError, TypeError, ValueError, PlanError) as error:
        raise StoreRefused(
            f"the record of collection {name!r} cannot be understood ({error}); it was made by another "
            "version, or changed by hand: index into another collection"
        ) from None


def _vectors(found: object) -> dict[str, Vector]:
    return {name: from_model(value) for name, value in found.items()} if isinstance(found, dict) else {}
