"""What a Qdrant server's refusals and a broken connection mean, whichever of its protocols they came by."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Literal

import grpc
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ApiException, ResponseHandlingException, UnexpectedResponse

#: `again`: nothing is said against the request, which may pass later. `unfit`: not until somebody mends the
#: server or the settings. `refused`: never. `missing`, `exists`: the collection, or a vector of it. `too
#: large`: the request.
Meaning = Literal["again", "unfit", "refused", "missing", "exists", "too large"]

_BY_CODE: dict[grpc.StatusCode, Meaning] = {
    grpc.StatusCode.INVALID_ARGUMENT: "refused",
    grpc.StatusCode.NOT_FOUND: "missing",
    grpc.StatusCode.ALREADY_EXISTS: "exists",
    grpc.StatusCode.UNAUTHENTICATED: "unfit",
    grpc.StatusCode.PERMISSION_DENIED: "unfit",
    grpc.StatusCode.UNIMPLEMENTED: "unfit",
    # Writing is locked, for example.
    grpc.StatusCode.FAILED_PRECONDITION: "unfit",
}
_BY_STATUS: dict[int, Meaning] = {
    400: "refused",
    401: "unfit",
    403: "unfit",
    404: "missing",
    405: "unfit",
    409: "exists",
    413: "too large",
    422: "refused",
}
#: Words about a request over a limit: of gRPC itself (either side's), and of a Qdrant server by REST.
_TOO_LARGE = ("larger than max", "message length too large", "larger than allowed")
#: Words about a vector that the collection does not have: another one was made under its name.
_NO_VECTOR = "Not existing vector name"
#: Longest part of a server's answer that is repeated. Characters.
_SAID = 500


@dataclass(frozen=True)
class Verdict:
    """What an error means, what was said, and how long the server asks to be left alone. Seconds."""

    meaning: Meaning
    said: str
    wait: float = 0.0


def verdict(error: Exception) -> Verdict | None:
    """What an error of the client means; None if it is not one of the server's or the connection's."""
    match error:
        case ResourceExhaustedResponse():
            return Verdict("again", str(error), float(error.retry_after_s))
        case grpc.RpcError() if isinstance(error, grpc.Call):
            return _of_grpc(error)
        case UnexpectedResponse():
            return _of_rest(error)
        case ResponseHandlingException():
            source = error.source
            return Verdict("again", _short(f"{type(source).__name__}: {source}"))
        case ApiException() | grpc.RpcError() | OSError():
            return Verdict("again", _short(f"{type(error).__name__}: {error}"))
    return None


def _of_grpc(call: grpc.Call) -> Verdict:
    code, said = call.code(), _short(call.details() or "")
    return Verdict(_by_words(said) or _BY_CODE.get(code, "again"), f"{said} ({code.name})")


def _of_rest(error: UnexpectedResponse) -> Verdict:
    status = error.status_code or 0
    text = error.content.decode(errors="replace")
    # A proxy in front answers in its own words.
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["status"]["error"]
    said = _short(str(text))
    return Verdict(_by_words(said) or _BY_STATUS.get(status, "again"), f"{said} (HTTP {status})")


def _by_words(said: str) -> Meaning | None:
    """What only the words tell, where the code is that of a bad request."""
    if any(words in said for words in _TOO_LARGE):
        return "too large"
    return "missing" if _NO_VECTOR in said else None


def _short(said: str) -> str:
    line = " ".join(said.split())
    return line if len(line) <= _SAID else line[: _SAID - 1] + "…"
