"""One Edge shard on disk: made, opened, extended, written and made durable."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path

import qdrant_edge as edge

from registry.progress import Turn
from store.edge_words import config, creation
from store.layout import PAYLOAD_INDEXES, Layout
from store.meta import sync_path

#: Bytes of vectors written between two flushes. Between them the log alone carries what was written, and is
#: replayed after a crash; a flush writes every storage and holds the interpreter (40 ms to 0.4 s).
FLUSH_BYTES = 64 << 20

_INDEXES = {"keyword": edge.PayloadSchemaType.Keyword, "integer": edge.PayloadSchemaType.Integer}


class Shard:
    """An open shard. Its calls may come from any thread; `lock` makes several of them one.

    Edge holds the interpreter during every call, so calls never overlap anyway; the lock keeps a shard from
    being replaced between two, and lets a reader in before the next write.
    """

    def __init__(self, directory: Path, opened: edge.EdgeShard) -> None:
        self.directory = directory
        self.lock = Turn()
        self._edge = opened
        self._syncing = threading.Lock()
        self._written = 0
        self._synced = 0
        self._unflushed = 0

    @classmethod
    def create(cls, directory: Path, layout: Layout) -> Shard:
        """Make an empty shard in a directory that does not exist."""
        directory.mkdir()
        shard = cls(directory, edge.EdgeShard.create(str(directory), config(layout)))
        # Before the first point, so that every segment is born with them.
        for path, schema in PAYLOAD_INDEXES.items():
            shard._edge.update(edge.UpdateOperation.create_field_index(path, _INDEXES[schema]))
        shard.flush()
        sync_path(directory)
        return shard

    @classmethod
    def load(cls, directory: Path) -> Shard:
        """Open a shard, replaying its log."""
        return cls(directory, edge.EdgeShard.load(str(directory)))

    def add(self, names: Iterable[str], layout: Layout) -> None:
        """Add the named vectors; `layout` is the whole that results. What stands under them goes."""
        with self.lock:
            for vector in layout.vectors:
                if vector.name in names:
                    # There may be one of that name: of another space, or left by an attempt that died.
                    self._edge.update(edge.UpdateOperation.delete_vector_name(vector.name))
                    self._edge.update(creation(vector))
            # The operation cannot say what the configuration can: no graph, on disk.
            self._edge.close()
            self._edge = edge.EdgeShard.load(str(self.directory), config(layout))
            self.flush()

    @property
    def read(self) -> edge.EdgeShard:
        """Edge's own handle, for reading; hold `lock.first`."""
        return self._edge

    @property
    def points(self) -> int:
        """How many points stand."""
        with self.lock.first:
            return self._edge.info().points_count

    def write(self, operations: Iterable[edge.UpdateOperation], nbytes: int) -> int:
        """Apply operations that carry about that many bytes; safe from `kill -9` when this returns.

        Returns the ticket with which `sync` makes them safe from a power cut, too.
        """
        ready = list(operations)
        with self.lock:
            for operation in ready:
                self._edge.update(operation)
            self._written += 1
            self._unflushed += nbytes
            return self._written

    def sync(self, ticket: int) -> None:
        """Have everything up to that ticket on disk when this returns; threads share one sync.

        Edge writes its log through a memory map and never syncs it. An fsync of the log's files costs 7 ms
        per batch without the interpreter, a flush six times that with it.
        """
        with self._syncing:
            if self._synced >= ticket:
                return
            with self.lock:
                reached = self._written
                log = self.directory / "wal"
                # Opened under the lock: a write may rename them.
                handles = [os.open(path, os.O_RDONLY) for path in (*log.iterdir(), log)]
            try:
                for handle in handles:
                    os.fsync(handle)
            finally:
                for handle in handles:
                    os.close(handle)
            self._synced = reached
            if self._unflushed >= FLUSH_BYTES:
                self.flush()

    def flush(self) -> None:
        """Have everything on disk outside the log, which is cut."""
        with self.lock:
            self._edge.flush()
            self._unflushed = 0

    def close(self) -> None:
        """Flush and let go of the files; do not hold `lock.first`."""
        with self._syncing, self.lock:
            self._edge.flush()
            self._edge.close()
            self._synced = self._written
