"""Orphans: what crashes at the wrong moment leave in Redis, and nobody will ever look at again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ledger.ledger import Ledger
from ledger.scripts import Scripts
from ledger.server import Redis, named_errors
from ledger.servers import Server
from registry.names import PREFIX

#: `blob`: of no open batch; `batch`: of no unfinished job; `open`: a job counts a batch that is gone; `step`:
#: of a batch that has ended; `alive`: a process that is gone; `active`, `adopt`, `hold`: of a job that has
#: ended; `letters`: of a job that is not known any more.
Kind = Literal["blob", "batch", "open", "step", "alive", "active", "adopt", "hold", "letters"]
#: A blob is written before its batch is opened, and its batch may be closed before it is deleted; no
#: producer or worker takes this long between the two. Seconds.
GRACE = 600.0
#: Keys asked for by one SCAN.
_SCAN = 1000


@dataclass(frozen=True)
class Orphan:
    """One key, or one member of a key, that is nobody's."""

    kind: Kind
    name: str
    #: The member, for kinds that are one.
    inner: str = ""
    #: What a blob takes in memory, 0 for the rest.
    bytes: int = 0


class Orphans:
    """Finds orphans, and removes them one by one; each is judged again in the script that removes it."""

    def __init__(self, ledger: Ledger, grace: float = GRACE) -> None:
        """Batches and blobs younger than `grace` seconds are left alone."""
        self._ledger = ledger
        self._redis = ledger.redis
        self._run = ledger.scripts.run
        self._grace_ms = int(grace * 1000)

    def find(self) -> Iterator[Orphan]:
        """All that are there; changes nothing. Batches come first, for blobs and steps hang on them."""
        for kind, name, inner in self._candidates():
            if self._judge(kind, name, inner, remove=False):
                yield Orphan(kind, name, inner)
        for server in self._ledger.servers.blobs:
            scripts = Scripts(server.client)
            for key in _keys(server.client, "blob:"):
                if (size := self._blob(server, scripts, key, remove=False)) is not None:
                    yield Orphan("blob", key, "", size)

    def remove(self, orphan: Orphan) -> bool:
        """Remove an orphan, if it still is one."""
        if orphan.kind != "blob":
            return self._judge(orphan.kind, orphan.name, orphan.inner, remove=True)
        found = False
        for server in self._ledger.servers.blobs:
            found |= self._blob(server, Scripts(server.client), orphan.name, remove=True) is not None
        return found

    def unaccounted(self, *, correct: bool) -> int:
        """Bytes of the in-flight budget that no open batch accounts for; negative if too few are reserved."""
        return int(self._run("recount", int(correct)))

    def _judge(self, kind: Kind, name: str, inner: str, *, remove: bool) -> bool:
        return bool(self._run("orphan", kind, name, inner, self._grace_ms, int(remove)))

    def _blob(self, server: Server, scripts: Scripts, key: str, *, remove: bool) -> int | None:
        """The size of a batch's blob that is an orphan; None for any other."""
        batch = key.removeprefix(f"{PREFIX}blob:").split(":", 1)[0]
        # Requests and answers end by themselves within minutes.
        if batch in ("request", "answer"):
            return None
        with named_errors():
            if self._redis.exists(f"{PREFIX}batch:{batch}"):
                return None
        with named_errors(str(server)):
            size = int(scripts.run("orphan_blob", key, self._grace_ms, int(remove)))
        return None if size < 0 else size

    def _candidates(self) -> Iterator[tuple[Kind, str, str]]:
        for key in _keys(self._redis, "batch:"):
            yield "batch", key.removeprefix(f"{PREFIX}batch:"), ""
        for key in _keys(self._redis, "job:"):
            job, _, rest = key.removeprefix(f"{PREFIX}job:").partition(":")
            if rest == "producer":
                yield "hold", job, ""
            elif rest == "open":
                with named_errors():
                    members = list(self._redis.sscan_iter(key, count=_SCAN))
                yield from (("open", job, member.decode()) for member in members)
        for key in _keys(self._redis, "steps:"):
            with named_errors():
                rows = list(self._redis.zscan_iter(key, count=_SCAN))
            yield from (("step", key.removeprefix(f"{PREFIX}steps:"), name.decode()) for name, _ in rows)
        with named_errors():
            processes = self._redis.zrange(f"{PREFIX}alive", 0, -1)
        yield from (("alive", process.decode(), "") for process in processes)
        for key in _keys(self._redis, "active:"):
            with named_errors():
                jobs = self._redis.hkeys(key)
            yield from (("active", key.removeprefix(f"{PREFIX}active:"), job.decode()) for job in jobs)
        for key in _keys(self._redis, "adopt:"):
            yield "adopt", key.removeprefix(f"{PREFIX}adopt:"), ""
        for key in _keys(self._redis, "dead:"):
            yield "letters", key.removeprefix(f"{PREFIX}dead:"), ""


def _keys(client: Redis, prefix: str) -> Iterator[str]:
    with named_errors():
        for key in client.scan_iter(match=f"{PREFIX}{prefix}*", count=_SCAN):
            yield key.decode()
