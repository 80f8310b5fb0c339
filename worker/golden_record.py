"""The goldens of a collection's spaces, kept with the collection: whoever filled it decides who may go on."""

from __future__ import annotations

import base64
import contextlib
import logging
import threading
from collections.abc import Iterable

from ledger.goldens import Goldens
from registry.codecs import Part
from registry.errors import CodecError, LedgerFull
from registry.frames import CHECKSUM
from registry.plan import Plan
from store.base import Store
from worker.encoders.goldens import agreement, unpack_golden

log = logging.getLogger(__name__)

#: A space's goldens are noted with the collection under this and its fingerprint, in base64.
NOTE = "golden/"


def notes_of(fingerprints: Iterable[str]) -> list[str]:
    """The keys under which the goldens of spaces are noted."""
    return [NOTE + fingerprint for fingerprint in fingerprints]


class GoldenRecords:
    """The goldens of collections and of the ledger, held against each other; any thread may call it."""

    def __init__(self, store: Store, goldens: Goldens) -> None:
        self._store = store
        self._goldens = goldens
        #: Checksums of the goldens that vectors of a collection's space may have been made under.
        self._good: dict[tuple[str, str], set[bytes]] = {}
        self._lock = threading.Lock()

    def settle(self, collection: str, plan: Plan) -> None:
        """Take the ledger's goldens of the plan's spaces to the collection where it has none. Where it has,
        and the ledger has none or others, the collection's win: workers of other numerics leave then."""
        spaces = {plan.space(model, kind).fingerprint for model in plan.models for kind in plan.kinds(model)}
        with self._lock:
            notes = self._store.notes(collection)
            for fingerprint in sorted(spaces):
                self._settle(collection, fingerprint, notes.get(NOTE + fingerprint))

    def refuses(self, collection: str, plan: Plan, model: str, part: Part) -> str:
        """Why a part must not be written: its worker was held against other goldens than this collection's,
        or against none. Empty if it may."""
        claimed = part.notes.get("goldens") or {}
        for kind in plan.kinds(model):
            fingerprint = plan.space(model, kind).fingerprint
            if not self._admits(collection, fingerprint, claimed.get(kind, "")):
                # A worker may have been the first to record them since.
                self.settle(collection, plan)
                if self._known(collection, fingerprint) and not self._admits(
                    collection, fingerprint, claimed.get(kind, "")
                ):
                    return f"its worker was held against other golden {kind} vectors than the collection's"
        return ""

    def forget(self, collection: str) -> None:
        """Look again next time: the collection may have been made anew."""
        with self._lock:
            for key in [key for key in self._good if key[0] == collection]:
                del self._good[key]

    def _admits(self, collection: str, fingerprint: str, digest: str) -> bool:
        return digest in {known.hex() for known in self._known(collection, fingerprint)}

    def _known(self, collection: str, fingerprint: str) -> set[bytes]:
        with self._lock:
            return set(self._good.get((collection, fingerprint), ()))

    def _settle(self, collection: str, fingerprint: str, noted: str | None) -> None:
        mine = None if noted is None else base64.b64decode(noted)
        theirs = self._goldens.get(fingerprint)
        if mine is None:
            if theirs is None:
                return
            self._store.note(collection, NOTE + fingerprint, base64.b64encode(theirs).decode())
            mine = theirs
        elif theirs is None:
            theirs = self._offer(fingerprint, mine)
        good = self._good.setdefault((collection, fingerprint), set())
        good.add(mine[CHECKSUM])
        if mine == theirs:
            return
        problem = _problem(mine, theirs)
        if problem:
            log.error(
                "space %s: the golden vectors in the ledger are not those that collection %r was filled with "
                "(%s); the collection's stand now, and workers of the others leave",
                fingerprint,
                collection,
                problem,
            )
            good.discard(theirs[CHECKSUM])
            self._replace(fingerprint, mine)
        else:
            good.add(theirs[CHECKSUM])

    def _offer(self, fingerprint: str, mine: bytes) -> bytes:
        # A full ledger is emptied by writing to the store, which must not wait for room there.
        try:
            return self._goldens.offer(fingerprint, mine)
        except LedgerFull:
            return mine

    def _replace(self, fingerprint: str, mine: bytes) -> None:
        with contextlib.suppress(LedgerFull):
            self._goldens.replace(fingerprint, mine)


def _problem(mine: bytes, theirs: bytes) -> str:
    try:
        return agreement(unpack_golden(mine), unpack_golden(theirs)).problem
    except CodecError as error:
        return str(error)
