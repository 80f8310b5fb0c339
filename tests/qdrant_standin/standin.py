"""The server as tests start, steer and stop it."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from tests.qdrant_standin import gate
from tests.qdrant_standin.access import Access
from tests.qdrant_standin.engine import Engine
from tests.qdrant_standin.gate import Fault, Gate, Next, Request
from tests.qdrant_standin.grpc_server import GrpcServer
from tests.qdrant_standin.rest_server import RestServer
from tests.qdrant_standin.wire import Wire

_EVERY = float("inf")


class Standin:
    """A server over a directory: what was written is there when another is started over it."""

    def __init__(
        self,
        root: Path,
        version: str = "1.18.0",
        api_key: str | None = None,
        read_only_api_key: str | None = None,
        port: int = 0,
        grpc_port: int = 0,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        """`tls` is a certificate's and its key's file, both PEM. A port of 0 is any free one."""
        self.root, self.version = Path(root), version
        self.port, self.grpc_port = port, grpc_port
        self._tls = tls
        self._gate = Gate(Access(api_key, read_only_api_key))

    def start(self) -> Standin:
        """Serve when this returns; after a stop, on the same ports."""
        self._engine = Engine(self.root, self.version)
        self._wires = Wire(self.port), Wire(self.grpc_port)
        self.port, self.grpc_port = (wire.port for wire in self._wires)
        rest, rpc = self._wires
        self._servers = (
            RestServer(self._engine, self._gate, rest.inner, rest.cut, self._tls),
            GrpcServer(self._engine, self._gate, rpc.inner, rpc.cut, self._tls),
        )
        return self

    def stop(self) -> None:
        """Stop serving and write everything to disk."""
        for part in (*self._wires, *self._servers, self._engine):
            part.stop()

    def __enter__(self) -> Standin:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where REST is served."""
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"

    @property
    def requests(self) -> deque[Request]:
        """What came, oldest first; bounded."""
        return self._gate.requests

    @property
    def read_only(self) -> bool:
        """Whether every write is refused as forbidden."""
        return self._gate.read_only

    @read_only.setter
    def read_only(self, value: bool) -> None:
        self._gate.read_only = value

    @property
    def disk_full(self) -> bool:
        """Whether every write of points is refused for want of space."""
        return self._gate.disk_full

    @disk_full.setter
    def disk_full(self, value: bool) -> None:
        self._gate.disk_full = value

    def fail(
        self,
        status: int,
        message: str = "asked for by a test",
        retry_after: int | None = None,
        next: Next = 1,
        times: float = _EVERY,
        operation: str | None = None,
        after: bool = False,
    ) -> None:
        """Refuse requests with an HTTP status or, by gRPC, with the code that goes with it.

        `next` says how many requests (of the operation), or which: of those, up to `times`. `after` applies
        them first.
        """
        self._plan(next, times, operation, error=gate.refusal(status, message, retry_after), after=after)

    def cut(
        self, next: Next = 1, times: float = _EVERY, operation: str | None = None, after: bool = False
    ) -> None:
        """Reset the connections instead of answering: before the request is applied, or after.

        A client of gRPC may lose the call that it makes next, too: it can take a moment to see the reset.
        """
        self._plan(next, times, operation, error=gate.cut, after=after)

    def delay(
        self, seconds: float, next: Next = 1, times: float = _EVERY, operation: str | None = None
    ) -> None:
        """Wait before requests are applied."""
        self._plan(next, times, operation, seconds=seconds)

    def mend(self) -> None:
        """Forget every fault."""
        self._gate.clear()

    def _plan(self, next: Next, times: float, operation: str | None, **fault: Any) -> None:
        left = next if isinstance(next, int) else times
        self._gate.plan(Fault(gate.chosen(next, operation), left, **fault))
