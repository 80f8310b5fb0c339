"""What a Qdrant server adds to the promises: versions, access, sizes, faults on the way, several writers.

The tests that take `server` run on a real server, too, where V5_TEST_QDRANT_URL names one. Those that take
`standin` need what no real server does on demand: to refuse, to cut, to be old, or to tell what was sent.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdrant_client import grpc, models

from registry.chunks import chunk_id
from registry.errors import StoreRefused, StoreUnavailable, StoreUnfit, UsageError
from registry.index import PROFILES
from registry.plan import Plan
from store.base import Point, SparseVector
from store.edge import EdgeStore
from store.layout import PAYLOAD_INDEXES
from store.points import STARTED
from store.server import ServerStore
from store.server_collection import ServerCollection
from store.server_wire import ORDERING, GrpcWire, dense_bytes, multi_bytes
from tests.qdrant_standin import Request, Standin
from tests.store.conftest import SERVERS, server_settings, server_store, unit, vectors_of

KEY = "a-key-that-must-never-be-seen"
WRITES = ("Points.Upsert", "Points.UpdateVectors", "Points.UpdateBatch")


@pytest.fixture(params=["grpc", "rest"])
def protocol(request: pytest.FixtureRequest) -> bool:
    """Whether gRPC is used."""
    return bool(request.param == "grpc")


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[ServerStore]:
    """The server store, by either protocol, on every server there is."""
    yield from server_store(request, request.param)


@pytest.fixture
def faulty(standin: Standin, protocol: bool) -> Iterator[ServerStore]:
    """The server store on the stand-in, by either protocol."""
    opened = ServerStore(server_settings(standin, qdrant_grpc=protocol))
    yield opened
    opened.close()


def opened(standin: Standin, **fields: Any) -> ServerStore:
    return ServerStore(server_settings(standin, **fields))


def requests(standin: Standin, *operations: str) -> list[Request]:
    return [one for one in standin.requests if one.operation in operations]


def ids_of(store: ServerStore, points: list[Point]) -> set[str]:
    return {one.id for one in store.get("c", [point.id for point in points], False)}


# What a collection is


def test_the_collection_is_built_as_the_plan_says(server, wide):
    server.open("c", wide.model_copy(update={"index": PROFILES["v4"]}))

    about = server._connection.client.get_collection("c")
    dense = about.config.params.vectors["bge-m3"]
    assert (dense.hnsw_config.m, dense.hnsw_config.ef_construct) == (48, 512)
    scalar = dense.quantization_config.scalar
    assert (scalar.type, scalar.always_ram) == (models.ScalarType.INT8, True)
    assert scalar.quantile == pytest.approx(0.99)
    multi = about.config.params.vectors["bge-m3-colbert"]
    assert (multi.hnsw_config.m, multi.on_disk, multi.datatype) == (0, True, models.Datatype.FLOAT16)
    assert multi.multivector_config.comparator == models.MultiVectorComparator.MAX_SIM
    assert set(about.config.params.sparse_vectors) == {"bge-m3-sparse"}
    assert about.payload_schema.keys() == PAYLOAD_INDEXES.keys()


def test_payload_indexes_stand_before_the_first_point(faulty, standin, narrow, make_point):
    faulty.open("c", narrow)
    faulty.upsert("c", [make_point(narrow, 1)], 1000)

    order = [one.operation for one in standin.requests]
    last_index = max(i for i, name in enumerate(order) if name == "Points.CreateFieldIndex")
    assert last_index < order.index("Points.Upsert")


def test_an_index_that_a_crash_left_out_is_made_by_the_next_opening(server, narrow):
    server.open("c", narrow)
    server._connection.client.delete_payload_index("c", STARTED)
    server.open("c", narrow)
    assert STARTED in server._connection.client.get_collection("c").payload_schema


def test_an_added_vector_gets_the_index_of_the_plan_that_brings_it(server, narrow, wide):
    server.open("c", narrow)
    server.open("c", wide.model_copy(update={"index": PROFILES["v4"]}))

    vectors = server._connection.client.get_collection("c").config.params.vectors
    assert vectors["bge-m3"].hnsw_config.m == 48
    assert vectors["bge-m3-colbert"].hnsw_config.m == 0
    assert vectors["all-miniLM-l6"].hnsw_config.m == 16


def test_a_crash_between_adding_a_vector_and_recording_it_is_mended(
    faulty, standin, narrow, wide, make_point
):
    faulty.open("c", narrow)
    standin.fail(500, next=lambda one: one.operation == "Collections.Update" and _has_record(one), times=9)
    with pytest.raises(StoreUnavailable):
        faulty.open("c", wide)
    standin.mend()

    faulty.open("c", wide)
    faulty.upsert("c", [make_point(wide, 1)], 1000)
    assert faulty.get("c", [make_point(wide, 1).id], True)[0].vectors.keys() == vectors_of(wide, 1).keys()


def _has_record(one: Request) -> bool:
    return bool(one.message.metadata)


def test_a_collection_of_others_is_never_touched(server, narrow, make_point):
    client = server._connection.client
    client.create_collection("theirs", {"text": models.VectorParams(size=4, distance=models.Distance.DOT)})
    for use in (
        lambda: server.open("theirs", narrow),
        lambda: server.upsert("theirs", [make_point(narrow, 1)], 1),
        lambda: server.describe("theirs"),
    ):
        with pytest.raises(UsageError, match="not made by this fleet \\(its vectors: text\\)"):
            use()
    assert server.collections() == []
    assert client.count("theirs").count == 0


def test_a_collection_with_another_schema_than_its_record_is_refused(server, narrow):
    server.open("right", narrow)
    client = server._connection.client
    record = client.get_collection("right").config.metadata
    client.create_collection(
        "wrong",
        {"all-miniLM-l6": models.VectorParams(size=96, distance=models.Distance.DOT)},
        metadata=record,
    )
    with pytest.raises(
        UsageError, match="dense of 96 dimensions by Dot, not dense of 384 dimensions by Cosine"
    ):
        server.open("wrong", narrow)


def test_a_record_of_another_version_is_refused(server, narrow):
    server.open("c", narrow)
    client = server._connection.client
    record = client.get_collection("c").config.metadata["v5"]
    client.update_collection("c", metadata={"v5": {**record, "version": 99}})
    with pytest.raises(StoreRefused, match="version 99"):
        server.open("c", narrow)


def test_processes_that_open_a_collection_at_once_agree(standin, wide, protocol):
    stores = [opened(standin, qdrant_grpc=protocol) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        infos = list(pool.map(lambda store: store.open("c", wide), stores))
    assert {info.plan.fingerprint for info in infos} == {wide.fingerprint}
    for store in stores:
        store.close()


# Versions, access, addresses


@pytest.mark.parametrize("version", ["1.15.9", "1.7.4", "0.11.0"])
def test_a_server_that_ignores_conditions_is_refused(tmp_path, narrow, protocol, version):
    with Standin(tmp_path / "old", version=version) as standin:
        store = opened(standin, qdrant_grpc=protocol)
        for use in (store.connect, lambda: store.open("c", narrow)):
            with pytest.raises(StoreUnfit, match=f"{version}; 1.16 is needed"):
                use()
        assert not requests(standin, "Collections.Create", *WRITES)
        store.close()


def test_a_server_that_cannot_add_vectors_says_so_and_serves_everything_else(
    tmp_path, narrow, wide, make_point, protocol
):
    with Standin(tmp_path / "old", version="1.16.3") as standin:
        store = opened(standin, qdrant_grpc=protocol)
        store.open("new", wide)
        store.open("c", narrow)
        with pytest.raises(
            UsageError, match=r"without bge-m3.*older than 1\.18.*index into a new collection"
        ):
            store.open("c", wide)
        store.upsert("new", [make_point(wide, 1, started=2000)], 2000)
        store.upsert("new", [make_point(wide, 1, text="older")], 1000)
        assert store.get("new", [make_point(wide, 1).id], False)[0].payload["text"] == "text 1"
        store.close()


@pytest.mark.parametrize("given", ["", "wrong-" + KEY])
def test_a_refused_key_is_said_and_never_shown(tmp_path, narrow, protocol, given, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with Standin(tmp_path / "locked", api_key=KEY) as standin:
        settings = server_settings(standin, qdrant_grpc=protocol, qdrant_api_key=given)
        store = ServerStore(settings)
        with pytest.raises(StoreUnfit, match="V5_QDRANT_API_KEY") as refused:
            store.connect()
        store.close()
        said = f"{refused.value!r} {settings!r} {settings} {caplog.text} {capfd.readouterr()}"
        assert KEY not in said


def test_the_right_key_opens_and_is_never_shown(tmp_path, narrow, make_point, protocol, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with Standin(tmp_path / "locked", api_key=KEY) as standin:
        store = opened(standin, qdrant_grpc=protocol, qdrant_api_key=KEY)
        store.connect()
        store.open("c", narrow)
        standin.fail(500, next=99)
        with pytest.raises(StoreUnavailable) as away:
            store.upsert("c", [make_point(narrow, 1)], 1)
        store.close()
        assert "unencrypted" in caplog.text
        assert KEY not in f"{away.value!r} {caplog.text} {capfd.readouterr()}"


def test_a_key_that_may_only_read_is_said_when_something_is_written(tmp_path, narrow, make_point, protocol):
    with Standin(tmp_path / "locked", api_key=KEY, read_only_api_key="reader") as standin:
        writer = opened(standin, qdrant_grpc=protocol, qdrant_api_key=KEY)
        writer.open("c", narrow)
        reader = opened(standin, qdrant_grpc=protocol, qdrant_api_key="reader")
        reader.connect()
        with pytest.raises(StoreUnfit, match="may it write"):
            reader.upsert("c", [make_point(narrow, 1)], 1)
        writer.close()
        reader.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("qdrant:6333", "must be like"),
        ("ftp://qdrant", "must be like"),
        (f"https://user:{KEY}@qdrant:6333", "V5_QDRANT_API_KEY"),
        (f"https://qdrant:6333?api-key={KEY}", "V5_QDRANT_API_KEY"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_without_repeating_it(standin, url, said):
    with pytest.raises(UsageError, match=said) as refused:
        opened(standin, qdrant_url=url)
    assert KEY not in str(refused.value)


def test_by_tls_a_server_is_believed_only_by_its_authority(
    tmp_path, certificate, narrow, protocol, make_point
):
    cert, key, stranger = certificate
    with Standin(tmp_path / "tls", tls=(cert, key)) as standin:
        store = opened(standin, qdrant_grpc=protocol, qdrant_ca=cert)
        store.open("c", narrow)
        store.upsert("c", [make_point(narrow, 1)], 1)
        assert store.describe("c").points == 1
        store.close()
        store = opened(standin, qdrant_grpc=protocol, qdrant_ca=stranger, qdrant_retries=0, qdrant_seconds=3)
        with pytest.raises(StoreUnavailable, match=r"(?i)certificate|handshake|ssl|connect"):
            store.connect()
        store.close()
    with pytest.raises(UsageError, match="V5_QDRANT_CA"):
        opened(standin, qdrant_ca=tmp_path / "absent.pem")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A self-signed certificate for 127.0.0.1, its key, and another authority."""
    import subprocess

    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "stranger"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
             "-addext", "subjectAltName=IP:127.0.0.1",
             "-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")],
            check=True,
            capture_output=True,
        )  # fmt: skip
    return folder / "server.pem", folder / "server.key", folder / "stranger.pem"


