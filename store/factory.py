"""The store that the settings name."""

from __future__ import annotations

from registry.errors import UsageError
from registry.settings import Settings
from store.base import Store


def open_store(settings: Settings) -> Store:
    """The Qdrant server of V5_QDRANT_URL, else the embedded store in the data directory.

    Raises UsageError (the settings cannot be used, or what the store needs is not installed) and
    StoreUnavailable (another process has the directory); whether a server answers shows in `Store.connect`.
    """
    # Only the process that opens the store needs its engine.
    if settings.qdrant_url:
        try:
            from store.server import ServerStore
        except ModuleNotFoundError as error:
            if error.name not in ("qdrant_client", "grpc"):
                raise
            raise UsageError(
                "a Qdrant server needs qdrant-client: install v5-embedding-fleet[server]"
            ) from None
        return ServerStore(settings)
    try:
        from store.edge import EdgeStore
    except ModuleNotFoundError as error:
        if error.name != "qdrant_edge":
            raise
        raise UsageError(
            "the embedded store needs qdrant-edge-py: install v5-embedding-fleet[embedded]"
        ) from None
    return EdgeStore(settings.data_dir / "store")
