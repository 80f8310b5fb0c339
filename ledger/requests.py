"""Requests with an answer: arguments in one blob, the answer pushed on a list that expires."""

from __future__ import annotations

from typing import Literal

from ledger.alive import Alive, Process
from ledger.blobs import REQUEST_TTL, answer_key, request_key, tries_key
from ledger.server import Redis, named_errors

#: A request that so many processes took and, ended by then, did not answer is not tried again.
MOST_TRIES = 2
#: `free`: to be run; `busy`: enough processes are at it; `spent`: it ended them.
Trial = Literal["free", "busy", "spent"]


class Requests:
    """Both sides of a request; a repeated one may be answered twice, which harms nobody."""

    def __init__(self, client: Redis, alive: Alive) -> None:
        self._redis = client
        self._alive = alive

    def ask(self, identity: str, arguments: bytes, seconds: int) -> None:
        """Leave the arguments where the fleet finds them, for so many seconds."""
        with named_errors():
            self._redis.set(request_key(identity), arguments, ex=seconds)

    def arguments(self, identity: str) -> bytes | None:
        """The arguments, or None if they have expired or were answered and taken."""
        with named_errors():
            found: bytes | None = self._redis.get(request_key(identity))
        return found

    def begin(self, identity: str, process: Process, seconds: int) -> Trial:
        """Note for so many seconds that a process runs a request, if not MOST_TRIES others have noted so."""
        key, mine = tries_key(identity), _attempt(process)
        with named_errors():
            pipe = self._redis.pipeline(transaction=False)
            pipe.sadd(key, mine)
            pipe.expire(key, seconds)
            pipe.smembers(key)
            others = {name.decode() for name in pipe.execute()[-1]} - {mine}
            if len(others) < MOST_TRIES:
                return "free"
            self._redis.srem(key, mine)
        living = {_attempt(other) for other in self._alive.list()}
        return "busy" if others & living else "spent"

    def answer(self, identity: str, answer: bytes, process: Process | None = None) -> None:
        """Leave the answer for whoever waits; `process` is whoever began it."""
        with named_errors():
            pipe = self._redis.pipeline(transaction=False)
            if process is not None:
                pipe.srem(tries_key(identity), _attempt(process))
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
            self._redis.unlink(request_key(identity), answer_key(identity), tries_key(identity))


def _attempt(process: Process) -> str:
    """A process' own name for good: a container that was started again has the old one's host and pid."""
    return f"{process.id} {process.since}"