# What is sent


@pytest.mark.parametrize("write", ["upsert", "update_vectors", "update_payload"])
def test_every_write_is_conditional_waits_and_is_ordered(faulty, standin, narrow, make_point, write):
    faulty.open("c", narrow)
    faulty.upsert("c", [make_point(narrow, 1)], 1)
    standin.requests.clear()
    getattr(faulty, write)("c", [make_point(narrow, 1, seed=9)], 77)

    sent = requests(standin, *WRITES)
    assert sent
    for one in sent:
        assert STARTED in str(one.message)
        assert "77" in str(one.message)
        if isinstance(one.message, grpc.UpsertPoints):
            assert one.message.wait
            assert one.message.ordering.type == grpc.WriteOrderingType.Strong
    assert ORDERING == models.WriteOrdering.STRONG


def test_thirty_thousand_rows_of_a_multi_vector_go_in_requests_under_the_limit(
    standin, wide, make_point, protocol
):
    store = opened(standin, qdrant_grpc=protocol, qdrant_request_bytes=8 << 20)
    store.open("c", wide)
    rng = np.random.default_rng(7)
    points = []
    for i in range(100):
        point = make_point(wide, i)
        rows = unit(rng.standard_normal((300, 1024), dtype=np.float32))
        points.append(Point(point.id, {**point.vectors, "bge-m3-colbert": rows}, point.payload))
    sizes: list[int] = []
    # Looks at every request and takes none.
    standin.delay(0, next=lambda one: one.operation == "Points.Upsert" and sizes.append(one.nbytes))
    store.upsert("c", points, 1000)

    assert sum(sizes) >= 100 * 300 * 1024 * 4
    assert len(sizes) >= sum(sizes) / (8 << 20)
    assert max(sizes) <= 8 << 20
    assert ids_of(store, points) == {point.id for point in points}
    stored = store.get("c", [points[50].id], True)[0].vectors["bge-m3-colbert"]
    assert stored.shape == (300, 1024)
    # Stored as float16.
    assert np.abs(stored - points[50].vectors["bge-m3-colbert"]).max() < 1e-3
    store.close()


