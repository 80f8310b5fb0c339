"""How a Qdrant server refuses: each kind of refusal with its HTTP status, gRPC code and beginning."""

from __future__ import annotations

from enum import Enum

from grpc import StatusCode


class Kind(Enum):
    """HTTP status, gRPC code and the beginning of the message."""

    BAD_INPUT = (400, StatusCode.INVALID_ARGUMENT, "Wrong input: ")
    BAD_REQUEST = (400, StatusCode.INVALID_ARGUMENT, "")
    INVALID = (422, StatusCode.INVALID_ARGUMENT, "Validation error in body: ")
    UNAUTHORIZED = (401, StatusCode.UNAUTHENTICATED, "")
    FORBIDDEN = (403, StatusCode.PERMISSION_DENIED, "Forbidden: ")
    LOCKED = (403, StatusCode.FAILED_PRECONDITION, "Storage locked: ")
    NOT_FOUND = (404, StatusCode.NOT_FOUND, "Not found: ")
    UNKNOWN_CALL = (404, StatusCode.UNIMPLEMENTED, "")
    TIMEOUT = (408, StatusCode.DEADLINE_EXCEEDED, "Timeout: ")
    ALREADY_EXISTS = (409, StatusCode.ALREADY_EXISTS, "Wrong input: ")
    #: Of a proxy in front of a server.
    TOO_LARGE = (413, StatusCode.RESOURCE_EXHAUSTED, "")
    RATE_LIMITED = (429, StatusCode.RESOURCE_EXHAUSTED, "Rate limiting exceeded: ")
    SERVICE = (500, StatusCode.INTERNAL, "Service internal error: ")
    UNAVAILABLE = (503, StatusCode.UNAVAILABLE, "Shard temporarily unavailable: ")
    INSUFFICIENT_STORAGE = (507, StatusCode.RESOURCE_EXHAUSTED, "Insufficient storage: ")

    def __init__(self, http: int, code: StatusCode, prefix: str) -> None:
        self.http = http
        self.code = code
        self.prefix = prefix


class Refused(Exception):
    """A request that is answered with an error; `retry_after` in seconds."""

    def __init__(self, kind: Kind, description: str, retry_after: int | None = None) -> None:
        super().__init__(kind.prefix + description)
        self.kind = kind
        self.retry_after = retry_after


class Cut(Exception):
    """A request whose connection is closed without an answer."""


def of_engine(error: BaseException) -> Refused:
    """What a server says of an error of its engine (Edge raises bare Exceptions with the engine's words)."""
    said = str(error)
    if isinstance(error, OSError):
        return Refused(Kind.SERVICE, f"File IO error: {said}")
    if isinstance(error, (TypeError, ValueError, OverflowError)):
        return Refused(Kind.BAD_INPUT, said)
    if said.startswith("No point with id "):
        return Refused(Kind.NOT_FOUND, f"{said} found")
    if said.startswith("Service runtime error: "):
        return Refused(Kind.SERVICE, said.removeprefix("Service runtime error: "))
    if said.startswith(("Inconsistent storage", "Out of memory", "Operation cancelled")):
        return Refused(Kind.SERVICE, said)
    for what in ("sparse", "multi"):
        if said == f"Wrong usage of {what} vectors":
            return Refused(Kind.BAD_INPUT, f"Conversion between {what} and regular vectors failed")
    return Refused(Kind.BAD_INPUT, said)
