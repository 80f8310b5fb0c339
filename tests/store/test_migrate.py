"""A vector's way into another space: only it goes, whatever dies in between, and spaces never meet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry import spaces
from registry.chunks import chunk_id
from registry.errors import SpaceMismatch, StoreUnavailable, UsageError
from registry.plan import Ensemble, Plan
from store import checked
from store.base import Point, Store
from store.edge import EdgeStore
from store.edge_collection import EdgeCollection
from store.edge_shard import Shard
from store.meta import Meta
from store.server import ServerStore
from store.server_collection import ServerCollection
from tests.qdrant_standin import Standin
from tests.store.conftest import MakePoint, server_settings, vectors_of

CODE, MINI = "jina-code-embeddings-1.5b", "all-miniLM-l6"
#: The code model in one space and in another, with a prefix of it, beside a model that stays.
OLD = Plan(primary=MINI, companions=(CODE,), matryoshka={CODE: (256,)})
NEW = Plan(primary=MINI, companions=(CODE,), matryoshka={CODE: (256,)}, tasks={CODE: "qa"})
CHANGED = {CODE, f"{CODE}-256"}
#: The same, and a fused vector that changes its width.
FUSED = Ensemble(members=(MINI, CODE))
OLD_FUSED = OLD.model_copy(update={"ensemble": FUSED})
NEW_FUSED = NEW.model_copy(update={"ensemble": FUSED.model_copy(update={"method": "concat"})})
COUNT = 12


def unlike(plan: Plan) -> int:
    """A seed's share that tells the plans' vectors apart."""
    return 0 if plan in (OLD, OLD_FUSED) else 1000


@dataclass
class Filled:
    """A collection of the old plan, and how its points are made."""

    store: Store
    make: MakePoint

    def point(self, plan: Plan, n: int, started: int, **fields: Any) -> Point:
        return self.make(plan, n, started=started, seed=n + unlike(plan), **fields)

    def points(self, plan: Plan, started: int, **fields: Any) -> list[Point]:
        return [self.point(plan, n, started, **fields) for n in range(COUNT)]

    def migrate(self, plan: Plan = NEW, started: int = 2000, **fields: Any) -> None:
        while not self.store.migrate("c", plan, started, **fields):
            pass

    def found(self) -> dict[str, Any]:
        return {p.id: p for p in self.store.get("c", [chunk_id(str(n)) for n in range(COUNT)], True)}

    def require_only_new(self, plan: Plan = NEW) -> None:
        """Every changed vector that can be read, found or counted is of the new plan."""
        new = {point.id: point.vectors for point in self.points(plan, 2000)}
        found = self.found()
        for identity, point in found.items():
            for name in point.vectors.keys() & CHANGED:
                np.testing.assert_allclose(point.vectors[name], new[identity][name], atol=1e-6)
        standing = self.store.standing("c", list(found))
        for name in CHANGED:
            have = {identity for identity, point in found.items() if name in point.vectors}
            assert {i for i, s in standing.items() if name in s.vectors} == have
            query = vectors_of(NEW, unlike(NEW))[name]
            assert {hit.id for hit in self.store.query("c", {name: query}, 50)} == have
            fused = self.store.query("c", {name: query, CODE: vectors_of(NEW, 3)[CODE]}, 50)
            assert {hit.id for hit in fused} <= {i for i, s in standing.items() if s.vectors & CHANGED}
            assert self.store.lacking("c", [name]) == {name: self.store.describe("c").points - len(have)}


@pytest.fixture
def filled(store: Store, make_point: MakePoint) -> Filled:
    made = Filled(store, make_point)
    store.open("c", OLD)
    store.upsert("c", made.points(OLD, 1000), 1000)
    return made


def test_exactly_the_changed_vectors_go_and_come_again(filled: Filled) -> None:
    store = filled.store
    store.note("c", "former", 1)
    store.note("c", "other", 2)
    with pytest.raises(SpaceMismatch, match=r"'nl2code' ≠ 'qa'.*--migrate"):
        store.open("c", NEW)
    changes = store.changes("c", NEW)
    assert {change.offered.name for change in changes} == CHANGED
    assert "'nl2code' ≠ 'qa'" in changes[0].difference
    before = filled.found()

    filled.migrate(forget=["former"])

    assert store.changes("c", NEW) == []
    assert store.open("c", NEW).plan.fingerprint == NEW.fingerprint
    assert store.notes("c") == {"other": 2}
    after = filled.found()
    for identity, point in after.items():
        assert point.vectors.keys() == {MINI}
        np.testing.assert_array_equal(point.vectors[MINI], before[identity].vectors[MINI])
        assert point.payload["text"] == before[identity].payload["text"]
        assert point.payload["v5"]["payload_hash"] == before[identity].payload["v5"]["payload_hash"]
    assert store.lacking("c", [MINI, *sorted(CHANGED)]) == {MINI: 0} | dict.fromkeys(CHANGED, COUNT)
    with pytest.raises(SpaceMismatch, match="'qa' ≠ 'nl2code'"):
        store.open("c", OLD)

    some = filled.points(NEW, 2000, only=sorted(CHANGED))[:8]
    assert store.update_vectors("c", some, 2000) == []
    filled.require_only_new()
    assert store.lacking("c", sorted(CHANGED)) == dict.fromkeys(CHANGED, COUNT - 8)
    # Again changes nothing, also by a later job.
    filled.migrate(started=3000)
    filled.require_only_new()
    assert store.lacking("c", sorted(CHANGED)) == dict.fromkeys(CHANGED, COUNT - 8)


def test_a_new_revision_of_a_model_is_another_space(
    store: Store, make_point: MakePoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(primary=MINI, fake=True)
    store.open("c", plan)
    store.upsert("c", [make_point(plan, 1)], 1000)
    monkeypatch.setattr(spaces, "FAKE_REVISION", "fake-2")
    with pytest.raises(SpaceMismatch, match="revision: 'fake-1' ≠ 'fake-2'"):
        store.open("c", plan)
    # What stands is what the vectors were made with, not what this program makes now.
    assert store.binding("c").vectors[MINI].spaces[0].revision == "fake-1"
    assert store.migrate("c", plan, 2000)
    assert store.binding("c").vectors[MINI].spaces[0].revision == "fake-2"
    assert store.lacking("c", [MINI]) == {MINI: 1}


def test_a_vector_of_another_width_is_made_anew(store: Store, make_point: MakePoint) -> None:
    members = {"primary": MINI, "companions": ("qdrant-minilm-onnx",)}
    fused = {"members": (MINI, "qdrant-minilm-onnx")}
    average = Plan(**members, ensemble=Ensemble(**fused))
    concat = Plan(**members, ensemble=Ensemble(**fused, method="concat"))
    store.open("c", average)
    store.upsert("c", [make_point(average, n) for n in range(5)], 1000)
    assert store.migrate("c", concat, 2000)
    point = make_point(concat, 1, started=2000, only=["ensemble"])
    assert point.vectors["ensemble"].shape == (768,)
    store.update_vectors("c", [point], 2000)
    assert [hit.id for hit in store.query("c", {"ensemble": point.vectors["ensemble"]}, 9)] == [point.id]
    assert store.lacking("c", ["ensemble", MINI]) == {"ensemble": 4, MINI: 0}


def test_vectors_that_the_plan_adds_come_with_the_migration(filled: Filled) -> None:
    more = NEW.model_copy(update={"companions": (CODE, "bge-m3")})
    filled.migrate(more)
    assert filled.store.open("c", more).plan.fingerprint == more.fingerprint
    filled.store.upsert("c", [filled.make(more, 1, started=2000)], 2000)


def test_what_the_plan_does_not_have_stays_or_is_named(filled: Filled) -> None:
    alone = Plan(primary=CODE, matryoshka={CODE: (256,)}, tasks={CODE: "qa"})
    # One plan cannot cut the texts of one model and pool those of another.
    for offered in (
        Plan(primary=CODE, matryoshka={CODE: (256,)}, truncate="split-and-pool"),
        Plan(primary=CODE, matryoshka={CODE: (256,)}, fake=True),
    ):
        with pytest.raises(UsageError, match=f"also holds {MINI!r}.*name it in the plan"):
            filled.migrate(offered)
    with pytest.raises(UsageError, match=f"also holds '{CODE}-256'"):
        filled.migrate(Plan(primary=CODE, tasks={CODE: "qa"}))
    assert filled.store.open("c", OLD).plan.fingerprint == OLD.fingerprint
    assert filled.store.lacking("c", sorted(CHANGED)) == dict.fromkeys(CHANGED, 0)
    filled.migrate(alone)
    assert filled.store.plan("c").fingerprint == NEW.fingerprint
    assert filled.store.lacking("c", [MINI]) == {MINI: 0}


def test_there_is_nothing_to_migrate_where_there_is_no_collection(store: Store) -> None:
    assert store.changes("c", NEW) == []
    assert store.migrate("c", NEW, 1000)
    assert store.collections() == []


# --- dying in between


class Died(Exception):
    """The process ended here."""


@contextmanager
def dying(monkeypatch: pytest.MonkeyPatch, steps: list[tuple[type, str]], at: int) -> Iterator[list[str]]:
    """Die before the `at`-th of such steps (from 1); yields what was done."""
    done: list[str] = []
    with monkeypatch.context() as patch:
        for owner, name in steps:
            _count(patch, owner, name, done, at)
        yield done


def _count(patch: pytest.MonkeyPatch, owner: type, name: str, done: list[str], at: int) -> None:
    real = getattr(owner, name)

    def counted(*arguments: Any, **fields: Any) -> Any:
        if len(done) + 1 == at:
            raise Died
        done.append(name)
        return real(*arguments, **fields)

    patch.setattr(owner, name, counted)


def reopened(store: Store) -> Store:
    """Another process' view."""
    if isinstance(store, EdgeStore):
        root = store._root
        store.close()
        return EdgeStore(root)
    assert isinstance(store, ServerStore)
    return ServerStore(store._connection._settings)