def test_requests_that_turn_out_too_large_are_halved_and_stay_small(standin, narrow, make_point, protocol):
    store = opened(standin, qdrant_grpc=protocol)
    store.open("c", narrow)
    points = [make_point(narrow, i) for i in range(64)]
    limit = 60_000
    standin.fail(413, "request larger than max size", next=lambda one: one.writes and one.nbytes > limit)
    store.upsert("c", points, 1000)
    assert ids_of(store, points) == {point.id for point in points}

    standin.requests.clear()
    store.upsert("c", points, 1000)
    tried = [one.nbytes for one in requests(standin, "Points.Upsert")]
    assert max(tried) <= 2 * limit, "the lower limit is remembered"
    store.close()


def test_one_point_over_the_limit_is_refused_by_name_and_its_neighbours_stay(
    standin, narrow, make_point, protocol
):
    store = opened(standin, qdrant_grpc=protocol)
    store.open("c", narrow)
    large = make_point(narrow, 1, text="x" * 100_000)
    standin.fail(413, "request larger than max size", next=lambda one: one.writes and one.nbytes > 60_000)
    with pytest.raises(StoreRefused, match=large.id):
        store.upsert("c", [make_point(narrow, 0), large], 1000)
    store.upsert("c", [make_point(narrow, 2)], 1000)
    assert store.describe("c").points >= 1
    store.close()


