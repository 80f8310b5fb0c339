"""The REST side: Qdrant's routes, with bodies read by the models of its own client."""

from __future__ import annotations

import json
import re
import socketserver
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError
from qdrant_client.http import models as rest

from tests.qdrant_standin.engine import Engine
from tests.qdrant_standin.errors import Cut, Kind, Refused
from tests.qdrant_standin.gate import Gate, Request

#: Bytes of a body that a server takes by default.
MAX_BODY = 32 << 20
#: What orchestrators ask, without a key and without being a request.
PROBES = {
    "/healthz": "healthz check passed",
    "/livez": "healthz check passed",
    "/readyz": "all shards are ready",
}


@dataclass(frozen=True)
class Asked:
    """A call as its handler sees it: the names in its path, its body, and whether it waits for writes."""

    engine: Engine
    path: dict[str, str]
    body: Any
    wait: bool

    @property
    def collection(self) -> str:
        return self.path["collection"]


@dataclass(frozen=True)
class Route:
    method: str
    path: re.Pattern[str]
    operation: str
    body: TypeAdapter[Any] | None
    handle: Callable[[Asked], Any]


def _scroll(asked: Asked) -> dict[str, Any]:
    points, following = asked.engine.scroll(asked.collection, asked.body)
    return {"points": points, "next_page_offset": following}


def _names(asked: Asked) -> dict[str, Any]:
    return {"collections": [{"name": name} for name in asked.engine.names()]}


def _exists(asked: Asked) -> dict[str, Any]:
    return {"exists": asked.engine.exists(asked.collection)}


def _create(asked: Asked) -> bool:
    return asked.engine.create(asked.collection, asked.body)


def _alter(asked: Asked) -> bool:
    return asked.engine.alter(asked.collection, asked.body)


def _unindex(asked: Asked) -> Any:
    return asked.engine.delete_index(asked.collection, asked.path["field"], asked.wait)


def _update_batch(asked: Asked) -> Any:
    return asked.engine.update(asked.collection, asked.body.operations, asked.wait)


def _query_batch(asked: Asked) -> Any:
    return [_hits(asked, one) for one in asked.body.searches]


def _index(asked: Asked) -> Any:
    body = asked.body
    return asked.engine.create_index(asked.collection, body.field_name, body.field_schema, asked.wait)


def _create_vector(asked: Asked) -> Any:
    return asked.engine.create_vector(asked.collection, asked.path["vector"], asked.body, asked.wait)


def _delete_vector(asked: Asked) -> Any:
    return asked.engine.delete_vector(asked.collection, asked.path["vector"], asked.wait)


def _count(asked: Asked) -> dict[str, Any]:
    return {"count": asked.engine.count(asked.collection, asked.body)}


def _hits(asked: Asked, query: rest.QueryRequest) -> dict[str, Any]:
    return {"points": asked.engine.query(asked.collection, query)}


def _update(operation: type[BaseModel]) -> Callable[[Asked], Any]:
    """A call of its own, as that operation of a batch: a model with one field, the call's body."""
    (field,) = operation.model_fields

    def handle(asked: Asked) -> Any:
        return asked.engine.update(asked.collection, [operation(**{field: asked.body})], asked.wait)[0]

    return handle


_C = "/collections/{collection}"
_P = _C + "/points"
#: Method, path, operation, model of the body, handler.
ROUTES = [
    Route(
        method,
        re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", path)),
        operation,
        None if body is None else TypeAdapter(body),  # type: ignore[arg-type]
        handle,
    )
    for method, path, operation, body, handle in (
        ("GET", "/collections", "Collections.List", None, _names),
        ("GET", _C, "Collections.Get", None, lambda a: a.engine.info(a.collection)),
        ("GET", _C + "/exists", "Collections.CollectionExists", None, _exists),
        ("PUT", _C, "Collections.Create", rest.CreateCollection, _create),
        ("PATCH", _C, "Collections.Update", rest.UpdateCollection, _alter),
        ("DELETE", _C, "Collections.Delete", None, lambda a: a.engine.delete(a.collection)),
        ("PUT", _C + "/index", "Points.CreateFieldIndex", rest.CreateFieldIndex, _index),
        ("DELETE", _C + "/index/{field}", "Points.DeleteFieldIndex", None, _unindex),
        ("PUT", _C + "/vectors/{vector}", "Points.CreateVectorName", rest.VectorNameConfig, _create_vector),
        ("DELETE", _C + "/vectors/{vector}", "Points.DeleteVectorName", None, _delete_vector),
        ("POST", _P, "Points.Get", rest.PointRequest, lambda a: a.engine.retrieve(a.collection, a.body)),
        ("POST", _P + "/batch", "Points.UpdateBatch", rest.UpdateOperations, _update_batch),
        ("POST", _P + "/scroll", "Points.Scroll", rest.ScrollRequest, _scroll),
        ("POST", _P + "/count", "Points.Count", rest.CountRequest, _count),
        ("POST", _P + "/query", "Points.Query", rest.QueryRequest, lambda a: _hits(a, a.body)),
        ("POST", _P + "/query/batch", "Points.QueryBatch", rest.QueryRequestBatch, _query_batch),
        *(
            (method, _P + path, f"Points.{name}", body, _update(operation))
            for method, path, name, body, operation in (
                ("PUT", "", "Upsert", rest.PointInsertOperations, rest.UpsertOperation),
                ("POST", "/delete", "Delete", rest.PointsSelector, rest.DeleteOperation),
                ("PUT", "/vectors", "UpdateVectors", rest.UpdateVectors, rest.UpdateVectorsOperation),
                ("POST", "/vectors/delete", "DeleteVectors", rest.DeleteVectors, rest.DeleteVectorsOperation),
                ("POST", "/payload", "SetPayload", rest.SetPayload, rest.SetPayloadOperation),
                ("PUT", "/payload", "OverwritePayload", rest.SetPayload, rest.OverwritePayloadOperation),
                ("POST", "/payload/delete", "DeletePayload", rest.DeletePayload, rest.DeletePayloadOperation),
                ("POST", "/payload/clear", "ClearPayload", rest.PointsSelector, rest.ClearPayloadOperation),
            )
        ),
    )
]


