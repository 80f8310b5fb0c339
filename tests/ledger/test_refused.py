"""Refused messages: counted, the last ones kept, and forgotten a week later."""

from __future__ import annotations

import pytest

from ledger.ledger import Ledger
from ledger.refused import KEPT_SECONDS, MOST
from registry.envelopes import Kind, RefusedMessage
from registry.errors import LedgerFull


def message(n: int, kind: Kind = "not JSON") -> RefusedMessage:
    return RefusedMessage("embed.x", kind, f"why {n}", n, r"\x1b", 1.5)


def test_counts_go_on_where_the_list_ends(ledger: Ledger) -> None:
    assert (ledger.refused.counts(), ledger.refused.last()) == ({}, [])
    ledger.refused.add(message(0, "compressed"), "w@h:1")
    for n in range(1, MOST + 2):
        ledger.refused.add(message(n), "w@h:2")
    assert list(ledger.refused.counts().items()) == [("not JSON", MOST + 1), ("compressed", 1)]
    last = ledger.refused.last()
    assert len(last) == MOST
    assert last[0] == (message(MOST + 1), "w@h:2")
    assert last[-1] == (message(2), "w@h:2")
    for key in ("v5:refused", "v5:refused:counts"):
        assert KEPT_SECONDS - 60 < ledger.redis.ttl(key) <= KEPT_SECONDS


def test_a_full_server_refuses_both_or_neither(ledger: Ledger) -> None:
    ledger.refused.add(message(1), "w@h:1")
    ledger.redis.config_set("maxmemory", 100)
    with pytest.raises(LedgerFull):
        ledger.refused.add(message(2), "w@h:1")
    assert ledger.refused.counts() == {"not JSON": 1}
    assert len(ledger.refused.last()) == 1