def test_vectors_become_messages_without_changing_a_bit():
    rng = np.random.default_rng(3)
    for width in (1, 31, 32, 384, 1536, 5000):
        dense = rng.standard_normal(width).astype(np.float32)
        assert grpc.DenseVector.FromString(dense_bytes(dense)) == grpc.DenseVector(data=dense.tolist())
        for n in (1, 2, 300):
            rows = rng.standard_normal((n, width)).astype(np.float32)
            wanted = grpc.MultiDenseVector(vectors=[grpc.DenseVector(data=row.tolist()) for row in rows])
            assert grpc.MultiDenseVector.FromString(multi_bytes(rows)) == wanted
    strided = rng.standard_normal((8, 64)).astype(np.float32)[::2, ::2]
    found = grpc.MultiDenseVector.FromString(multi_bytes(strided))
    assert list(found.vectors[1].data) == strided[1].tolist()


def test_a_point_becomes_the_message_of_all_its_vectors():
    dense, rows = np.float32([0.5, -2]), np.float32([[1, 2], [3, 4]])
    sparse = SparseVector(np.int64([3, 9]), np.float32([0.5, 0.25]))
    nothing = SparseVector(np.int64([]), np.float32([]))
    point = Point(chunk_id("0"), {"d": dense, "m": rows, "s": sparse, "n": nothing}, {})
    wanted = {
        "d": grpc.Vector(dense=grpc.DenseVector(data=[0.5, -2])),
        "m": grpc.Vector(
            multi_dense=grpc.MultiDenseVector(
                vectors=[grpc.DenseVector(data=[1, 2]), grpc.DenseVector(data=[3, 4])]
            )
        ),
        "s": grpc.Vector(sparse=grpc.SparseVector(indices=[3, 9], values=[0.5, 0.25])),
        "n": grpc.Vector(sparse=grpc.SparseVector()),
    }
    nobody: Any = None
    wire = GrpcWire(nobody, 5.0)
    (whole, bare), (vectors,) = wire.points([point, Point(point.id, {}, {})]), wire.vectors([point])
    named = grpc.Vectors(vectors=grpc.NamedVectors(vectors=wanted))
    assert whole.body.vectors == vectors.body.vectors == named
    assert bare.body.HasField("vectors")
    assert whole.body.id.uuid == vectors.body.id.uuid == point.id


