"""Requests with an answer: arguments in one blob, the answer pushed on a list that expires."""

from __future__ import annotations

from ledger.blobs import REQUEST_TTL, answer_key, request_key
from ledger.server import Redis, named_errors


class Requests:
    """Both sides of a request; a repeated one may be answered twice, which harms nobody."""

    def __init__(self, client: Redis) -> None:
        self._redis = client

    def ask(self, identity: str, arguments: bytes, seconds: int) -> None:
        """Leave the arguments where the fleet finds them, for so many seconds."""
        with named_errors():
            self._redis.set(request_key(identity), arguments, ex=seconds)

    def arguments(self, identity: str) -> bytes | None:
        """The arguments, or None if they have expired or were answered and taken."""
        with named_errors():
            found: bytes | None = self._redis.get(request_key(identity))
        return found

    def answer(self, identity: str, answer: bytes) -> None:
        """Leave the answer for whoever waits."""
        with named_errors():
            pipe = self._redis.pipeline(transaction=False)
            pipe.rpush(answer_key(identity), answer)
            pipe.expire(answer_key(identity), REQUEST_TTL)
            pipe.execute()

    def wait(self, identity: str, seconds: float) -> bytes | None:
        """The answer, or None if there is none within `seconds` (which are under the socket's timeout)."""
        with named_errors():
            found = self._redis.blpop([answer_key(identity)], timeout=max(seconds, 0.01))
        return found[1] if found else None

    def forget(self, identity: str) -> None:
        """Delete arguments and answer."""
        with named_errors():
            self._redis.unlink(request_key(identity), answer_key(identity))
