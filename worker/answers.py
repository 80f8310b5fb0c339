"""The fleet's side of requests: arguments from a blob, the answer into another, errors as words."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from ledger.alive import Process
from ledger.blobs import REQUEST_TTL
from ledger.ledger import Ledger
from ledger.requests import MOST_TRIES
from registry.errors import CodecError, InfrastructureError, UsageError, V5Error
from registry.frames import pack_json, unpack_json
from registry.messages import Request

log = logging.getLogger(__name__)


class Answers:
    """Answers requests; idempotent, since a caller repeats one that was not answered."""

    def __init__(self, ledger: Ledger, runs_texts: Process | None = None) -> None:
        """`runs_texts`: this process, where a request's texts go through a model and may end it."""
        self._requests = ledger.requests
        self._process = runs_texts

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
            if not self._may_run(request):
                return "busy"
            asked = unpack_json(blob)
            if not isinstance(asked, dict):
                raise CodecError("the arguments of a request are not an object")
            answer = work(asked)
        except V5Error as error:
            answer = _error(error, again=isinstance(error, InfrastructureError))
        except MemoryError as error:
            # Not the arguments' fault where a worker did not say so: it may have memory again in a moment.
            log.warning("a request found no memory: %s", error)
            answer = _error(InfrastructureError("the process that took it is out of memory"), again=True)
        except Exception as error:
            log.exception("a request failed unexpectedly")
            answer = _error(error, again=False)
        try:
            self._requests.answer(request.id, answer, self._process)
        except (V5Error, MemoryError) as error:
            log.warning("could not answer: %s", error or "out of memory")
            return "unanswered"
        return "answered"

    def _may_run(self, request: Request) -> bool:
        """False if others are at it. Raises UsageError if it ended those that were."""
        if self._process is None:
            return True
        seconds = int(request.deadline - time.time()) + REQUEST_TTL
        trial = self._requests.begin(request.id, self._process, seconds)
        if trial == "spent":
            raise UsageError(
                f"this request ended the {MOST_TRIES} processes that took it (killed, crashed, hung, or "
                "their device failed) and is not tried again; leave out the text that does that"
            )
        return trial == "free"


def _error(error: BaseException, *, again: bool) -> bytes:
    return pack_json({"error": type(error).__name__, "message": str(error), "again": again})
