"""Golden vectors by space: what every worker of a space must give for the same few texts."""

from __future__ import annotations

from collections.abc import Sequence

from ledger.server import Redis, named_errors
from registry.frames import CHECKSUM
from registry.names import golden_key


class Goldens:
    """One blob per vector space, kept until another takes its place; spaces are few, and blobs small."""

    def __init__(self, client: Redis) -> None:
        self._redis = client

    def digests(self, fingerprints: Sequence[str]) -> list[bytes]:
        """The checksum of each space's blob, empty where there is none; read without the blobs."""
        with named_errors():
            pipe = self._redis.pipeline(transaction=False)
            for fingerprint in fingerprints:
                pipe.getrange(golden_key(fingerprint), CHECKSUM.start, CHECKSUM.stop - 1)
            return [bytes(found) for found in pipe.execute()]

    def get(self, fingerprint: str) -> bytes | None:
        """A space's blob, None if nobody recorded one."""
        with named_errors():
            found: bytes | None = self._redis.get(golden_key(fingerprint))
        return found

    def offer(self, fingerprint: str, blob: bytes) -> bytes:
        """Record a blob if the space has none; returns the one that stands then: the first wins."""
        with named_errors():
            standing: bytes | None = self._redis.set(golden_key(fingerprint), blob, nx=True, get=True)
        return blob if standing is None else standing

    def replace(self, fingerprint: str, blob: bytes) -> None:
        """Put a blob in the place of whatever stood; workers of the space hold themselves against it next."""
        with named_errors():
            self._redis.set(golden_key(fingerprint), blob)
