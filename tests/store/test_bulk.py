"""Bulk loads: indexing is put off, noted before, and restored after the last of them, whoever dies when."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from registry.plan import Plan
from store import edge, edge_collection
from store.base import Store
from store.bulk import BulkLoad
from store.edge import EdgeStore
from store.edge_collection import EdgeCollection
from store.server import ServerStore
from store.server_collection import DEFAULT_THRESHOLD, ServerCollection
from tests.qdrant_standin import Standin
from tests.store.conftest import MakePoint, server_settings
from tests.store.test_migrate import Died, dying, reopened

#: Kilobytes. Ten points of 384 float32 values are more.
FORMER = 10
COUNT = 12


def threshold(store: Store) -> int | None:
    return store._find("c").index_state().threshold  # type: ignore[attr-defined, no-any-return]


def wants(*jobs: str) -> Callable[[str], bool]:
    return lambda job: job in jobs


@pytest.fixture
def former(store: Store, narrow: Plan, make_point: MakePoint) -> int | None:
    """A collection with some points, and its indexing threshold: on a server, one nobody has by default."""
    store.open("c", narrow)
    store.upsert("c", [make_point(narrow, n) for n in range(COUNT)], 1000)
    if isinstance(store, EdgeStore):
        return None
    store._find("c").set_threshold(FORMER)  # type: ignore[attr-defined]
    assert threshold(store) == FORMER
    return FORMER


def deferred(store: Store) -> int | None:
    return None if isinstance(store, EdgeStore) else 0


def test_indexing_waits_for_the_last_of_several_loads_and_is_as_before(
    store: Store, former: int | None, narrow: Plan, make_point: MakePoint
) -> None:
    store.note("c", "other", 1)
    store.begin_bulk("c", "a", 5)
    store.begin_bulk("c", "b", 7)
    store.begin_bulk("c", "a", 9)
    assert threshold(store) == deferred(store)
    found = store.indexing("c", begin=True)
    assert found.loads == (BulkLoad("a", 5, former), BulkLoad("b", 7, former))
    store.upsert("c", [make_point(narrow, COUNT)], 1000)
    vector = make_point(narrow, COUNT).vectors
    assert store.query("c", vector, 1)[0].id == make_point(narrow, COUNT).id
    assert isinstance(store, ServerStore) or not store.maintain("c", least=1)  # type: ignore[call-arg]

    assert [load.job for load in store.settle_bulk("c", wants("b"))] == ["b"]
    assert threshold(store) == deferred(store)
    assert list(store.settle_bulk("c", wants("b"))) == store.settle_bulk("c", wants("a", "b"))

    for _ in range(2):
        assert store.settle_bulk("c", wants("a")) == []
        assert threshold(store) == former
        assert store.notes("c") == {"other": 1}
    assert isinstance(store, ServerStore) or store.maintain("c", least=1)  # type: ignore[call-arg]
    found = store.indexing("c", begin=True)
    assert (found.loads, found.vectors) == ((), COUNT + 1)


def test_a_load_that_dies_anywhere_is_mended_by_the_next_look(
    store: Store, former: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two loads that overlap, and every step between: what is put off is noted, and restored by a look."""
    owner = EdgeCollection if isinstance(store, EdgeStore) else ServerCollection
    steps: list[tuple[type, str]] = [(owner, "note"), (owner, "set_threshold")]
    at = 0
    while True:
        at += 1
        with dying(monkeypatch, steps, at) as done:
            try:
                store.begin_bulk("c", "a", 1)
                store.begin_bulk("c", "b", 2)
                store.settle_bulk("c", wants("b"))
                store.settle_bulk("c", wants())
                break
            except Died:
                pass
        store = reopened(store)
        noted = store.indexing("c", begin=False).loads
        assert {load.former for load in noted} <= {former}
        assert noted or threshold(store) == former
        assert store.settle_bulk("c", wants()) == []
        assert (threshold(store), store.notes("c")) == (former, {})
    assert at > 6, done
    store.close()


def test_a_collection_that_nobody_loads_costs_no_write(
    standin: Standin, narrow: Plan, make_point: MakePoint
) -> None:
    store = ServerStore(server_settings(standin))
    store.open("c", narrow)
    standin.requests.clear()
    assert store.settle_bulk("c", wants()) == []
    assert [request.operation for request in standin.requests] == ["Collections.Get"]
    store.close()