def test_several_vectors_are_fused_by_the_server(faulty, standin, wide, make_point):
    faulty.open("c", wide)
    faulty.upsert("c", [make_point(wide, i) for i in range(20)], 1000)
    standin.requests.clear()
    faulty.query("c", vectors_of(wide, 3), 5)
    (one,) = requests(standin, "Points.Query")
    assert len(one.message.prefetch) == 4


def test_a_server_ranks_as_the_embedded_store_does(server, tmp_path, wide, make_point):
    edge = EdgeStore(tmp_path / "edge")
    points = [make_point(wide, i) for i in range(300)]
    for store in (edge, server):
        store.open("c", wide)
        store.upsert("c", points, 1000)
    for seed in range(1000, 1010):
        vectors = vectors_of(wide, seed)
        for queries in (vectors, *({name: vector} for name, vector in vectors.items())):
            ours, theirs = (store.query("c", queries, 20) for store in (edge, server))
            assert [hit.id for hit in ours] == [hit.id for hit in theirs]
            assert [hit.score for hit in ours] == pytest.approx([hit.score for hit in theirs], abs=1e-6)
            assert [hit.payload for hit in ours] == [hit.payload for hit in theirs]
    edge.close()


# Faults


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("write", ["upsert", "update_vectors", "update_payload"])
def test_a_connection_cut_in_the_middle_of_a_write_changes_nothing(
    faulty, standin, narrow, make_point, write, after
):
    faulty.open("c", narrow)
    faulty.upsert("c", [make_point(narrow, i) for i in range(8)], 1000)
    newer = [make_point(narrow, i, started=2000, seed=i + 50, note="new") for i in range(8)]
    standin.requests.clear()
    standin.cut(next=lambda one: one.writes, times=1, after=after)
    getattr(faulty, write)("c", newer, 2000)

    assert len(requests(standin, *WRITES)) >= 2
    for one in faulty.get("c", [point.id for point in newer], True):
        assert one.payload["note"] == "new"
        wanted = next(p for p in newer if p.id == one.id)
        same = np.allclose(one.vectors["all-miniLM-l6"], wanted.vectors["all-miniLM-l6"], atol=1e-6)
        assert same == (write != "update_payload")
    assert faulty.describe("c").points == 8


def test_a_server_that_went_away_and_came_back_serves_on(standin, narrow, make_point, protocol, eventually):
    store = opened(standin, qdrant_grpc=protocol, qdrant_retries=0)
    store.open("c", narrow)
    store.upsert("c", [make_point(narrow, 1)], 1)
    standin.stop()
    with pytest.raises(StoreUnavailable, match="away or busy"):
        store.upsert("c", [make_point(narrow, 2)], 1)
    standin.start()
    # A channel that has seen the server go connects again within its pause.
    eventually(lambda: _written(store, make_point(narrow, 2)), 15)
    assert store.describe("c").points == 2
    store.close()


def _written(store: ServerStore, point: Point) -> bool:
    try:
        store.upsert("c", [point], 1)
    except StoreUnavailable:
        return False
    return True


def test_a_patient_store_outlasts_a_restart(standin, narrow, make_point, protocol):
    store = opened(standin, qdrant_grpc=protocol, qdrant_retries=6)
    store.open("c", narrow)
    standin.stop()
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(store.upsert, "c", [make_point(narrow, 1)], 1)
        standin.start()
        writing.result(30)
    assert store.describe("c").points == 1
    store.close()


@pytest.mark.parametrize(
    ("status", "words"),
    [(500, "boom"), (503, "starting"), (429, "Rate limiting exceeded"), (507, "No space left on device")],
)
def test_what_says_nothing_against_the_points_is_unavailable(
    faulty, standin, narrow, make_point, status, words
):
    faulty.open("c", narrow)
    standin.fail(status, words, next=99)
    with pytest.raises(StoreUnavailable, match=words) as raised:
        faulty.upsert("c", [make_point(narrow, 1)], 1)
    assert not isinstance(raised.value, StoreRefused)
    standin.mend()
    faulty.upsert("c", [make_point(narrow, 1)], 1)
    assert faulty.describe("c").points == 1


