"""The connection to a Qdrant server: made from settings, its version known, its calls repeated and named."""

from __future__ import annotations

import logging
import re
import ssl
import threading
import warnings
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from qdrant_client import QdrantClient

from registry.errors import StoreRefused, StoreUnavailable, StoreUnfit, UsageError
from registry.progress import beat
from registry.settings import Settings
from store.server_errors import verdict

log = logging.getLogger(__name__)

#: Conditional upserts, and a place for the plan beside a collection, came with this version. An older server
#: would ignore the condition without a word.
MINIMUM_VERSION = (1, 16)
#: First wait before a repetition; doubles each time. Seconds.
BACKOFF = 0.2
#: A server that asks for more than this is left to the batch's own backoff. Seconds.
MOST_WAIT = 5.0
#: Shortest and longest pause between two attempts to connect. Milliseconds.
RECONNECT_MS = (200, 5_000)

Version = tuple[int, int]
_T = TypeVar("_T")


class CollectionMissing(StoreUnavailable):
    """The collection, or a vector of it, is not on the server."""


class CollectionExists(StoreUnavailable):
    """The collection, or a vector of it, is on the server already."""


class RequestTooLarge(StoreRefused):
    """The server, or a proxy in front of it, takes no request of this size."""


class Connection:
    """A client for any thread, and the way every call takes. Connects on first use."""

    def __init__(self, settings: Settings) -> None:
        parts = urlsplit(settings.qdrant_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                "V5_QDRANT_URL must be like http://localhost:6333 or https://qdrant.example.com:6333"
            )
        if parts.username or parts.password or parts.query:
            raise UsageError(
                "V5_QDRANT_URL must hold neither a user nor a key; give the key as V5_QDRANT_API_KEY"
            )
        self.url = settings.qdrant_url
        self.grpc = settings.qdrant_grpc
        self._settings = settings
        #: Largest request; lowered where the server or a proxy turns out to take less.
        self.request_bytes = settings.qdrant_request_bytes
        self._version: Version | None = None
        self._closed = threading.Event()
        self.client = _client(settings)

    @property
    def version(self) -> Version:
        """The server's version, asked for once. Raises StoreUnfit if it is too old."""
        if self._version is None:
            said = self.call("asking for its version", lambda: self.client.info().version)
            found = re.match(r"(\d+)\.(\d+)", said)
            if found is None:
                raise StoreUnfit(f"{self.url} says it is version {said!r}; is it a Qdrant server?")
            version = (int(found[1]), int(found[2]))
            if version < MINIMUM_VERSION:
                raise StoreUnfit(
                    f"the Qdrant server at {self.url} is version {said}; 1.16 is needed at least, since an "
                    "older one writes over newer points (it ignores conditional upserts). Upgrade it"
                )
            self._version = version
        return self._version

    def call(self, what: str, work: Callable[[], _T]) -> _T:
        """Do one call, repeating it while the server is away or busy; `what` begins the error's message.

        Raises StoreUnavailable and its children above, StoreUnfit, StoreRefused, RequestTooLarge.
        """
        tries = 0
        while True:
            beat()
            try:
                return work()
            except Exception as error:
                found = verdict(error)
                if found is None:
                    raise
                where = f"{what}: Qdrant at {self.url}"
                match found.meaning:
                    case "refused":
                        raise StoreRefused(f"{where} refuses: {found.said}") from error
                    case "unfit":
                        raise StoreUnfit(f"{where} does not let us: {found.said}; {self._mend()}") from error
                    case "missing":
                        raise CollectionMissing(f"{where}: {found.said}") from error
                    case "exists":
                        raise CollectionExists(f"{where}: {found.said}") from error
                    case "too large":
                        raise RequestTooLarge(
                            f"{where} takes no request of that size: {found.said}"
                        ) from error
                wait = max(found.wait, BACKOFF * 2**tries)
                if tries >= self._settings.qdrant_retries or wait > MOST_WAIT or self._closed.is_set():
                    later = f"; it asks to wait {found.wait:.0f} s" if found.wait else ""
                    raise StoreUnavailable(f"{where} is away or busy: {found.said}{later}") from error
            tries += 1
            self._closed.wait(wait)

    def close(self) -> None:
        """Let go; calls that wait end."""
        self._closed.set()
        self.client.close()

    def _mend(self) -> str:
        if self._settings.qdrant_api_key.get_secret_value():
            return "is V5_QDRANT_API_KEY right, and may it write?"
        return "set V5_QDRANT_API_KEY if the server wants a key"


def _client(settings: Settings) -> QdrantClient:
    rest: dict[str, Any] = {}
    # gRPC's own pauses between two attempts to connect grow to two minutes.
    options: dict[str, Any] = {
        "grpc.initial_reconnect_backoff_ms": RECONNECT_MS[0],
        "grpc.min_reconnect_backoff_ms": RECONNECT_MS[0],
        "grpc.max_reconnect_backoff_ms": RECONNECT_MS[1],
    }
    if settings.qdrant_ca is not None:
        try:
            rest["verify"] = ssl.create_default_context(cafile=settings.qdrant_ca)
            options["root_certificates"] = settings.qdrant_ca.read_bytes()
        except OSError as error:  # ssl.SSLError is one
            raise UsageError(f"V5_QDRANT_CA {settings.qdrant_ca} cannot be used: {error}") from None
    key = settings.qdrant_api_key.get_secret_value()
    if key and settings.qdrant_url.startswith("http:"):
        log.warning("V5_QDRANT_URL is http: the API key travels unencrypted; use https outside one machine")
    parts = urlsplit(settings.qdrant_url)
    with warnings.catch_warnings():
        # The client warns of what was just logged.
        warnings.filterwarnings("ignore", message="Api key is used with an insecure connection")
        return QdrantClient(
            url=settings.qdrant_url,
            # A URL without a port means the scheme's own, as everywhere else, not 6333.
            port=parts.port or {"http": 80, "https": 443}[parts.scheme],
            grpc_port=settings.qdrant_grpc_port,
            prefer_grpc=settings.qdrant_grpc,
            api_key=key or None,
            timeout=max(1, round(settings.qdrant_seconds)),
            grpc_options=options,
            # We look ourselves, and stop where the client would only warn.
            check_compatibility=False,
            **rest,
        )