def test_of_two_aggregators_each_ends_what_the_other_began(standin: Standin, narrow: Plan) -> None:
    one, other = ServerStore(server_settings(standin)), ServerStore(server_settings(standin))
    one.open("c", narrow)
    one._find("c").set_threshold(FORMER)  # type: ignore[union-attr]
    one.begin_bulk("c", "a", 1)
    other.begin_bulk("c", "b", 2)
    assert threshold(one) == 0
    other.settle_bulk("c", wants("b"))
    assert threshold(one) == 0
    one.settle_bulk("c", wants())
    assert (threshold(other), other.notes("c")) == (FORMER, {})
    one.close()
    other.close()


def test_who_sleeps_while_its_load_begins_and_ends_leaves_indexing_on(
    standin: Standin, narrow: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper, awake = ServerStore(server_settings(standin)), ServerStore(server_settings(standin))
    sleeper.open("c", narrow)
    sleeper._find("c").set_threshold(FORMER)  # type: ignore[union-attr]
    real = ServerCollection.set_threshold

    def late(self: ServerCollection, kilobytes: int | None) -> None:
        monkeypatch.setattr(ServerCollection, "set_threshold", real)
        # Noted, and not yet put off: the job ends, and another aggregator sees to it.
        awake.settle_bulk("c", wants())
        assert awake.notes("c") == {}
        real(self, kilobytes)

    monkeypatch.setattr(ServerCollection, "set_threshold", late)
    sleeper.begin_bulk("c", "a", 1)
    assert (threshold(awake), awake.notes("c")) == (FORMER, {})
    sleeper.close()
    awake.close()


def test_what_a_person_set_meanwhile_stays(standin: Standin, narrow: Plan) -> None:
    store = ServerStore(server_settings(standin))
    store.open("c", narrow)
    store.begin_bulk("c", "a", 1)
    store._find("c").set_threshold(77)  # type: ignore[union-attr]
    store.settle_bulk("c", wants())
    assert (threshold(store), store.notes("c")) == (77, {})
    # Off before, off afterwards; and a default that cannot be told is set as what it is.
    for before, after in ((0, 0), (None, DEFAULT_THRESHOLD)):
        store._find("c").set_threshold(0)  # type: ignore[union-attr]
        store.note("c", "bulk/b", {"since": 1, "former": before})
        store.settle_bulk("c", wants())
        assert threshold(store) == after
    store.close()


def test_a_server_builds_what_was_put_off_and_is_urged_after_its_restart(
    tmp_path: Path, narrow: Plan, make_point: MakePoint
) -> None:
    standin = Standin(tmp_path / "standin").start()
    store = ServerStore(server_settings(standin))
    store.open("c", narrow)
    store._find("c").set_threshold(FORMER)  # type: ignore[union-attr]
    store.begin_bulk("c", "a", 1)
    store.upsert("c", [make_point(narrow, n) for n in range(COUNT)], 1000)
    found = store.indexing("c", begin=True)
    assert (found.status, found.indexed, found.vectors) == ("green", 0, COUNT)
    assert store.settle_bulk("c", wants()) == []
    standin.stop()
    standin.start()
    assert store.indexing("c", begin=False).status == "grey"
    assert store.indexing("c", begin=True).status == "grey"
    assert store.indexing("c", begin=False).status == "yellow"
    found = store.indexing("c", begin=False)
    assert (found.status, found.indexed, found.vectors) == ("green", COUNT, COUNT)
    store.close()
    standin.stop()


def test_the_embedded_store_builds_at_once_when_asked(
    tmp_path: Path,
    narrow: Plan,
    make_point: MakePoint,
    monkeypatch: pytest.MonkeyPatch,
    eventually: Callable[..., Any],
) -> None:
    for module in (edge, edge_collection):
        monkeypatch.setattr(module, "OPTIMISE_POINTS", COUNT)
    store = EdgeStore(tmp_path / "store")
    store.open("c", narrow)
    store.begin_bulk("c", "a", 1)
    store.upsert("c", [make_point(narrow, n) for n in range(COUNT)], 1000)
    assert store.indexing("c", begin=True).status == "grey"
    assert not store.maintain("c")
    store.settle_bulk("c", wants())
    assert store.indexing("c", begin=False).status == "grey"
    assert store.indexing("c", begin=True).status == "grey"
    eventually(lambda: store.indexing("c", begin=True).status == "green", 100)
    store.close()
