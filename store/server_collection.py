"""One collection on a Qdrant server: its plan beside it, its layout, its reads and conditional writes."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

from qdrant_client import models

from registry.errors import PlanError, SpaceMismatch, StoreRefused, StoreUnavailable, UsageError
from registry.plan import Plan
from store.base import Point, Vector
from store.binding import Binding
from store.bulk import IndexState
from store.engine import Record
from store.fusion import RRF_K, depth
from store.layout import OVERSAMPLING, Layout, VectorLayout, layout, quantized
from store.points import STARTED, started_of
from store.server_connection import CollectionExists, CollectionMissing, Connection, RequestTooLarge
from store.server_wire import (
    ORDERING,
    GrpcWire,
    RestWire,
    Row,
    Wire,
    cut,
    payload_rows,
    require_done,
    send_payloads,
)
from store.server_words import (
    PAYLOAD_SCHEMAS,
    among,
    contradictions,
    creation,
    dense_params,
    every,
    from_model,
    has_vector,
    names,
    not_newer,
    of_sources,
    sparse_params,
    to_model,
    tuning,
    written_since,
)

log = logging.getLogger(__name__)

#: New named vectors on a standing collection came with this version.
ADDING_VERSION = (1, 18)
#: Under this key of the collection's metadata stands the binding.
_METADATA = "v5"
#: Keys that begin so hold what a later plan added, each under its own: the server merges metadata by key, so
#: that processes which add at once lose nothing.
_ADDED = "v5+"
#: Keys of the metadata that begin so are notes.
_NOTES = "v5/"
_VERSION = 1
#: A server's own indexing threshold, since the oldest version that serves. Kilobytes.
DEFAULT_THRESHOLD = 10_000

_T = TypeVar("_T")


class ServerCollection:
    """A collection that this fleet made (see store.engine); `binding` is as it was when last looked at."""

    def __init__(
        self, name: str, connection: Connection, wire: Wire, binding: Binding, added: Sequence[str] = ()
    ) -> None:
        """`added` are the keys of the metadata that the binding was read from, beside the record's."""
        self.name = name
        self.binding = binding
        self._added = added
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
        binding = _folded(name, about.metadata or {})
        under_way = binding.migrating.targets if binding.migrating else {}
        found = contradictions(layout(binding), about.params)
        if wrong := [said for vector, said in found.items() if vector not in under_way]:
            raise UsageError(
                f"collection {name!r} at {connection.url} has another schema than its own record: "
                f"{'; '.join(wrong)}; index into another collection"
            )
        added = [key for key in about.metadata or {} if key.startswith(_ADDED)]
        return cls(name, connection, wire, binding, added)

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
        return _notes(about)

    def note(self, key: str, value: Any) -> None:
        """See EngineCollection.note; the server merges metadata by key."""
        added = {_NOTES + key: value}
        self._call("noting a fact of", lambda: self._client.update_collection(self.name, metadata=added))

    def index_state(self) -> IndexState:
        """See EngineCollection.index_state."""
        about = self._call("reading", lambda: self._client.get_collection(self.name))
        status = about.optimizer_status
        return IndexState(
            threshold=about.config.optimizer_config.indexing_threshold,
            status=about.status.value,
            failure=status.error if isinstance(status, models.OptimizersStatusOneOf1) else "",
            indexed=about.indexed_vectors_count or 0,
            vectors=(about.points_count or 0) * len(self.binding.vectors),
            notes=_notes(about.config),
        )

    def set_threshold(self, kilobytes: int | None) -> None:
        """See EngineCollection.set_threshold.

        `m` = 0 would put indexing off, too, but drops the graphs that stand. A server can be told no default.
        """
        threshold = DEFAULT_THRESHOLD if kilobytes is None else kilobytes
        self._optimise(
            "setting the indexing threshold of", models.OptimizersConfigDiff(indexing_threshold=threshold)
        )

    def begin_indexing(self) -> None:
        """Have indexing go on that waits since the server's restart, for a change of any kind."""
        self._optimise("beginning to index", models.OptimizersConfigDiff())

    def _optimise(self, what: str, diff: models.OptimizersConfigDiff) -> None:
        self._call(what, lambda: self._client.update_collection(self.name, optimizers_config=diff))

    @property
    def points(self) -> int:
        """See EngineCollection.points."""
        return self._call("counting", lambda: self._client.count(self.name, exact=True).count)

    def extend(self, plan: Plan) -> None:
        """See EngineCollection.extend. Also finishes what a crash of it, or of `create`, left undone."""
        where = f"collection {self.name!r}"
        binding = self.binding.extended(plan, where)
        about = self._call("reading", lambda: self._client.get_collection(self.name))
        wanted = layout(binding)
        if wrong := contradictions(wanted, about.config.params):
            raise UsageError(
                f"collection {self.name!r} at {self._connection.url} cannot take the plan's vectors: "
                f"{'; '.join(wrong.values())}; index into another collection"
            )
        self._add(wanted, names(about.config.params))
        # Before the first point, so that every segment is born with them.
        for path in PAYLOAD_SCHEMAS.keys() - about.payload_schema.keys():
            self._index_payload(path)
        if binding is not self.binding:
            # Last: a vector that stands here can be written to.
            added = {k: vector for k, vector in binding.vectors.items() if k not in self.binding.vectors}
            self._record({_ADDED + plan.fingerprint: _write(Binding(plan, added))})
            # Another process may have bound one of the names meanwhile.
            found = self.find(self.name, self._connection, self._wire)
            if found is None:
                raise CollectionMissing(f"{where} at {self._connection.url} was removed while it was opened")
            self.binding, self._added = found.binding.extended(plan, where), found._added

    def require_renewable(self, binding: Binding) -> None:
        """See EngineCollection.require_renewable."""
        params = self._call("reading", lambda: self._client.get_collection(self.name)).config.params
        other = contradictions(layout(binding), params).keys() | (binding.vectors.keys() - names(params))
        if other:
            self._require_adding(" and ".join(f"such a {name}" for name in sorted(other)))

    def leave(self, binding: Binding) -> None:
        """See EngineCollection.leave."""
        self._record(self._whole(binding))
        self.binding = binding

    def clear(self, vectors: Sequence[str], since: int, most: int) -> bool:
        """See EngineCollection.clear."""
        older = not_newer(since - 2)
        if ids := self._page(older, most):
            self._drop_late(ids)
            about, key = STARTED.split(".")
            self._apply(
                lambda: self._client.set_payload(
                    self.name,
                    {key: since - 1},
                    every(among(ids), older),
                    key=about,
                    wait=True,
                    ordering=ORDERING,
                )
            )
            return True
        for name in vectors:
            former = every(has_vector(name), not_newer(since - 1))
            if ids := self._page(former, most):
                self._drop(name, every(among(ids), former))
                return True
        return False

    def arrive(self, binding: Binding, vectors: Sequence[str], forget: Sequence[str]) -> None:
        """See EngineCollection.arrive."""
        for name in vectors:
            if self._page(has_vector(name), 1):
                raise StoreUnavailable(
                    f"collection {self.name!r} has points with a former {name!r} that are newer than the job "
                    "which migrates it: did the clock of Redis go back? Submit again later"
                )
        about = self._call("reading", lambda: self._client.get_collection(self.name))
        wanted, there = layout(binding), names(about.config.params)
        for name in contradictions(wanted, about.config.params).keys() & set(vectors):
            self._remove_vector(name)
            there.discard(name)
        self._add(wanted, there)
        self._record({**self._whole(binding), **dict.fromkeys(_NOTES + key for key in forget)})
        self.binding = binding

    def having_count(self, name: str) -> int:
        """See EngineCollection.having_count."""
        found = every(has_vector(name), self._current(name))
        return self._call("counting", lambda: self._client.count(self.name, found, exact=True).count)

    def _current(self, name: str) -> models.Filter | None:
        """Points whose vector of that name is of the space it is bound to, if there can be others: a write
        that was under way while the vector was migrated may have made a point that did not stand."""
        since = self.binding.since.get(name)
        return None if since is None else written_since(since)

    def _drop_late(self, ids: Sequence[str]) -> None:
        """Remove what such a write left under migrated names of these points, before they say that they are
        newer."""
        under_way = self.binding.migrating.targets if self.binding.migrating else {}
        for name, since in self.binding.since.items():
            if name not in under_way:
                self._drop(name, every(among(ids), has_vector(name), not_newer(since - 1)))

    def _drop(self, name: str, where: models.Filter) -> None:
        self._apply(
            lambda: self._client.delete_vectors(self.name, [name], where, wait=True, ordering=ORDERING)
        )

    def _page(self, where: models.Filter, limit: int) -> list[str]:
        found, _ = self._call(
            "reading",
            lambda: self._client.scroll(
                self.name, scroll_filter=where, limit=limit, with_payload=False, with_vectors=False
            ),
        )
        return [str(point.id) for point in found]

    def _apply(self, work: Callable[[], models.UpdateResult]) -> None:
        self._call("migrating", lambda: require_done(work().status))

    def _remove_vector(self, name: str) -> None:
        self._call(
            f"removing {name} from",
            lambda: self._client.delete_vector_name(self.name, name, wait=True),
        )

    def _whole(self, binding: Binding) -> dict[str, Any]:
        """Metadata in which the record alone says this binding."""
        return {_METADATA: _write(binding), **dict.fromkeys(self._added)}

    def _record(self, metadata: dict[str, Any]) -> None:
        self._call(
            "recording the plan of",
            lambda: self._client.update_collection(self.name, metadata=metadata),
        )

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
        self._require_adding(said)
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

    def _require_adding(self, said: str) -> None:
        if self._connection.version < ADDING_VERSION:
            raise UsageError(
                f"collection {self.name!r} stands without {said}, and the Qdrant server at "
                f"{self._connection.url} is older than 1.18, which is the first that adds named vectors to a "
                "standing collection: upgrade the server, or index into a new collection"
            )

    def _create_vector(self, vector: VectorLayout) -> None:
        self._client.create_vector_name(self.name, vector.name, creation(vector), wait=True)

    def retrieve(
        self, ids: Sequence[str], keys: Sequence[str] | None, vectors: bool | list[str]
    ) -> list[Record]:
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
        return [
            Record(str(p.id), p.payload or {}, self._current_ones(_vectors(p.vector), p.payload or {}))
            for p in found
        ]

    def _current_ones(self, vectors: dict[str, Vector], payload: dict[str, Any]) -> dict[str, Vector]:
        since, started = self.binding.since, started_of(payload)
        return {name: vector for name, vector in vectors.items() if started >= since.get(name, 0)}

    def having(self, ids: Sequence[str], name: str) -> set[str]:
        """See EngineCollection.having."""
        found, _ = self._call(
            "reading",
            lambda: self._client.scroll(
                self.name,
                scroll_filter=every(among(ids), has_vector(name), self._current(name)),
                limit=len(ids),
                with_payload=False,
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
                "query_filter": self._current(name),
                "limit": limit,
                "search_params": self._params(name),
            }
        else:
            each = depth(limit, prefetch)
            request = {
                "prefetch": [
                    models.Prefetch(
                        query=vector,
                        using=name,
                        filter=self._current(name),
                        limit=each,
                        params=self._params(name),
                    )
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
        self._drop_late([point.id for point in points])
        rows = self._wire.vectors(point for point in points if point.vectors)
        self._send(rows, lambda some: self._wire.update_vectors(self.name, some, started), "writing to")
        self._send_payloads(points, started)

    def update_payload(self, points: Sequence[Point], started: int) -> None:
        """See Writer.update_payload."""
        self._drop_late([point.id for point in points])
        self._send_payloads(points, started)

    def _send_payloads(self, points: Sequence[Point], started: int) -> None:
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


def _notes(about: models.CollectionConfig) -> dict[str, Any]:
    return {
        key.removeprefix(_NOTES): value
        for key, value in (about.metadata or {}).items()
        if key.startswith(_NOTES)
    }


def _write(binding: Binding) -> dict[str, Any]:
    return {"version": _VERSION, **binding.to_json()}


def _folded(name: str, metadata: dict[str, Any]) -> Binding:
    """The record, with what was added since."""
    binding = _read(name, metadata[_METADATA])
    for key in sorted(key for key in metadata if key.startswith(_ADDED)):
        try:
            binding = binding.joined(_read(name, metadata[key]), f"collection {name!r}")
        except SpaceMismatch as error:
            # Of two that were added at once, the one that came first in this order stands.
            log.warning("an addition to a collection is left out: %s", error)
    return binding


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
