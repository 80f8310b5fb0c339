"""All collections of a server: the one set of operations that both protocols call, in REST's models."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import qdrant_edge as edge
from qdrant_client.http import models as rest

from tests.qdrant_standin import words
from tests.qdrant_standin.collection import Collection
from tests.qdrant_standin.errors import Kind, Refused, of_engine

#: The first versions that know them; before, the fields are skipped and the calls unknown.
CONDITIONS = METADATA = RRF_PARAMETERS = (1, 16)
MODES = (1, 17)
VECTOR_NAMES = (1, 18)
_FORBIDDEN = '<>:"/\\|?*\0\x1f'


class Engine:
    """The collections under a directory, as a server of that version has them. Its methods raise Refused."""

    def __init__(self, root: Path, version: str) -> None:
        self.version = version
        self._standing, self._work = root / "collections", root / "work"
        self._release = tuple(int(part) for part in version.split(".")[:2])
        self._lock = threading.RLock()
        shutil.rmtree(self._work, ignore_errors=True)
        for directory in (self._standing, self._work):
            directory.mkdir(parents=True, exist_ok=True)
        self._collections = {path.name: Collection.load(path) for path in self._standing.iterdir()}

    def knows(self, since: tuple[int, int]) -> bool:
        return self._release >= since

    def names(self) -> list[str]:
        with self._lock:
            return list(self._collections)

    def exists(self, name: str) -> bool:
        return name in self._collections

    def info(self, name: str) -> rest.CollectionInfo:
        with self._on(name) as collection:
            return collection.info()

    def create(self, name: str, asked: rest.CreateCollection) -> bool:
        if not 1 <= len(name) <= 255:
            raise Refused(
                Kind.INVALID, f"[collection_name: value {name!r} invalid, must be from 1 to 255 characters]"
            )
        for char in _FORBIDDEN:
            if char in name:
                raise Refused(
                    Kind.INVALID, f'[collection_name: collection name cannot contain "{char}" char]'
                )
        if not self.knows(METADATA):
            asked.metadata = None
        with self._lock:
            if name in self._collections:
                raise Refused(Kind.ALREADY_EXISTS, f"Collection `{name}` already exists!")
            with _engine_words():
                self._collections[name] = Collection.create(
                    self._standing / name, self._work / "making", asked
                )
        return True

    def alter(self, name: str, asked: rest.UpdateCollection) -> bool:
        if not self.knows(METADATA):
            asked.metadata = None
        with self._on(name) as collection:
            collection.alter(asked)
        return True

    def delete(self, name: str) -> bool:
        with self._lock:
            collection = self._collections.pop(name, None)
            if collection is None:
                return False
            with collection.lock:
                collection.close()
                shutil.rmtree(collection.directory.rename(self._work / "gone"))
        return True

    def create_index(self, name: str, path: str, schema: Any, wait: bool) -> rest.UpdateResult:
        kind = getattr(schema, "type", schema)
        if kind is None:
            raise Refused(Kind.BAD_REQUEST, "Field type is not specified")
        index = getattr(edge.PayloadSchemaType, str(getattr(kind, "value", kind)).capitalize())
        return self._write(
            name, wait, lambda c: c.shard.update(edge.UpdateOperation.create_field_index(path, index))
        )

    def delete_index(self, name: str, path: str, wait: bool) -> rest.UpdateResult:
        return self._write(
            name, wait, lambda c: c.shard.update(edge.UpdateOperation.delete_field_index(path))
        )

    def create_vector(self, name: str, vector: str, asked: Any, wait: bool) -> rest.UpdateResult:
        self._need(VECTOR_NAMES)
        return self._write(name, wait, lambda c: c.add_vector(vector, asked), checked=True)

    def delete_vector(self, name: str, vector: str, wait: bool) -> rest.UpdateResult:
        self._need(VECTOR_NAMES)
        return self._write(name, wait, lambda c: c.remove_vector(vector), checked=True)

    def update(self, name: str, operations: Sequence[Any], wait: bool) -> list[rest.UpdateResult]:
        """Apply operations on points, in their order, up to the first that is refused."""
        with self._on(name):
            read = []
            for operation in operations:
                self._forget(operation)
                read.append(list(words.update_operations(operation)))

        def apply(some: list[edge.UpdateOperation], collection: Collection) -> None:
            for one in some:
                collection.shard.update(one)

        return [self._write(name, wait, partial(apply, some)) for some in read]

    def retrieve(self, name: str, asked: rest.PointRequest) -> list[rest.Record]:
        with self._on(name) as collection:
            found = collection.shard.retrieve(
                [words.point_id(one) for one in dict.fromkeys(asked.ids)],
                words.selection(True if asked.with_payload is None else asked.with_payload),
                asked.with_vector or False,
            )
        by_id = {record.id: record for record in found}
        ordered = (by_id.pop(words.point_id(one), None) for one in asked.ids)
        return [_record(one) for one in ordered if one is not None]

    def scroll(self, name: str, asked: rest.ScrollRequest) -> tuple[list[rest.Record], Any]:
        if asked.order_by is not None:
            raise words.unsupported(asked.order_by)
        with self._on(name) as collection:
            found, following = collection.shard.scroll(
                edge.ScrollRequest(
                    offset=None if asked.offset is None else words.point_id(asked.offset),
                    limit=words.LIMIT if asked.limit is None else asked.limit,
                    filter=words.filter_of(asked.filter),
                    with_payload=words.selection(True if asked.with_payload is None else asked.with_payload),
                    with_vector=asked.with_vector or False,
                )
            )
        return [_record(one) for one in found], None if following is None else _id(following)

    def count(self, name: str, asked: rest.CountRequest) -> int:
        with self._on(name) as collection:
            exact = asked.exact is not False
            return collection.shard.count(
                edge.CountRequest(exact=exact, filter=words.filter_of(asked.filter))
            )

    def query(self, name: str, asked: rest.QueryRequest) -> list[rest.ScoredPoint]:
        if isinstance(asked.query, rest.RrfQuery) and not self.knows(RRF_PARAMETERS):
            raise Refused(Kind.BAD_REQUEST, "Query variant is missing")
        with self._on(name) as collection:
            found = collection.shard.query(words.query_request(asked))
        return [
            rest.ScoredPoint(
                id=_id(one.id),
                version=one.version,
                score=one.score,
                payload=one.payload if asked.with_payload else None,
                vector=words.from_edge_vectors(one.vector) if asked.with_vector else None,
            )
            for one in found
        ]

    def stop(self) -> None:
        with self._lock:
            for collection in self._collections.values():
                collection.close()
            self._collections.clear()

    def _need(self, since: tuple[int, int]) -> None:
        if not self.knows(since):
            raise Refused(Kind.UNKNOWN_CALL, "")

    @contextmanager
    def _on(self, name: str) -> Iterator[Collection]:
        with self._lock:
            collection = self._collections.get(name)
        if collection is None:
            raise Refused(Kind.NOT_FOUND, f"Collection `{name}` doesn't exist!")
        with collection.lock, _engine_words():
            yield collection

    def _write(
        self, name: str, wait: bool, apply: Callable[[Collection], None], checked: bool = False
    ) -> rest.UpdateResult:
        """Apply a write. One that nobody waits for fails in silence, unless it is `checked` beforehand."""
        with self._on(name) as collection:
            collection.operations += 1
            collection.changed = True
            number = collection.operations
        try:
            with self._on(name) as collection:
                apply(collection)
        except Refused:
            if wait or checked:
                raise
        status = rest.UpdateStatus.COMPLETED if wait else rest.UpdateStatus.ACKNOWLEDGED
        return rest.UpdateResult(operation_id=number, status=status)

    def _forget(self, operation: Any) -> None:
        """Drop what this version does not know, as its decoder would."""
        for key in ("upsert", "update_vectors"):
            points = getattr(operation, key, None)
            if points is None:
                continue
            if not self.knows(CONDITIONS):
                points.update_filter = None
            if key == "upsert" and not self.knows(MODES):
                points.update_mode = None


@contextmanager
def _engine_words() -> Iterator[None]:
    try:
        yield
    except Refused:
        raise
    except BaseException as error:
        # pyo3's PanicException is no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise of_engine(error) from error
        raise


def _id(value: Any) -> int | str:
    return value if isinstance(value, int) else str(value)


def _record(value: edge.Record) -> rest.Record:
    return rest.Record(
        id=_id(value.id), payload=value.payload, vector=words.from_edge_vectors(value.vector) or None
    )
