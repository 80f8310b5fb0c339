"""What the embedded store adds to the promises: crashes, one process, indexes, the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import store.edge_collection
from registry.chunks import chunk_id
from registry.errors import StoreRefused, StoreUnavailable
from registry.index import Index, VectorIndex
from registry.plan import Plan
from store.edge import EdgeStore
from store.edge_operations import SLICE_POINTS
from store.edge_shard import Shard

CRASH = Path(__file__).with_name("crash.py")
ROOT = Path(__file__).parents[2]
DENSE = "all-miniLM-l6"
#: More than any of the scripts has; a sweep that gets here has an error.
MANY_STEPS = 60


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def edge(root: Path) -> Iterator[EdgeStore]:
    opened = EdgeStore(root)
    yield opened
    opened.close()


def start(root: Path, step: int, script: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(CRASH), str(root), str(step), script]
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def steps(root: Path, step: int, script: str) -> int:
    """How many steps the script took to its end; 0 if it was killed at that step."""
    child = start(root, step, script)
    said, errors = child.communicate(timeout=60)
    assert child.returncode in (0, -signal.SIGKILL), errors
    return int(said.split()[-1]) if "done" in said else 0


def died(root: Path, step: int, script: str) -> bool:
    """Whether the script was killed at that step; False if it came to its end."""
    return not steps(root, step, script)


def test_a_crash_at_any_step_of_making_a_collection_is_mended_by_opening_it(tmp_path, narrow, make_point):
    for step in range(1, MANY_STEPS):
        root = tmp_path / str(step)
        killed = died(root, step, "arm(); store.open('c', narrow)")
        mended = EdgeStore(root)
        if killed:
            assert mended.collections() in ([], ["c"])
        mended.open("c", narrow)
        mended.upsert("c", [make_point(narrow, 1)], 1000)
        assert mended.query("c", make_point(narrow, 1).vectors, 1)[0].id == chunk_id("1")
        mended.close()
        if not killed:
            assert step > 5
            return
    pytest.fail("it never came to its end")


def test_a_crash_at_any_step_of_adding_vectors_is_mended(tmp_path, narrow, wide, make_point):
    for step in range(1, MANY_STEPS):
        root = tmp_path / str(step)
        standing = EdgeStore(root)
        standing.open("c", narrow)
        standing.upsert("c", [make_point(narrow, 1)], 1000)
        standing.close()

        killed = died(root, step, "store.describe('c'); arm(); store.open('c', wide)")

        mended = EdgeStore(root)
        assert mended.standing("c", [chunk_id("1")])[chunk_id("1")].vectors == {DENSE}
        # Another plan than the one that crashed comes first
        mended.open("c", Plan(primary=DENSE, companions=("qdrant-minilm-onnx",)))
        mended.open("c", wide)
        mended.update_vectors("c", [make_point(wide, 1)], 1000)
        assert len(mended.standing("c", [chunk_id("1")])[chunk_id("1")].vectors) == 4
        mended.close()
        if not killed:
            assert step > 3
            return
    pytest.fail("it never came to its end")


def test_what_was_acknowledged_survives_kill_9(root, narrow):
    # Given a process that writes and says after each write that it returned
    script = """
import numpy as np
from registry.chunks import Chunk
from store.points import build_point
store.open('c', narrow)
n = 0
while True:
    n += 1
    vector = np.full(384, 1.0, np.float32)
    vector[n % 384] = 50.0
    chunk = Chunk(f"00000000-0000-0000-0000-{n:012}", f"text {n}")
    store.upsert('c', [build_point(chunk, {'all-miniLM-l6': vector}, 'job', n)], n)
    print(n, flush=True)
