"""The store that the settings name."""

from __future__ import annotations

from registry.errors import UsageError
from registry.settings import Settings
from store.base import Store


def open_store(settings: Settings) -> Store:
    """The embedded store in the data directory.

    Raises UsageError if a Qdrant server is asked for, StoreUnavailable if another process has the directory.
    """
    if settings.qdrant_url:
        raise UsageError(
            f"V5_QDRANT_URL is {settings.qdrant_url}, but this version stores in its data directory only; "
            f"unset V5_QDRANT_URL to use the embedded store in {settings.data_dir / 'store'}"
        )
    try:
        # Only the process that opens the store needs its engine.
        from store.edge import EdgeStore
    except ModuleNotFoundError as error:
        if error.name != "qdrant_edge":
            raise
        raise UsageError(
            "the embedded store needs qdrant-edge-py: install v5-embedding-fleet[embedded]"
        ) from None
    return EdgeStore(settings.data_dir / "store")
