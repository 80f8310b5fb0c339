"""One embedded collection: its record, its shard, and who may write when."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import qdrant_edge as edge

from registry.errors import StoreRefused, StoreUnavailable
from registry.plan import Plan
from store import optimise
from store.base import Point, Vector
from store.binding import Binding
from store.bulk import IndexState, IndexStatus
from store.edge_operations import (
    delete_operation,
    payload_operations,
    query_request,
    raise_operation,
    slices,
    upsert_operations,
    vector_operations,
)
from store.edge_shard import Shard
from store.edge_words import from_edge, has_vector, in_our_words, not_newer, with_vector
from store.engine import Record
from store.layout import layout
from store.meta import Meta, read_meta, sync_path

#: Points written since the last optimisation that make the next one worth its while. Fewer are found by
#: comparing with each, in milliseconds.
OPTIMISE_POINTS = 10_000
#: How often a running optimisation looks whether a writer waits. Seconds.
_GIVE_WAY = 0.05


class EdgeCollection:
    """An open collection (see store.engine). Readers hold `shard.lock`, writers are one at a time."""

    def __init__(self, directory: Path, meta: Meta, shard: Shard) -> None:
        self.name = directory.name
        self.shard = shard
        self._directory = directory
        self._meta = meta
        self._write = threading.Lock()
        self._waiting = 0
        self._optimising = False
        self._counting = threading.Lock()

    @classmethod
    def create(cls, directory: Path, plan: Plan) -> EdgeCollection:
        """Make a collection for the plan; takes over what a crashed attempt left."""
        with in_our_words(f"creating collection {directory.name!r}"):
            binding = Binding.of(plan)
            directory.mkdir(exist_ok=True)
            if read_meta(directory) is None and any(directory.glob("shard-*")):
                raise StoreRefused(
                    f"{directory} holds points but no record of what they are; restore its collection.json "
                    "from a backup, or remove the directory and index again"
                )
            sync_path(directory.parent)
            meta = Meta("creating", 1, 0, (), binding)
            # From here to the last line nothing was acknowledged, and `find` sees no collection.
            meta.write(directory)
            _discard(directory, keep=None)
            shard = Shard.create(_shard_path(directory, 1), layout(binding))
            meta = replace(meta, state="standing")
            meta.write(directory)
            return cls(directory, meta, shard)

    @classmethod
    def find(cls, directory: Path) -> EdgeCollection | None:
        """Open a standing collection, finishing what a crash left half done; None if there is none."""
        with in_our_words(f"opening collection {directory.name!r} in {directory.parent}"):
            meta = read_meta(directory)
            if meta is None or meta.state != "standing":
                return None
            _discard(directory, keep=meta.shard)
            collection = cls(directory, meta, Shard.load(_shard_path(directory, meta.shard)))
            if meta.adding:
                collection._add(meta)
            return collection

    @staticmethod
    def names(root: Path) -> list[str]:
        """The names of the collections that stand under a store's directory, sorted."""
        metas = ((path.name, read_meta(path)) for path in root.iterdir() if path.is_dir())
        return sorted(name for name, meta in metas if meta is not None and meta.state == "standing")

    @property
    def binding(self) -> Binding:
        """The plan and the vectors of this collection."""
        return self._meta.binding

    @property
    def notes(self) -> dict[str, Any]:
        """See EngineCollection.notes."""
        return dict(self._meta.notes)

    def note(self, key: str, value: Any) -> None:
        """See EngineCollection.note."""
        with self._alone(), in_our_words(f"noting {key} of collection {self.name!r}"):
            notes = {k: v for k, v in {**self._meta.notes, key: value}.items() if v is not None}
            meta = replace(self._meta, notes=notes)
            meta.write(self._directory)
            self._meta = meta

    def index_state(self) -> IndexState:
        """See EngineCollection.index_state."""
        with self.reading() as shard, in_our_words(f"reading collection {self.name!r}"):
            found, meta = shard.read.info(), self._meta
        status: IndexStatus = "green"
        if found.points_count - meta.optimised >= OPTIMISE_POINTS:
            status = "yellow" if self._optimising else "grey"
        vectors = found.points_count * len(meta.binding.vectors)
        return IndexState(None, status, "", found.indexed_vectors_count, vectors, meta.notes)

    def set_threshold(self, kilobytes: int | None) -> None:
        """See EngineCollection.set_threshold; only `optimise` builds indexes."""

    @property
    def points(self) -> int:
        """See EngineCollection.points."""
        with self.reading() as shard, in_our_words(f"reading collection {self.name!r}"):
            return shard.points

    def retrieve(
        self, ids: Sequence[str], keys: Sequence[str] | None, vectors: bool | list[str]
    ) -> list[Record]:
        """See EngineCollection.retrieve."""
        with self.reading() as shard, in_our_words(f"reading collection {self.name!r}"):
            found = shard.read.retrieve([*ids], True if keys is None else [*keys], vectors)
        return [Record(str(point.id), point.payload or {}, _vectors(point.vector)) for point in found]

    def having(self, ids: Sequence[str], name: str) -> set[str]:
        """See EngineCollection.having."""
        request = edge.ScrollRequest(limit=len(ids), filter=with_vector(set(ids), name), with_payload=False)
        with self.reading() as shard, in_our_words(f"reading collection {self.name!r}"):
            return {str(point.id) for point in shard.read.scroll(request)[0]}

    def page(self, after: str, limit: int, keys: Sequence[str]) -> tuple[list[Record], str]:
        """See EngineCollection.page."""
        start = UUID(after) if after else None
        request = edge.ScrollRequest(offset=start, limit=limit, with_payload=[*keys], with_vector=False)
        with self.reading() as shard, in_our_words(f"reading collection {self.name!r}"):
            found, following = shard.read.scroll(request)
        records = [Record(str(point.id), point.payload or {}, {}) for point in found]
        return records, "" if following is None else str(following)

    def nearest(self, queries: dict[str, Vector], limit: int, prefetch: int) -> Iterable[tuple[str, float]]:
        """See EngineCollection.nearest."""
        with self.reading() as shard, in_our_words(f"searching collection {self.name!r}"):
            scored = shard.read.query(query_request(queries, limit, prefetch, self.binding))
        return [(str(point.id), point.score) for point in scored]

    def extend(self, plan: Plan) -> None:
        """See EngineCollection.extend."""
        with self._alone():
            where = f"collection {self.name!r}"
            binding = self.binding.extended(plan, where)
            if binding is self.binding:
                return
            adding = tuple(name for name in binding.vectors if name not in self.binding.vectors)
            with in_our_words(f"adding {', '.join(adding)} to {where}"):
                # Recorded first: a crash after this is finished by `find`.
                meta = replace(self._meta, adding=adding, binding=binding)
                meta.write(self._directory)
                self._add(meta)

    def require_renewable(self, binding: Binding) -> None:
        """See EngineCollection.require_renewable; Edge makes any vector anew."""

    def leave(self, binding: Binding) -> None:
        """See EngineCollection.leave."""
        with self._alone(), in_our_words(f"migrating collection {self.name!r}"):
            meta = replace(self._meta, binding=binding)
            meta.write(self._directory)
            self._meta = meta

    def clear(self, vectors: Sequence[str], since: int, most: int) -> bool:  # noqa: ARG002
        """See EngineCollection.clear; the vectors go all at once, when `arrive` makes them anew."""
        request = edge.ScrollRequest(limit=most, filter=not_newer(since - 2), with_payload=False)
        with self.writing() as writer:
            ids = [point.id for point in self.shard.read.scroll(request)[0]]
            if ids:
                writer.raise_started(ids, since - 1)
        return bool(ids)

    def arrive(self, binding: Binding, vectors: Sequence[str], forget: Sequence[str]) -> None:
        """See EngineCollection.arrive."""
        with self._alone(), in_our_words(f"migrating collection {self.name!r}"):
            added = [name for name in binding.vectors if name not in self.binding.vectors]
            notes = {key: value for key, value in self._meta.notes.items() if key not in forget}
            # Recorded first: a crash after this is finished by `find`.
            meta = replace(self._meta, adding=(*vectors, *added), binding=binding, notes=notes)
            meta.write(self._directory)
            self._add(meta)

    def having_count(self, name: str) -> int:
        """See EngineCollection.having_count."""
        request = edge.CountRequest(exact=True, filter=has_vector(name))
        with self.reading() as shard, in_our_words(f"reading collection {self.name!r}"):
            return shard.read.count(request)

    def _add(self, meta: Meta) -> None:
        self.shard.add(meta.adding, layout(meta.binding))
        # What will stand under them is not indexed yet.
        meta = replace(meta, adding=(), optimised=0)
        meta.write(self._directory)
        self._meta = meta

    @contextmanager
    def writing(self) -> Iterator[EdgeWriter]:
        """See EngineCollection.writing. A running optimisation gives way."""
        with in_our_words(f"writing to collection {self.name!r}"):
            with self._alone():
                writer = EdgeWriter(self.shard)
                yield writer
            # Outside, so that the next writer need not wait for the disk.
            writer.shard.sync(writer.ticket)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._counting:
            self._waiting += 1
        try:
            with self._write:
                yield
        finally:
            with self._counting:
                self._waiting -= 1

    def optimise(self, least: int) -> bool:
        """Build the indexes of what was written since the last time, if that is at least `least` points.

        Works on a copy in a child process while this one reads on, and puts the copy in the shard's place
        when it is done; a writer ends it. Returns whether it came to its end. Needs the collection's size in
        free disk. A copy, because Edge cannot load a shard whose optimisation was killed after vectors were
        added to it (0.9).
        """
        if self.shard.points - self._meta.optimised < least or not self._write.acquire(blocking=False):
            return False
        self._optimising = True
        try:
            with in_our_words(f"optimising collection {self.name!r}"):
                return self._optimise_copy()
        finally:
            self._optimising = False
            self._write.release()

    def _optimise_copy(self) -> bool:
        number = self._meta.shard + 1
        copy = _shard_path(self._directory, number)
        if not self._build(copy):
            return False
        fresh = Shard.load(copy)
        meta = replace(self._meta, shard=number, optimised=fresh.points)
        meta.write(self._directory)
        standing = self.shard
        with standing.lock:
            self.shard, self._meta = fresh, meta
        standing.close()
        _discard(self._directory, keep=number)
        return True

    def _build(self, copy: Path) -> bool:
        done = False
        try:
            self.shard.flush()
            shutil.copytree(self.shard.directory, copy, copy_function=self._copy_unless_wanted)
            done = self._run(copy)
            if done:
                for path in (*copy.rglob("*"), copy, copy.parent):
                    sync_path(path)
        except _WriterWaits:
            pass
        finally:
            if not done:
                shutil.rmtree(copy, ignore_errors=True)
        return done

    def _run(self, copy: Path) -> bool:
        command = [sys.executable, "-P", optimise.__file__, str(copy)]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            while True:
                try:
                    _, said = child.communicate(timeout=_GIVE_WAY)
                    break
                except subprocess.TimeoutExpired:
                    if self._waiting:
                        return False
        finally:
            child.kill()
            child.communicate()
        if child.returncode:
            raise StoreUnavailable(
                f"optimising collection {self.name!r} failed ({child.returncode}): {said.strip()[-500:]}"
            )
        return True

    def _copy_unless_wanted(self, source: str, target: str) -> None:
        if self._waiting:
            raise _WriterWaits
        shutil.copyfile(source, target)

    @contextmanager
    def reading(self) -> Iterator[Shard]:
        """See EngineCollection.reading: the shard, held in place."""
        while True:
            shard = self.shard
            with shard.lock.first:
                if shard is self.shard:
                    yield shard
                    return

    def close(self) -> None:
        """Wait for the writer, flush, and let go."""
        with self._alone(), in_our_words(f"closing collection {self.name!r}"):
            self.shard.close()


