"""What every request passes: it is recorded, allowed or not, and meets the faults that a test planned."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.qdrant_standin.access import Access
from tests.qdrant_standin.errors import Cut, Kind, Refused

#: Requests kept, and their bytes on the wire; decoded, REST's take many times as much.
REQUESTS_KEPT = 2000
BYTES_KEPT = 64 << 20

_READS = frozenset(
    {
        "Qdrant.HealthCheck",
        "Collections.Get",
        "Collections.List",
        "Collections.CollectionExists",
        "Points.Get",
        "Points.Scroll",
        "Points.Count",
        "Points.Query",
        "Points.QueryBatch",
    }
)
_BY_STATUS = {
    400: Kind.BAD_INPUT,
    401: Kind.UNAUTHORIZED,
    403: Kind.FORBIDDEN,
    404: Kind.NOT_FOUND,
    408: Kind.TIMEOUT,
    409: Kind.ALREADY_EXISTS,
    413: Kind.TOO_LARGE,
    429: Kind.RATE_LIMITED,
    500: Kind.SERVICE,
    503: Kind.UNAVAILABLE,
    507: Kind.INSUFFICIENT_STORAGE,
}


@dataclass(frozen=True)
class Request:
    """A request as it came.

    `operation` is the gRPC service and call ("Points.Upsert"), for REST too; `call` is what was called: the
    gRPC method's path, or the HTTP method and path; `nbytes` the size of the message or body on the wire;
    `message` the protobuf message, the validated REST model, or a body that could not be read as one.
    """

    operation: str
    call: str
    collection: str | None
    nbytes: int
    message: Any

    @property
    def writes(self) -> bool:
        return self.operation not in _READS


Next = int | Callable[[Request], bool]


@dataclass
class Fault:
    """What befalls requests instead of, or (`after`) following, their work; `left` says how many yet."""

    matches: Callable[[Request], bool]
    left: float
    error: Callable[[], Exception] | None = None
    after: bool = False
    seconds: float = 0.0


class Gate:
    """Records requests and lets them through, or not."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self.requests: deque[Request] = deque(maxlen=REQUESTS_KEPT)
        self.read_only = False
        self.disk_full = False
        self._planned: list[Fault] = []
        self._lock = threading.Lock()

    def plan(self, fault: Fault) -> None:
        with self._lock:
            self._planned.append(fault)

    def clear(self) -> None:
        """Forget all that is planned and switched on."""
        with self._lock:
            self._planned.clear()
        self.read_only = self.disk_full = False

    def enter(self, request: Request, header: Callable[[str], str | None], work: Callable[[], Any]) -> Any:
        """Do a request's work, or what was planned instead. Raises Refused or Cut."""
        self._record(request)
        self.access.check(request.operation, request.writes, header)
        fault = self._take(request)
        if fault is not None:
            time.sleep(fault.seconds)
            if fault.error is not None and not fault.after:
                raise fault.error()
        if request.writes and self.read_only:
            raise Refused(Kind.LOCKED, "Write operations are forbidden")
        if self.disk_full and request.writes and request.operation.startswith("Points."):
            raise Refused(
                Kind.SERVICE, "No space left on device: WAL buffer size exceeds available disk space"
            )
        answer = work()
        if fault is not None and fault.error is not None:
            raise fault.error()
        return answer

    def _record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)
            excess = sum(one.nbytes for one in self.requests) - BYTES_KEPT
            while excess > 0 and len(self.requests) > 1:
                excess -= self.requests.popleft().nbytes

    def _take(self, request: Request) -> Fault | None:
        with self._lock:
            for fault in self._planned:
                if fault.left > 0 and fault.matches(request):
                    fault.left -= 1
                    return fault
        return None


def chosen(next: Next, operation: str | None) -> Callable[[Request], bool]:
    """Whether a fault is meant for a request."""

    def matches(request: Request) -> bool:
        return operation in (None, request.operation) and (not callable(next) or next(request))

    return matches


def refusal(status: int, message: str, retry_after: int | None) -> Callable[[], Exception]:
    """Makes the refusal of an HTTP status, which by gRPC has the code that goes with it."""
    kind = _BY_STATUS[status]
    return lambda: Refused(kind, message, retry_after)


def cut() -> Exception:
    return Cut()
