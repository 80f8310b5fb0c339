"""Who may do what: API keys, checked as a server does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.qdrant_standin.errors import Kind, Refused

#: Calls that need no key.
OPEN = frozenset({"Qdrant.HealthCheck"})


@dataclass(frozen=True)
class Access:
    """The keys of a server; without any, everything is allowed."""

    api_key: str | None = None
    read_only_api_key: str | None = None

    def check(self, operation: str, writes: bool, header: Callable[[str], str | None]) -> None:
        """Raises Refused unless the headers carry a key that allows it."""
        if operation in OPEN or not (self.api_key or self.read_only_api_key):
            return
        key = header("api-key")
        if key is None:
            bearer = header("authorization") or ""
            key = bearer.removeprefix("Bearer ") if bearer.startswith("Bearer ") else None
        if key is None:
            raise Refused(Kind.UNAUTHORIZED, "Must provide an API key or an Authorization bearer token")
        if self.api_key and key == self.api_key:
            return
        if not self.read_only_api_key or key != self.read_only_api_key:
            raise Refused(Kind.UNAUTHORIZED, "Invalid API key or JWT")
        if writes:
            raise Refused(Kind.FORBIDDEN, "Global manage access is required")
