"""The gate of a worker: it serves only while it gives the vectors that its spaces were filled with."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from ledger.goldens import Goldens
from registry.errors import CodecError, GoldenMismatch
from registry.frames import CHECKSUM
from registry.models import OutputKind
from worker.encoders.base import Encoder
from worker.encoders.goldens import Golden, agreement, measure, pack_golden, unpack_golden

log = logging.getLogger(__name__)

#: What is damaged on its way is read again; what is damaged in its place stays so.
READS = 3


class GoldenGate:
    """Holds an encoder against the golden vectors of its spaces: before it joins, whenever other goldens
    stand in the ledger, and every so many batches. Any thread may call it; what was found wrong stays wrong.
    """

    def __init__(
        self,
        encoder: Encoder,
        kinds: Sequence[OutputKind],
        goldens: Goldens,
        device_lock: AbstractContextManager[Any],
        every: int,
    ) -> None:
        """`every`: batches between two checks."""
        self._encoder = encoder
        self._kinds = tuple(kinds)
        self._goldens = goldens
        self._device = device_lock
        self._every = every
        self._fingerprints = {kind: encoder.space(kind).fingerprint for kind in kinds}
        self._passed: dict[OutputKind, bytes] = {}
        self._wrong = ""
        self._batches = 0
        self._lock = threading.Lock()

    def passed(self) -> dict[str, str]:
        """Checksums (hex) of the goldens that the encoder was last found to give, by output."""
        return {kind: digest.hex() for kind, digest in self._passed.items()}

    def enter(self) -> None:
        """Before work: make sure that the goldens which stand in the ledger now are those that were passed.

        A space without goldens gets the encoder's own, if the encoder gives the same vectors alone as in a
        batch. Raises GoldenMismatch, and InfrastructureError if device or ledger are away.
        """
        standing = self._goldens.digests([self._fingerprints[kind] for kind in self._kinds])
        # Without the lock: a query is not to wait for the passes of a check that follows some batch.
        self._require_right()
        if standing == [self._passed.get(kind) for kind in self._kinds]:
            return
        with self._lock:
            self._require_right()
            if standing != [self._passed.get(kind) for kind in self._kinds]:
                self._check()

    def leave(self) -> None:
        """After a batch and before its vectors are recorded: every so often, look again.

        Raises GoldenMismatch, for all batches that end while the encoder is looked at, too.
        """
        with self._lock:
            self._require_right()
            self._batches += 1
            if self._batches % self._every == 0:
                self._check()

    def _require_right(self) -> None:
        if self._wrong:
            raise GoldenMismatch(self._wrong)

    def _check(self) -> None:
        try:
            given = measure(self._encoder, self._kinds, self._device)
            for kind in self._kinds:
                blob, golden = self._standing(kind, given[kind])
                self._compare(kind, golden, given[kind])
                self._passed[kind] = blob[CHECKSUM]
        except GoldenMismatch as error:
            self._wrong = str(error)
            raise

    def _standing(self, kind: OutputKind, given: Golden) -> tuple[bytes, Golden]:
        """The space's goldens, as bytes and read; the encoder's own where there are none, or none that can be
        read: the collections keep theirs, and their word is the last."""
        why: CodecError | None = None
        for _ in range(READS):
            blob = self._goldens.get(self._fingerprints[kind]) or self._offer(kind, given)
            try:
                return blob, unpack_golden(blob)
            except CodecError as error:
                why = error
        log.warning(
            "%s: its golden vectors are recorded anew, for they are damaged: %s", self._where(kind), why
        )
        blob = self._offer(kind, given, anew=True)
        return blob, unpack_golden(blob)

    def _offer(self, kind: OutputKind, given: Golden, *, anew: bool = False) -> bytes:
        """Record the encoder's own as the space's; returns what stands then, which may be another's. `anew`:
        in the place of what stands."""
        alone = measure(self._encoder, [kind], self._device, alone=True)[kind]
        found = agreement(given, alone)
        if found.problem:
            raise GoldenMismatch(
                f"{self._where(kind)} gives other vectors to a text alone than in a batch: {found.problem}; "
                "restart the worker, or prove the model with `v5 models prove`"
            )
        log.info("%s: recording the golden vectors of a space that has none", self._where(kind))
        blob = pack_golden(given)
        if anew:
            self._goldens.replace(self._fingerprints[kind], blob)
            return blob
        return self._goldens.offer(self._fingerprints[kind], blob)

    def _compare(self, kind: OutputKind, golden: Golden, given: Golden) -> None:
        found = agreement(golden, given)
        if found.problem:
            raise GoldenMismatch(
                f"{self._where(kind)} does not give the golden vectors of its space: {found.problem}. Its "
                "weights or its device are not those that the space was filled with; compare with `v5 models "
                f"check {self._encoder.model}` and `v5 models prove {self._encoder.model}`"
            )

    def _where(self, kind: OutputKind) -> str:
        device = self._encoder.numerics.device
        return f"{self._encoder.model} on {device}, {kind} space {self._fingerprints[kind]}"