def test_a_blip_is_not_even_noticed(faulty, standin, narrow, make_point):
    faulty.open("c", narrow)
    standin.fail(503, "starting", next=lambda one: one.writes, times=2)
    faulty.upsert("c", [make_point(narrow, 1)], 1)
    assert faulty.describe("c").points == 1


def test_a_rate_limit_is_waited_for_as_long_as_it_asks_unless_that_is_long(
    faulty, standin, narrow, make_point
):
    faulty.open("c", narrow)
    standin.fail(429, "slow down", retry_after=1, next=lambda one: one.writes, times=1)
    faulty.upsert("c", [make_point(narrow, 1)], 1)
    standin.fail(429, "slow down", retry_after=600, next=lambda one: one.writes, times=1)
    with pytest.raises(StoreUnavailable, match="600 s"):
        faulty.upsert("c", [make_point(narrow, 2)], 1)


def test_a_read_only_server_and_a_full_disk_are_no_fault_of_the_points(faulty, standin, narrow, make_point):
    faulty.open("c", narrow)
    standin.read_only = True
    with pytest.raises(StoreUnfit, match=r"(?i)forbidden"):
        faulty.upsert("c", [make_point(narrow, 1)], 1)
    standin.read_only = False
    standin.disk_full = True
    with pytest.raises(StoreUnavailable, match="No space left"):
        faulty.upsert("c", [make_point(narrow, 1)], 1)
    standin.disk_full = False
    faulty.upsert("c", [make_point(narrow, 1)], 1)


def test_an_answer_that_does_not_come_is_waited_for_so_long(standin, narrow, make_point, protocol):
    store = opened(standin, qdrant_grpc=protocol, qdrant_seconds=1, qdrant_retries=0)
    store.open("c", narrow)
    standin.delay(4.0, next=lambda one: one.writes, times=1)
    with pytest.raises(StoreUnavailable, match="away or busy"):
        store.upsert("c", [make_point(narrow, 1)], 1)
    store.close()


def test_what_a_server_refuses_for_good_is_said_in_its_words(faulty, standin, narrow, make_point):
    faulty.open("c", narrow)
    standin.fail(400, "Wrong input: it has a headache", next=lambda one: one.writes, times=1)
    with pytest.raises(StoreRefused, match="it has a headache"):
        faulty.upsert("c", [make_point(narrow, 1)], 1)


def test_a_collection_that_was_removed_is_made_anew_by_opening_it(server, narrow, make_point):
    server.open("c", narrow)
    server._connection.client.delete_collection("c")
    with pytest.raises(StoreUnavailable, match="exist"):
        server.upsert("c", [make_point(narrow, 1)], 1)
    server.open("c", narrow)
    server.upsert("c", [make_point(narrow, 1)], 1)
    assert server.describe("c").points == 1


def test_two_writers_on_one_server_never_put_old_over_new(standin, narrow, make_point, protocol):
    stores = [opened(standin, qdrant_grpc=protocol) for _ in range(2)]
    stores[0].open("c", narrow)
    ids = range(20)

    def write(turn: int) -> None:
        started = 1000 + turn
        points = [make_point(narrow, i, started=started, text=f"of {started}") for i in ids]
        stores[turn % 2].upsert("c", points, started)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, np.random.default_rng(5).permutation(40).tolist()))
    found = stores[0].get("c", [make_point(narrow, i).id for i in ids], False)
    assert {one.payload["text"] for one in found} == {"of 1039"}
    for store in stores:
        store.close()


def test_vectors_that_another_process_added_are_there_for_all(standin, narrow, wide, make_point, protocol):
    stores = [opened(standin, qdrant_grpc=protocol) for _ in range(4)]
    reader, searcher, writer, other = stores
    for store in stores:
        store.open("c", narrow)
    other.open("c", wide)
    first, second = make_point(wide, 1), make_point(wide, 2)
    other.upsert("c", [first], 1000)

    assert reader.standing("c", [first.id])[first.id].vectors == first.vectors.keys()
    assert [hit.id for hit in searcher.query("c", {"bge-m3": first.vectors["bge-m3"]}, 1)] == [first.id]
    writer.upsert("c", [second], 1000)
    assert ids_of(other, [first, second]) == {first.id, second.id}
    for store in stores:
        store.close()