"""
    child = start(root, 0, script)
    assert child.stdout is not None
    said = 0
    while said < 200:
        said = int(child.stdout.readline())
    # When it is killed in the midst of it
    child.kill()
    rest = child.communicate(timeout=30)[0].split()
    said = max([said, *(int(line) for line in rest)])
    # Then every write that returned is there, whole
    opened = EdgeStore(root)
    ids = [f"00000000-0000-0000-0000-{n:012}" for n in range(1, said + 1)]
    points = opened.get("c", ids, with_vectors=True)
    assert [p.payload["v5"]["started"] for p in points] == list(range(1, said + 1))
    assert [int(p.vectors[DENSE].argmax()) for p in points] == [n % 384 for n in range(1, said + 1)]
    opened.close()


def test_a_second_process_is_refused_until_the_first_is_gone(root, narrow):
    child = start(root, 0, "store.open('c', narrow); print('open', flush=True); input()")
    assert child.stdout is not None
    assert child.stdout.readline() == "open\n"
    with pytest.raises(StoreUnavailable, match=rf"{root} is in use by process {child.pid}.*V5_DATA_DIR"):
        EdgeStore(root)
    child.kill()
    child.communicate(timeout=30)
    opened = EdgeStore(root)
    assert opened.collections() == ["c"]
    opened.close()


def test_a_shard_that_another_process_holds_is_unavailable(root, edge, narrow):
    import qdrant_edge

    edge.open("c", narrow)
    edge.close()
    held = qdrant_edge.EdgeShard.load(str(root / "c" / "shard-1"))
    opened = EdgeStore(root)
    with pytest.raises(StoreUnavailable, match="another process has its files open"):
        opened.describe("c")
    held.close()
    assert opened.describe("c").points == 0
    opened.close()


def test_a_closed_store_says_so(edge, narrow):
    edge.open("c", narrow)
    edge.close()
    edge.close()
    for call in (edge.collections, lambda: edge.describe("c"), lambda: edge.open("c", narrow)):
        with pytest.raises(StoreUnavailable, match="is closed"):
            call()


def test_everything_is_there_after_reopening(root, wide, make_point):
    points = [make_point(wide, n) for n in range(5)]
    opened = EdgeStore(root)
    opened.open("c", wide)
    opened.upsert("c", points, 1000)
    before = opened.get("c", [p.id for p in points], with_vectors=True)
    opened.close()
    opened = EdgeStore(root)
    assert opened.describe("c").plan == wide
    after = opened.get("c", [p.id for p in points], with_vectors=True)
    assert [p.payload for p in after] == [p.payload for p in before]
    assert all(np.array_equal(a.vectors[DENSE], b.vectors[DENSE]) for a, b in zip(after, before, strict=True))
    opened.close()


def test_a_full_disk_is_refused_before_the_engine_meets_it(root, narrow, make_point):
    opened = EdgeStore(root)
    opened.open("c", narrow)
    opened.close()
    opened = EdgeStore(root, min_free_bytes=1 << 60)
    with pytest.raises(StoreUnavailable, match="MiB are needed"):
        opened.upsert("c", [make_point(narrow, 1)], 1000)
    assert opened.describe("c").points == 0
    opened.close()


def test_a_directory_that_cannot_be_made_is_unavailable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        EdgeStore(tmp_path / "file" / "store")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 99}', None])
def test_a_record_that_cannot_be_understood_is_refused_and_nothing_is_removed(
    root, narrow, make_point, damage
):
    opened = EdgeStore(root)
    opened.open("c", narrow)
    opened.upsert("c", [make_point(narrow, 1)], 1000)
    opened.close()
    record = root / "c" / "collection.json"
    good = record.read_text()
    record.unlink() if damage is None else record.write_text(damage)
    opened = EdgeStore(root)
    with pytest.raises(StoreRefused, match="restore"):
        opened.open("c", narrow)
    record.write_text(good)
    assert opened.describe("c").points == 1
    opened.close()


def test_a_record_whose_vectors_were_tampered_with_is_refused(root, narrow):
    opened = EdgeStore(root)
    opened.open("c", narrow)
    opened.close()
    record = root / "c" / "collection.json"
    body = json.loads(record.read_text())
    body["vectors"][0]["dimension"] = 7
    record.write_text(json.dumps(body))
    opened = EdgeStore(root)
    with pytest.raises(StoreRefused, match="fingerprint"):
        opened.describe("c")
    opened.close()


def fill(edge, plan, make_point, count):
    points = [make_point(plan, n) for n in range(count)]
    edge.upsert("c", points, 1000)
    return points


def test_optimising_keeps_everything_and_the_collection_goes_on(root, edge, narrow, wide, make_point):
    edge.open("c", narrow)
    points = fill(edge, narrow, make_point, 60)
    query = make_point(narrow, 999).vectors
    before = [h.id for h in edge.query("c", query, 10)]
    assert not edge.maintain("c", least=61)
    assert edge.maintain("c", least=60)
    assert not edge.maintain("c", least=1)
    assert [path.name for path in (root / "c").glob("shard-*")] == ["shard-2"]
    assert [h.id for h in edge.query("c", query, 10)] == before
    # Conditional writes, added vectors and a crash meet optimised segments
    edge.upsert("c", [make_point(narrow, 0, started=1, mark=1)], 1)
    assert edge.get("c", [points[0].id], False)[0].payload == points[0].payload
    edge.open("c", wide)
    edge.update_vectors("c", [make_point(wide, 1)], 1000)
    edge.close()
    opened = EdgeStore(root)
    assert opened.describe("c").points == 60
    assert len(opened.standing("c", [points[1].id])[points[1].id].vectors) == 4
    opened.close()


def test_a_crash_while_optimising_loses_nothing(tmp_path, narrow, make_point):
    script = "store.describe('c'); arm(); store.maintain('c', least=1)"
    total, at = 0, [0, 1]
    for number in range(6):
        root = tmp_path / str(number)
        opened = EdgeStore(root)
        opened.open("c", narrow)
        fill(opened, narrow, make_point, 30)
        opened.close()
        taken = steps(root, at[number], script)
        if at[number] == 0:
            total = taken
            # Copying and syncing is one step like another; the end is where the copy takes over.
            at += range(total - 3, total + 1)
        assert bool(taken) == (at[number] == 0)
        opened = EdgeStore(root)
        assert opened.describe("c").points == 30
        assert len(list((root / "c").glob("shard-*"))) == 1
        assert opened.query("c", make_point(narrow, 7).vectors, 1)[0].id == chunk_id("7")
        opened.close()


def test_an_optimisation_gives_way_to_a_writer_while_readers_read(
    edge, root, narrow, make_point, tmp_path, monkeypatch
):
    # Given an optimisation that takes for ever
    endless = tmp_path / "endless.py"
    endless.write_text(
        "import sys, time, pathlib\npathlib.Path(sys.argv[1], 'begun').touch()\ntime.sleep(600)\n"
    )
    monkeypatch.setattr(store.edge_collection.optimise, "__file__", str(endless))
    edge.open("c", narrow)
    fill(edge, narrow, make_point, 30)
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(edge.maintain("c", least=1)))
    thread.start()
    begun = root / "c" / "shard-2" / "begun"
    for _ in range(3000):
        if begun.exists():
            break
        thread.join(0.01)
    assert begun.exists()
    # When someone reads, it goes on; when someone writes, it ends
    assert len(edge.query("c", make_point(narrow, 3).vectors, 5)) == 5
    assert thread.is_alive()
    edge.upsert("c", [make_point(narrow, 100)], 1000)
    thread.join(30)
    assert ended == [False]
    assert edge.describe("c").points == 31
    assert not (root / "c" / "shard-2").exists()


def test_an_optimisation_that_fails_says_why_and_harms_nothing(
    edge, narrow, make_point, tmp_path, monkeypatch
):
    broken = tmp_path / "broken.py"
    broken.write_text("raise SystemExit('no such luck')")
    monkeypatch.setattr(store.edge_collection.optimise, "__file__", str(broken))
    edge.open("c", narrow)
    fill(edge, narrow, make_point, 3)
    with pytest.raises(StoreUnavailable, match="no such luck"):
        edge.maintain("c", least=1)
    assert edge.describe("c").points == 3


def test_batches_larger_than_one_operation_arrive_whole(edge, narrow, make_point, monkeypatch):
    monkeypatch.setattr("store.edge_operations.SLICE_BYTES", 4000)
    monkeypatch.setattr("store.edge_shard.FLUSH_BYTES", 10_000)
    edge.open("c", narrow)
    points = fill(edge, narrow, make_point, 25)
    assert len(edge.standing("c", [p.id for p in points])) == 25


class Calls:
    """Edge's handle, which says what is called, and whose first write waits until a reader does."""

    def __init__(self, shard: Shard, until: Callable[[], object]) -> None:
        self.order: list[str] = []
        self._real = shard.read
        self._until = until

    def update(self, operation: object) -> None:
        self.order.append("write")
        if len(self.order) == 1:
            self._until()
        self._real.update(operation)

    def retrieve(self, *arguments: object) -> object:
        self.order.append("read")
        return self._real.retrieve(*arguments)

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def test_a_reader_waits_for_one_call_of_a_write_and_for_no_further(
    edge, narrow, make_point, eventually, monkeypatch
):
    edge.open("c", narrow)
    shard = edge._open["c"].shard
    reader = threading.Thread(target=lambda: edge.standing("c", [chunk_id("1")]))

    def a_reader_comes() -> None:
        reader.start()
        eventually(lambda: shard.lock._waiting[True] == 1)

    calls = Calls(shard, a_reader_comes)
    monkeypatch.setattr(shard, "_edge", calls)
    edge.upsert("c", [make_point(narrow, i) for i in range(3 * SLICE_POINTS)], 1000)
    reader.join(20)
    assert calls.order == ["write", "read", "write", "write"]
    monkeypatch.undo()