class EdgeWriter:
    """Writes to a shard, in slices; `ticket` is what `Shard.sync` wants."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.ticket = 0

    def upsert(self, points: Sequence[Point], started: int) -> None:
        """See Writer.upsert."""
        self._write(points, lambda some: upsert_operations(some, started))

    def update_vectors(self, points: Sequence[Point], started: int) -> None:
        """See Writer.update_vectors."""
        self._write(points, lambda some: vector_operations(some, started))

    def update_payload(self, points: Sequence[Point], started: int) -> None:
        """See Writer.update_payload."""
        self._write(points, lambda some: payload_operations(some, started))

    def raise_started(self, ids: Sequence[edge.PointId], started: int) -> None:
        """Have points say that they were written by a job of that start."""
        self.ticket = self.shard.write([raise_operation(ids, started)], 0)

    def delete(self, ids: Sequence[str], sources: Sequence[str], started: int) -> None:
        """See Writer.delete."""
        self.ticket = self.shard.write([delete_operation(ids, sources, started)], 0)

    def _write(
        self,
        points: Sequence[Point],
        operations: Callable[[Sequence[Point]], Iterable[edge.UpdateOperation]],
    ) -> None:
        for some, size in slices(points):
            self.ticket = self.shard.write(operations(some), size)


class _WriterWaits(Exception):
    """A writer wants the collection."""


def _vectors(found: object) -> dict[str, Vector]:
    """Named vectors as Edge returns them; something else where none were asked for."""
    return {name: from_edge(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _shard_path(directory: Path, number: int) -> Path:
    return directory / f"shard-{number}"


def _discard(directory: Path, keep: int | None) -> None:
    """Remove the shards that do not count: half made, or replaced."""
    for path in directory.glob("shard-*"):
        if keep is None or path != _shard_path(directory, keep):
            shutil.rmtree(path)