STEPS: dict[type, list[tuple[type, str]]] = {
    EdgeStore: [(Meta, "write"), (Shard, "add"), (Shard, "write")],
    ServerStore: [
        (ServerCollection, "_record"),
        (ServerCollection, "_apply"),
        (ServerCollection, "_remove_vector"),
        (ServerCollection, "_create_vector"),
    ],
}


def test_a_migration_that_dies_anywhere_goes_on(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = OLD_FUSED, NEW_FUSED
    monkeypatch.setattr(checked, "MIGRATE_POINTS", 5)
    steps = STEPS[type(filled.store)]
    changed = {vector.name for vector in new.vectors()} - {MINI}
    at = 0
    while True:
        at += 1
        # Back in the old space, whole; each turn later than the one before.
        started = 10_000 * at
        filled.migrate(old, started)
        filled.store.open("c", old)
        filled.store.upsert("c", filled.points(old, started), started)
        with dying(monkeypatch, steps, at) as done:
            try:
                filled.migrate(new, started + 1000)
                break
            except Died:
                pass
        filled.store = reopened(filled.store)
        _require_safe(filled, old, new, started)
        # Another try, by a job that started later.
        filled.migrate(new, started + 2000)
        filled.require_only_new(new)
        assert filled.store.lacking("c", sorted(changed)) == dict.fromkeys(changed, COUNT)
        fresh = filled.points(new, started + 2000, only=sorted(changed))
        assert filled.store.update_vectors("c", fresh, started + 2000) == []
        filled.require_only_new(new)
        assert filled.store.lacking("c", [MINI, *sorted(changed)]) == {MINI: 0} | dict.fromkeys(changed, 0)
    assert at > 5, done
    filled.store.close()


def _require_safe(filled: Filled, old: Plan, new: Plan, started: int) -> None:
    """Whether it was left before it began, on the way, or at its end: the other vector is there, and nothing
    takes the one space for the other."""
    store = filled.store
    query = vectors_of(old, 1)
    assert len(store.query("c", {MINI: query[MINI]}, 50)) == COUNT
    standing = store.binding("c")
    old_space = old.vector(CODE).fingerprint
    if standing.migrating is not None:
        with pytest.raises(SpaceMismatch, match=r"being migrated.*--migrate"):
            store.query("c", {CODE: query[CODE]}, 5)
        for plan in (old, new, Plan(primary=MINI)):
            with pytest.raises(SpaceMismatch, match="being migrated"):
                store.open("c", plan)
        with pytest.raises(SpaceMismatch, match="being migrated"):
            store.upsert("c", filled.points(old, started)[:1], started)
        for point in filled.found().values():
            assert point.vectors.keys() == {MINI}
    elif standing.vectors[CODE].fingerprint == old_space:
        assert store.lacking("c", [CODE]) == {CODE: 0}
    else:
        filled.require_only_new(new)


def test_an_unfinished_migration_can_be_taken_back(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EdgeCollection, "arrive", _dies)
    monkeypatch.setattr(ServerCollection, "arrive", _dies)
    with pytest.raises(Died):
        filled.migrate()
    monkeypatch.undo()
    filled.migrate(OLD, 3000)
    assert filled.store.binding("c").since == dict.fromkeys(CHANGED, 3000)
    assert filled.store.open("c", OLD).plan.fingerprint == OLD.fingerprint
    filled.store.update_vectors("c", filled.points(OLD, 3000), 3000)
    assert filled.store.lacking("c", sorted(CHANGED)) == dict.fromkeys(CHANGED, 0)


def test_of_two_jobs_of_one_plan_that_migrate_both_may_write(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The later one ends what the earlier one began."""
    monkeypatch.setattr(EdgeCollection, "arrive", _dies)
    monkeypatch.setattr(ServerCollection, "arrive", _dies)
    with pytest.raises(Died):
        filled.migrate(started=2000)
    monkeypatch.undo()
    filled.migrate(started=3000)
    for started, some in ((2000, slice(0, 6)), (3000, slice(6, COUNT))):
        points = filled.points(NEW, started, only=sorted(CHANGED))[some]
        assert filled.store.update_vectors("c", points, started) == []
    filled.require_only_new()
    assert filled.store.lacking("c", sorted(CHANGED)) == dict.fromkeys(CHANGED, 0)


def _dies(*_: Any) -> None:
    raise Died


def test_a_migration_works_for_a_while_at_a_time(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "MIGRATE_POINTS", 5)
    assert isinstance(filled.store, checked.CheckedStore)
    turns = 1
    while not filled.store.migrate("c", NEW, 2000, seconds=0.0):
        turns += 1
    assert turns > 2
    assert filled.store.lacking("c", [MINI, CODE]) == {MINI: 0, CODE: COUNT}


def test_new_vectors_of_an_embedded_collection_are_indexed(tmp_path: Path, make_point: MakePoint) -> None:
    store = EdgeStore(tmp_path / "store")
    filled = Filled(store, make_point)
    store.open("c", OLD)
    store.upsert("c", filled.points(OLD, 1000), 1000)
    assert store.maintain("c", least=COUNT)
    assert not store.maintain("c", least=COUNT)
    filled.migrate()
    store.update_vectors("c", filled.points(NEW, 2000, only=sorted(CHANGED)), 2000)
    assert store.maintain("c", least=COUNT)
    filled.require_only_new()
    assert store.lacking("c", [MINI, CODE]) == {MINI: 0, CODE: 0}
    store.close()


# --- those who slept


@pytest.mark.parametrize("write", ["upsert", "update_vectors"])
def test_the_former_space_is_not_written_any_more(filled: Filled, write: str) -> None:
    filled.migrate()
    with pytest.raises(SpaceMismatch, match="by a later job"):
        getattr(filled.store, write)("c", filled.points(OLD, 1000), 1000)
    filled.require_only_new()


@pytest.mark.parametrize("write", ["upsert", "update_vectors"])
@pytest.mark.parametrize("when", ["at once", "after the new vectors"])
def test_a_server_takes_no_former_vector_from_a_process_that_slept(
    standin: Standin, make_point: MakePoint, write: str, when: str
) -> None:
    """It looked at the collection before the migration, and only now gets to its write."""
    awake, sleeper = (Filled(ServerStore(server_settings(standin)), make_point) for _ in range(2))
    awake.store.open("c", OLD)
    awake.store.upsert("c", awake.points(OLD, 1000)[:8], 1000)
    sleeper.store.open("c", OLD)
    awake.migrate()
    awake.store.open("c", NEW)
    if when != "at once":
        awake.store.update_vectors("c", awake.points(NEW, 2000, only=sorted(CHANGED))[:8], 2000)
    before = awake.found()

    # Eight points stand; four never did, or were removed.
    getattr(sleeper.store, write)("c", sleeper.points(OLD, 1000), 1000)

    awake.require_only_new()
    if when == "at once":
        # Nor is it there to be hidden, where a point stood.
        held = ServerCollection.having(_unaware(sleeper.store), list(before), CODE)
        assert held == set()
    after = awake.found()
    assert len(after) == (COUNT if write == "upsert" else 8)
    for identity, point in before.items():
        assert after[identity].payload == point.payload
        assert after[identity].vectors.keys() == point.vectors.keys()
    # A narrower plan writes its own over what the sleeper left: that does not become the new space's.
    narrow = Plan(primary=MINI)
    awake.store.update_payload("c", awake.points(narrow, 3000, only=[]), 3000)
    awake.require_only_new()
    for one in (awake, sleeper):
        one.store.close()


def _unaware(store: Store) -> ServerCollection:
    """The collection as if nothing of it had been migrated."""
    assert isinstance(store, ServerStore)
    found = ServerCollection.find("c", store._connection, store._wire)
    assert found is not None
    found.binding = replace(found.binding, since={})
    return found


def test_a_former_vector_that_came_late_does_not_become_new_by_another_migration(
    standin: Standin, make_point: MakePoint
) -> None:
    """Each migration moves every point's start; what was hidden by it must not be seen then."""
    awake, sleeper = (ServerStore(server_settings(standin)) for _ in range(2))
    fused = Ensemble(members=(MINI, "qdrant-minilm-onnx"))
    first = Plan(primary=MINI, companions=(CODE, "qdrant-minilm-onnx"), ensemble=fused)
    second = first.model_copy(update={"tasks": {CODE: "qa"}})
    third = second.model_copy(update={"ensemble": fused.model_copy(update={"weights": (1.0, 3.0)})})
    for store in (awake, sleeper):
        store.open("c", first)
    assert awake.migrate("c", second, 2000)
    sleeper.upsert("c", [make_point(first, 1)], 1000)
    assert awake.migrate("c", third, 3000)
    assert awake.lacking("c", [MINI, CODE, "ensemble"]) == {MINI: 0, CODE: 1, "ensemble": 1}
    for store in (awake, sleeper):
        store.close()


def test_a_vector_that_was_added_later_is_migrated_as_well(
    store: Store, make_point: MakePoint, caplog: pytest.LogCaptureFixture
) -> None:
    store.open("c", Plan(primary=MINI))
    store.open("c", OLD)
    store.upsert("c", [make_point(OLD, 1)], 1000)
    assert store.migrate("c", NEW, 2000)
    store.upsert("c", [make_point(NEW, 1, started=2000)], 2000)
    assert store.open("c", NEW).plan.fingerprint == NEW.fingerprint
    assert store.lacking("c", [CODE]) == {CODE: 0}
    assert "left out" not in caplog.text


@pytest.mark.parametrize("at", [1, 2], ids=["moving", "removing"])
def test_two_that_migrate_at_once_take_no_new_vector_away(
    standin: Standin, make_point: MakePoint, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """The slower one has looked for points to clear, and acts when the faster is done and its job writes."""
    fast, slow = (Filled(ServerStore(server_settings(standin)), make_point) for _ in range(2))
    fast.store.open("c", OLD)
    fast.store.upsert("c", fast.points(OLD, 1000), 1000)
    page, turns = ServerCollection._page, 0

    def overtake(found: ServerCollection, *asked: Any) -> list[str]:
        nonlocal turns
        ids = page(found, *asked)
        turns += 1 if ids and found is not fast.store._find("c") else 0
        if ids and turns == at:
            turns += 1
            fast.migrate()
            fast.store.update_vectors("c", fast.points(NEW, 2000, only=sorted(CHANGED)), 2000)
        return ids

    monkeypatch.setattr(ServerCollection, "_page", overtake)
    with pytest.raises(StoreUnavailable):
        slow.migrate(started=2000)
    slow.migrate(started=2000)
    assert turns > at
    fast.require_only_new()
    assert fast.store.lacking("c", sorted(CHANGED)) == dict.fromkeys(CHANGED, 0)
    for one in (fast, slow):
        one.store.close()


def test_searches_during_a_migration_never_mix(filled: Filled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each score tells which of a point's two vectors it is of."""
    monkeypatch.setattr(checked, "MIGRATE_POINTS", 3)
    store = filled.store
    query = {name: vectors_of(NEW, 5)[name] for name in (MINI, CODE)}
    scores = {
        plan.fingerprint: {p.id: float(p.vectors[CODE] @ query[CODE]) for p in filled.points(plan, 1000)}
        for plan in (OLD, NEW)
    }
    seen: list[str] = []
    failures: list[BaseException] = []
    end = threading.Event()

    def plan_of(identity: str, score: float) -> str:
        return min(scores, key=lambda plan: abs(scores[plan][identity] - score))

    def search() -> None:
        while not end.is_set():
            try:
                assert len(store.query("c", {MINI: query[MINI]}, 50)) == COUNT
                hits = store.query("c", {CODE: query[CODE]}, 50)
                plans = {plan_of(hit.id, hit.score) for hit in hits}
                assert len(plans) < 2
                seen.extend(plans)
            except SpaceMismatch:
                pass
            except BaseException as error:
                failures.append(error)
                return

    thread = threading.Thread(target=search)
    thread.start()
    filled.migrate()
    new = filled.points(NEW, 2000, only=sorted(CHANGED))
    for n in range(0, COUNT, 4):
        store.update_vectors("c", new[n : n + 4], 2000)
    end.set()
    thread.join(60)
    assert failures == []
    # First those of one, then those of the other.
    assert seen == sorted(seen, key=[OLD.fingerprint, NEW.fingerprint].index)


# --- versions


def test_a_server_that_cannot_change_a_width_says_so_before_anything_goes(
    tmp_path: Path, make_point: MakePoint
) -> None:
    members = {"primary": MINI, "companions": ("qdrant-minilm-onnx",)}
    fused = {"members": (MINI, "qdrant-minilm-onnx")}
    average = Plan(**members, ensemble=Ensemble(**fused))
    concat = Plan(**members, ensemble=Ensemble(**fused, method="concat"))
    with Standin(tmp_path / "old", version="1.16.3") as standin:
        store = ServerStore(server_settings(standin))
        store.open("c", average)
        store.upsert("c", [make_point(average, 1)], 1000)
        for ask in (lambda: store.changes("c", concat), lambda: store.migrate("c", concat, 2000)):
            with pytest.raises(UsageError, match=r"ensemble.*older than 1\.18.*index into a new collection"):
                ask()
        assert store.open("c", average).plan.fingerprint == average.fingerprint
        assert store.lacking("c", ["ensemble"]) == {"ensemble": 0}
        # Of the same width it can.
        heavier = Plan(**members, ensemble=Ensemble(**fused, weights=(1.0, 3.0)))
        assert store.migrate("c", heavier, 2000)
        assert store.lacking("c", ["ensemble", MINI]) == {"ensemble": 1, MINI: 0}
        store.close()


# --- what was to be updated


@pytest.mark.parametrize("write", ["update_vectors", "update_payload"])
def test_an_update_says_what_was_not_there_to_be_updated(
    store: Store, make_point: Callable[..., Point], write: str
) -> None:
    store.open("c", OLD)
    old = [make_point(OLD, n, started=1000) for n in range(3)]
    store.upsert("c", old, 1000)
    # A newer job gave one another text, another the same text without the vectors, a third all of them.
    store.upsert("c", [make_point(OLD, 4, started=3000, text="new")], 3000)
    store.upsert("c", [make_point(OLD, 5, started=3000, only=[MINI])], 3000)
    store.upsert("c", [make_point(OLD, 6, started=3000)], 3000)
    offered = [
        make_point(OLD, 0, started=2000),
        make_point(OLD, 1, started=2000, text="of another text than what stands"),
        *(make_point(OLD, n, started=2000) for n in (3, 4, 5, 6)),
    ]
    lost = getattr(store, write)("c", offered, 2000)
    assert set(lost) == {offered[1].id, offered[2].id, offered[4].id}
    assert getattr(store, write)("c", offered[:1], 2000) == []