def test_the_log_that_is_synced_is_where_the_engine_keeps_it(root, edge, narrow, make_point):
    edge.open("c", narrow)
    log = root / "c" / "shard-1" / "wal"
    point = make_point(narrow, 1, mark="found in the log")
    edge.upsert("c", [point], 1000)
    assert any(b"found in the log" in path.read_bytes() for path in log.iterdir())


@pytest.mark.parametrize("quantization", ["int8", "binary"])
def test_a_quantized_copy_finds_and_the_vectors_themselves_decide(edge, narrow, make_point, quantization):
    index = Index(dense=VectorIndex(quantization=quantization))
    edge.open("c", narrow.model_copy(update={"index": index}))
    points = [make_point(narrow, i) for i in range(300)]
    edge.upsert("c", points, 1000)
    assert edge.maintain("c", least=1)

    exact = np.stack([p.vectors[DENSE] for p in points])
    for query in (points[7].vectors[DENSE], points[211].vectors[DENSE]):
        hits = edge.query("c", {DENSE: query}, 5)
        assert hits[0].score == pytest.approx(1.0, abs=1e-6)
        scores = {p.id: float(row @ query) for p, row in zip(points, exact, strict=True)}
        # A score of the copy would be off by a hundredth or more.
        assert [hit.score for hit in hits] == pytest.approx([scores[hit.id] for hit in hits], abs=1e-5)
