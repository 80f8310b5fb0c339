"""Goldens in the ledger: the first to offer decides, and a look costs no blob."""

from __future__ import annotations

import numpy as np

from ledger.ledger import Ledger
from registry.codecs import Dense, Part, pack_part
from registry.frames import CHECKSUM


def blob(value: float) -> bytes:
    vectors = Dense(np.full((1, 4), value, np.float16))
    return pack_part(Part({"dense": vectors}, np.array([3]), np.array([1])))


def test_the_first_to_offer_decides(ledger: Ledger) -> None:
    mine, other = blob(1.0), blob(0.5)
    assert ledger.goldens.get("a" * 16) is None
    assert ledger.goldens.offer("a" * 16, mine) == mine
    assert ledger.goldens.offer("a" * 16, other) == mine
    assert ledger.goldens.get("a" * 16) == mine
    ledger.goldens.replace("a" * 16, other)
    assert ledger.goldens.get("a" * 16) == other


def test_digests_are_the_blobs_own_checksums(ledger: Ledger) -> None:
    ledger.goldens.offer("a" * 16, blob(1.0))
    ledger.goldens.offer("b" * 16, blob(0.5))
    found = ledger.goldens.digests(["b" * 16, "c" * 16, "a" * 16])
    assert found == [blob(0.5)[CHECKSUM], b"", blob(1.0)[CHECKSUM]]
    assert len(set(found)) == 3