def test_a_write_to_another_collection_of_the_name_says_nothing_against_the_points(
    standin, narrow, wide, make_point, protocol
):
    first, other = (opened(standin, qdrant_grpc=protocol) for _ in range(2))
    first.open("c", wide)
    other._connection.client.delete_collection("c")
    other.open("c", narrow)

    with pytest.raises(StoreUnavailable, match="Not existing vector name"):
        first.upsert("c", [make_point(wide, 1)], 1)
    first.open("c", wide)
    first.upsert("c", [make_point(wide, 1)], 1)
    assert first.get("c", [make_point(wide, 1).id], True)[0].vectors.keys() == vectors_of(wide, 1).keys()
    for store in (first, other):
        store.close()


def test_two_processes_that_add_vectors_at_once_both_keep_theirs(
    standin, narrow, wide, make_point, protocol, monkeypatch
):
    one, other = (opened(standin, qdrant_grpc=protocol) for _ in range(2))
    code = Plan(primary="qdrant-minilm-onnx")
    one.open("c", narrow)
    record = ServerCollection._record

    def overtaken(found: ServerCollection, metadata: dict[str, Any]) -> None:
        # It has read the record, and not written its own addition yet.
        monkeypatch.setattr(ServerCollection, "_record", record)
        other.open("c", code)
        record(found, metadata)

    monkeypatch.setattr(ServerCollection, "_record", overtaken)
    wanted = {vector.name for plan in (narrow, code, wide) for vector in plan.vectors()}
    assert {vector.name for vector in one.open("c", wide).plan.vectors()} == wanted
    assert {vector.name for vector in other.plan("c").vectors()} == wanted
    point = make_point(other.plan("c"), 1)
    other.upsert("c", [point], 1)
    assert one.standing("c", [point.id])[point.id].vectors == wanted
    for store in (one, other):
        store.close()


def test_a_record_that_lost_a_vector_says_nothing_against_the_points(server, narrow, wide, make_point):
    server.open("c", narrow)
    client = server._connection.client
    before = client.get_collection("c").config.metadata
    server.open("c", wide)
    # As if it had been restored from a backup.
    after = client.get_collection("c").config.metadata
    client.update_collection("c", metadata={**dict.fromkeys(after), **before})
    server.describe("c")

    with pytest.raises(UsageError, match="there is no vector"):
        server.upsert("c", [make_point(wide, 1)], 1)
    server.open("c", wide)
    server.upsert("c", [make_point(wide, 1)], 1)
    assert server.describe("c").plan.companions == wide.companions


def test_no_vector_is_put_beside_a_text_that_came_meanwhile(server, narrow, wide, make_point, monkeypatch):
    """The text is looked at before the write: the write itself must judge it again."""
    server.open("c", wide)
    old = make_point(wide, 1, text="old", only=[narrow.primary])
    server.upsert("c", [old, make_point(wide, 2)], 1000)
    read = ServerCollection.retrieve

    def overtaken(found: ServerCollection, *asked: Any) -> list[Any]:
        seen = read(found, *asked)
        server.upsert("c", [make_point(wide, 1, text="new", started=1500, only=[narrow.primary])], 1500)
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(ServerCollection, "retrieve", overtaken)
        updates = [make_point(wide, n, text=text, started=2000, seed=9) for n, text in ((1, "old"), (2, ""))]
        server.update_vectors("c", updates, 2000)

    standing = server.standing("c", [old.id, updates[1].id])
    assert standing[old.id].vectors == {narrow.primary}
    first, second = server.get("c", [old.id, updates[1].id], True)
    assert (first.payload["text"], first.payload["v5"]["started"]) == ("new", 1500)
    assert second.payload["v5"]["started"] == 2000
    np.testing.assert_allclose(second.vectors["bge-m3"], updates[1].vectors["bge-m3"], atol=1e-6)


def test_a_plan_is_read_back_as_it_was(server, wide: Plan):
    plan = wide.model_copy(update={"index": PROFILES["low-memory"]})
    server.open("c", plan)
    assert server.describe("c").plan == plan
    assert server.plan("c") == plan
