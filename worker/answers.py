"""The fleet's side of requests: arguments from a blob, the answer into another, errors as words."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ledger.ledger import Ledger
from registry.codecs import pack_json, unpack_json
from registry.errors import CodecError, InfrastructureError, V5Error
from registry.messages import Request

log = logging.getLogger(__name__)


class Answers:
    """Answers requests; idempotent, since a caller repeats one that was not answered."""

    def __init__(self, ledger: Ledger) -> None:
        self._requests = ledger.requests

    def give(self, arguments: dict[str, Any], work: Callable[[dict[str, Any]], bytes]) -> str:
        """Run `work` on a request's arguments and leave the answer; never raises."""
        try:
            request = Request.read(arguments)
        except CodecError as error:
            log.error("refused a message: %s", error)
            return "refused"
        if time.time() > request.deadline:
            return "too late"
        try:
            blob = self._requests.arguments(request.id)
            if blob is None:
                return "gone"
            asked = unpack_json(blob)
            if not isinstance(asked, dict):
                raise CodecError("the arguments of a request are not an object")
            answer = work(asked)
        except V5Error as error:
            answer = _error(error, again=isinstance(error, InfrastructureError))
        except (Exception, MemoryError) as error:
            log.exception("a request failed unexpectedly")
            answer = _error(error, again=False)
        try:
            self._requests.answer(request.id, answer)
        except V5Error as error:
            log.warning("could not answer: %s", error)
            return "unanswered"
        return "answered"


def _error(error: BaseException, *, again: bool) -> bytes:
    return pack_json({"error": type(error).__name__, "message": str(error), "again": again})
