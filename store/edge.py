"""The embedded store: Qdrant's own engine in this process, on this machine's disk."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from registry.errors import StoreUnavailable, V5Error
from registry.plan import Plan
from store.bulk import bulk_loads
from store.checked import CheckedStore
from store.data_directory import MIN_FREE_BYTES, DataDirectory
from store.edge_collection import OPTIMISE_POINTS, EdgeCollection
from store.edge_words import in_our_words

log = logging.getLogger(__name__)


class EdgeStore(CheckedStore):
    """Collections under one directory, which one process may open. Any thread may call any method.

    Raises StoreUnavailable if another process has the directory.
    """

    def __init__(self, root: Path, min_free_bytes: int = MIN_FREE_BYTES) -> None:
        super().__init__()
        self._home = DataDirectory(root, min_free_bytes)
        self._root = self._home.path
        self._open: dict[str, EdgeCollection] = {}
        self._lock = threading.RLock()
        self._closed = False

    def connect(self) -> None:
        """See Store.connect; the directory is this process' since the store was made."""

    def collections(self) -> list[str]:
        """See Store.collections."""
        with self._lock:
            self._require_open()
            with in_our_words(f"listing {self._root}"):
                return EdgeCollection.names(self._root)

    def maintain(self, collection: str, least: int | None = None) -> bool:
        """Build indexes over what was written, if at least `least` points were (default: OPTIMISE_POINTS) and
        no job loads in bulk; returns whether it did.

        For idle times: takes minutes and the collection's size in free disk. Reads go on meanwhile; a write
        ends it, and the next call starts anew. Raises StoreUnavailable.
        """
        found = self._find(collection)
        if found is None or bulk_loads(found.notes):
            return False
        self._home.require_room(sum(path.lstat().st_size for path in found.shard.directory.rglob("*")))
        return found.optimise(OPTIMISE_POINTS if least is None else least)

    def close(self) -> None:
        """See Store.close. May be called twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                for collection in self._open.values():
                    collection.close()
            finally:
                self._open.clear()
                self._home.release()

    def _begin_indexing(self, name: str) -> None:
        threading.Thread(target=self._build, args=(name,), name=f"index {name}", daemon=True).start()

    def _build(self, name: str) -> None:
        try:
            self.maintain(name)
        except V5Error as error:
            log.warning("collection %r: indexing it waits: %s", name, error)
        except Exception:
            log.exception("collection %r: indexing it failed; it is tried again", name)

    def _forget(self, name: str) -> None:
        """Nobody else changes what stands in this process' directory."""

    def _require_room(self) -> None:
        self._home.require_room()

    def _find(self, name: str) -> EdgeCollection | None:
        with self._lock:
            self._require_open()
            if name not in self._open:
                found = EdgeCollection.find(self._root / name)
                if found is None:
                    return None
                self._open[name] = found
            return self._open[name]

    def _create(self, name: str, plan: Plan) -> EdgeCollection:
        with self._lock:
            # Another thread may have been first.
            found = self._find(name)
            if found is None:
                found = self._open[name] = EdgeCollection.create(self._root / name, plan)
            return found

    def _require_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"the store in {self._root} is closed")
