"""The store on a Qdrant server; several aggregators may use one."""

from __future__ import annotations

import threading

from registry.errors import StoreRefused, StoreUnavailable, UsageError
from registry.plan import Plan
from registry.settings import Settings
from store.base import CollectionInfo
from store.checked import CheckedStore
from store.server_collection import ServerCollection, wire_of
from store.server_connection import Connection


class ServerStore(CheckedStore):
    """Collections on the server of V5_QDRANT_URL. Any thread may call any method.

    Connects on first use, so that a fleet may start before its Qdrant. Raises UsageError if the settings
    cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._connection = Connection(settings)
        self._wire = wire_of(self._connection, settings.qdrant_seconds)
        self._known: dict[str, ServerCollection] = {}
        self._forgotten = 0
        self._lock = threading.Lock()
        self._closed = False

    def connect(self) -> None:
        """See Store.connect."""
        self._require_open()
        # The version alone may be told without a key.
        _ = self._connection.version
        self._connection.call("listing the collections", self._connection.client.get_collections)

    def open(self, collection: str, plan: Plan) -> CollectionInfo:
        """See Store.open."""
        self._forget(collection)
        return super().open(collection, plan)

    def describe(self, collection: str) -> CollectionInfo:
        """See Store.describe."""
        self._forget(collection)
        return super().describe(collection)

    def plan(self, collection: str) -> Plan:
        """See Store.plan."""
        self._forget(collection)
        return super().plan(collection)

    def collections(self) -> list[str]:
        """See Store.collections; those of others on the same server are left out."""
        self._require_open()
        listed = self._connection.call(
            "listing the collections", self._connection.client.get_collections
        ).collections
        return sorted(one.name for one in listed if self._is_ours(one.name))

    def maintain(self, collection: str) -> bool:  # noqa: ARG002
        """See Store.maintain; a server builds its indexes by itself."""
        return False

    def close(self) -> None:
        """See Store.close. May be called twice."""
        if not self._closed:
            self._closed = True
            self._connection.close()

    def _require_room(self) -> None:
        """A server says by itself when its disk is full."""

    def _begin_indexing(self, name: str) -> None:
        found = self._find(name)
        if found is not None:
            found.begin_indexing()

    def _is_ours(self, name: str) -> bool:
        try:
            return self._find(name) is not None
        except (UsageError, StoreRefused):
            return False

    def _find(self, name: str) -> ServerCollection | None:
        self._require_open()
        with self._lock:
            known, forgotten = self._known.get(name), self._forgotten
        if known is not None:
            return known
        # No condition is worth anything on a server that ignores it.
        _ = self._connection.version
        found = ServerCollection.find(name, self._connection, self._wire)
        if found is not None:
            with self._lock:
                # Threads share one; and what was read before it was to be forgotten is not kept.
                if self._forgotten == forgotten:
                    return self._known.setdefault(name, found)
        return found

    def _create(self, name: str, plan: Plan) -> ServerCollection:
        made = ServerCollection.create(name, self._connection, self._wire, plan)
        with self._lock:
            self._known[name] = made
        return made

    def _forget(self, name: str) -> None:
        with self._lock:
            self._known.pop(name, None)
            self._forgotten += 1

    def _require_open(self) -> None:
        if self._closed:
            raise StoreUnavailable(f"the store at {self._connection.url} is closed")