class RestServer:
    """Serves an engine on a Unix socket."""

    def __init__(
        self,
        engine: Engine,
        gate: Gate,
        socket_path: Path,
        cut: Callable[[], None],
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        handler = type("Handler", (_Handler,), {"engine": engine, "gate": gate, "cut": staticmethod(cut)})
        self._server = _Server(str(socket_path), handler)  # type: ignore[arg-type]
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            # The handshake is left to the connection's own thread.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    address_family = socketserver.UnixStreamServer.address_family
    #: Its default of 5 refuses a burst of connections.
    request_queue_size = 128

    def server_bind(self) -> None:
        # HTTPServer's own looks up a host's name.
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, *_: object) -> None:
        """Connections that clients or tests break are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine
    gate: Gate
    cut: Callable[[], None]

    def do_GET(self) -> None:
        if self.command == "GET" and self.path in PROBES:
            self._send(200, "text/plain; charset=utf-8", PROBES[self.path].encode())
            return
        began = time.monotonic()
        try:
            result, whole = self._answer()
        except Refused as refused:
            self._refuse(refused, began)
        except Cut:
            self.close_connection = True
            self.cut()
        else:
            answer = result if whole else {"result": result, "status": "ok", "time": time.monotonic() - began}
            self._send(200, "application/json", json.dumps(answer, default=_plain).encode())

    do_PUT = do_POST = do_PATCH = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        """Requests are recorded by the gate."""

    def _answer(self) -> tuple[Any, bool]:
        """The result of a call, and whether it is the whole answer."""
        url = urlsplit(self.path)
        call = f"{self.command} {url.path}"
        nbytes = int(self.headers.get("Content-Length") or 0)
        raw = self._body(nbytes)
        if call == "GET /":
            request = Request("Qdrant.HealthCheck", call, None, nbytes, None)
            about = {"title": "qdrant - vector search engine", "version": self.engine.version, "commit": ""}
            return self.gate.enter(request, self.headers.get, lambda: about), True
        for route in ROUTES:
            match = route.path.fullmatch(url.path.rstrip("/"))
            if match is None or route.method != self.command:
                continue
            path = {name: unquote(value) for name, value in match.groupdict().items()}
            wait = parse_qs(url.query).get("wait") == ["true"]
            body, wrong = self._read(route, raw, nbytes)
            request = Request(route.operation, call, path.get("collection"), nbytes, body)
            asked = Asked(self.engine, path, body, wait)
            return self.gate.enter(request, self.headers.get, partial(_work, route, asked, wrong)), False
        raise Refused(Kind.UNKNOWN_CALL, "")

    def _body(self, nbytes: int) -> bytes:
        """The body, or nothing of one that is too large; read to its end, so that the answer is heard."""
        if nbytes <= MAX_BODY:
            return self.rfile.read(nbytes)
        while nbytes > 0 and (some := self.rfile.read(min(nbytes, 1 << 20))):
            nbytes -= len(some)
        return b""

    def _read(self, route: Route, raw: bytes, nbytes: int) -> tuple[Any, Refused | None]:
        """A body as the route's model, or as it came and why it is not that."""
        if nbytes > MAX_BODY:
            prefix = "" if self.engine.knows((1, 19)) else "Payload error: "
            said = f"{prefix}JSON payload ({nbytes} bytes) is larger than allowed (limit: {MAX_BODY} bytes)."
            return raw, Refused(Kind.BAD_REQUEST, said)
        if route.body is None:
            return None, None
        try:
            return route.body.validate_json(raw), None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            said = f"Format error in JSON body: {where}: {first['msg']}"
            return raw, Refused(Kind.BAD_REQUEST, said)

    def _refuse(self, refused: Refused, began: float) -> None:
        headers = {} if refused.retry_after is None else {"Retry-After": str(refused.retry_after)}
        if refused.kind is Kind.UNKNOWN_CALL:
            self._send(404, "text/plain", str(refused).encode())
        elif refused.kind is Kind.UNAUTHORIZED:
            self._send(401, "text/plain; charset=utf-8", str(refused).encode())
        else:
            said = {"status": {"error": str(refused)}, "time": time.monotonic() - began}
            self._send(refused.kind.http, "application/json", json.dumps(said).encode(), headers)

    def _send(self, status: int, kind: str, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fields = {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _work(route: Route, asked: Asked, wrong: Refused | None) -> Any:
    if wrong is not None:
        raise wrong
    return route.handle(asked)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(type(value).__name__)
