"""Messages that were refused: counted by kind, the last of them kept to be looked at."""

from __future__ import annotations

import json
from dataclasses import asdict

from ledger.server import Redis, connect, named_errors
from registry.envelopes import RefusedMessage
from registry.names import PREFIX
from registry.redis_address import RedisAddress

_LAST = f"{PREFIX}refused"
_COUNTS = f"{PREFIX}refused:counts"
#: So many are kept.
MOST = 100
#: All is forgotten this long after the last. Seconds.
KEPT_SECONDS = 7 * 86400
#: A consumer waits no longer than this for one to be set aside. Seconds.
PATIENCE = 5.0


class RefusedMessages:
    """What the processes of a fleet did not let in."""

    def __init__(self, address: RedisAddress) -> None:
        # Tried once: a repeated increment would count twice.
        self._redis: Redis = connect(address.url, tries=1, seconds=PATIENCE)

    def add(self, message: RefusedMessage, process: str) -> None:
        """Set a message aside that `process` refused. Raises LedgerFull or LedgerUnavailable."""
        with named_errors():
            pipe = self._redis.pipeline()
            pipe.lpush(_LAST, json.dumps({**asdict(message), "process": process}))
            pipe.ltrim(_LAST, 0, MOST - 1)
            pipe.hincrby(_COUNTS, message.kind, 1)
            for key in (_LAST, _COUNTS):
                pipe.expire(key, KEPT_SECONDS)
            pipe.execute()

    def counts(self) -> dict[str, int]:
        """How many were refused, by kind; the most frequent first."""
        with named_errors():
            found = {kind.decode(): int(count) for kind, count in self._redis.hgetall(_COUNTS).items()}
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def last(self) -> list[tuple[RefusedMessage, str]]:
        """The last ones and the process that refused each, the newest first."""
        with named_errors():
            rows = [json.loads(row) for row in self._redis.lrange(_LAST, 0, -1)]
        return [(RefusedMessage(**row), process) for row in rows for process in [row.pop("process")]]

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()
