"""Facts noted beside a collection's plan: each under its own key, kept whatever happens to the collection."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from registry.errors import UsageError
from store.edge import EdgeStore
from store.server import ServerStore
from tests.store.conftest import server_settings


def test_notes_stand_by_key_and_the_last_value_counts(store, narrow):
    store.open("c", narrow)
    assert store.notes("c") == {}
    store.note("c", "a/one", {"dtype": "float32", "tf32": False, "rows": [1, 2.5, None, "ü"]})
    store.note("c", "b", "first")
    store.note("c", "b", "second")
    assert store.notes("c") == {
        "a/one": {"dtype": "float32", "tf32": False, "rows": [1, 2.5, None, "ü"]},
        "b": "second",
    }


def test_notes_outlive_new_vectors_and_writes(store, narrow, wide, make_point):
    store.open("c", narrow)
    store.note("c", "a", 1)
    store.upsert("c", [make_point(narrow, 1)], 1000)
    assert "bge-m3" in {v.name for v in store.open("c", wide).plan.vectors()}
    assert store.notes("c") == {"a": 1}
    store.note("c", "b", 2)
    assert store.describe("c").plan.models == wide.models
    assert store.notes("c") == {"a": 1, "b": 2}


def test_notes_of_an_absent_collection_are_a_usage_error(store):
    with pytest.raises(UsageError, match="no collection 'c'"):
        store.notes("c")
    with pytest.raises(UsageError, match="no collection 'c'"):
        store.note("c", "a", 1)


def test_noting_from_many_threads_loses_nothing(store, narrow):
    store.open("c", narrow)
    threads = [threading.Thread(target=store.note, args=("c", f"k{n}", n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.notes("c") == {f"k{n}": n for n in range(8)}


def test_an_embedded_collection_keeps_its_notes_on_disk(tmp_path: Path, narrow, make_point):
    store = EdgeStore(tmp_path / "store")
    store.open("c", narrow)
    store.note("c", "a", [1, 2])
    store.upsert("c", [make_point(narrow, n) for n in range(20)], 1000)
    # A copy takes the shard's place; the record stays.
    assert store.maintain("c", least=10)
    assert store.notes("c") == {"a": [1, 2]}
    store.close()
    again = EdgeStore(tmp_path / "store")
    assert again.notes("c") == {"a": [1, 2]}
    again.close()


def test_a_record_from_before_there_were_notes_is_read(tmp_path: Path, narrow):
    store = EdgeStore(tmp_path / "store")
    store.open("c", narrow)
    store.close()
    path = tmp_path / "store" / "c" / "collection.json"
    record = json.loads(path.read_text())
    del record["notes"]
    path.write_text(json.dumps(record))
    again = EdgeStore(tmp_path / "store")
    assert again.notes("c") == {}
    assert again.describe("c").plan == narrow
    again.close()


def test_two_aggregators_on_one_server_do_not_overwrite_each_others_notes(standin, narrow):
    one, other = ServerStore(server_settings(standin)), ServerStore(server_settings(standin))
    one.open("c", narrow)
    assert other.notes("c") == {}
    one.note("c", "a", 1)
    other.note("c", "b", 2)
    assert one.notes("c") == other.notes("c") == {"a": 1, "b": 2}
    one.close()
    other.close()
