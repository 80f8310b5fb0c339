"""The stand-in, driven by Qdrant's own client over both protocols."""

from __future__ import annotations

import json
import shutil
import signal
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as proto
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from tests.qdrant_standin import Standin
from tests.qdrant_standin.rest_server import MAX_BODY

ROOT = Path(__file__).parents[2]
A = str(uuid.UUID(int=1))
B = str(uuid.UUID(int=2))
ABSENT = str(uuid.UUID(int=99))
VECTORS = {
    "dense": models.VectorParams(size=3, distance=models.Distance.COSINE),
    "multi": models.VectorParams(
        size=2,
        distance=models.Distance.COSINE,
        datatype=models.Datatype.FLOAT16,
        on_disk=True,
        hnsw_config=models.HnswConfigDiff(m=0),
        multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
    ),
}
POINTS = [
    models.PointStruct(
        id=A,
        vector={
            "dense": [1.0, 0.0, 0.0],
            "multi": [[0.0, 1.0], [1.0, 0.0]],
            "sparse": models.SparseVector(indices=[3, 70_000], values=[1.0, 0.5]),
        },
        payload={"v5": {"started": 1000}, "k": "a", "list": [1, 2.5, None, {"x": True}]},
    ),
    models.PointStruct(id=B, vector={"dense": [0.0, 1.0, 0.0]}, payload={"v5": {"started": 2000}, "k": "b"}),
]
NOT_NEWER = models.Filter(must_not=[models.FieldCondition(key="v5.started", range=models.Range(gt=1500))])


def client_of(standin: Standin, protocol: str, **more: Any) -> QdrantClient:
    return QdrantClient(
        url=standin.url,
        grpc_port=standin.grpc_port,
        prefer_grpc=protocol == "grpc",
        check_compatibility=False,
        timeout=10,
        **more,
    )


@pytest.fixture(params=["grpc", "rest"], scope="module")
def protocol(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def _served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    with Standin(tmp_path_factory.mktemp("standin"), version="1.18.0") as one:
        yield one


@pytest.fixture(scope="module")
def _client(_served: Standin, protocol: str) -> Iterator[QdrantClient]:
    one = client_of(_served, protocol)
    yield one
    one.close()


@pytest.fixture(scope="module")
def web(_served: Standin) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=_served.url) as one:
        yield one


@pytest.fixture
def standin(_served: Standin, web: httpx.Client) -> Iterator[Standin]:
    """Empty and faultless; one serves all tests, as starting takes longer than most."""
    _served.requests.clear()
    yield _served
    _served.mend()
    web.delete("/collections/c").raise_for_status()


@pytest.fixture
def client(standin: Standin, _client: QdrantClient) -> QdrantClient:
    return _client


def make(client: QdrantClient, **more: Any) -> None:
    client.create_collection(
        "c", VECTORS, sparse_vectors_config={"sparse": models.SparseVectorParams()}, **more
    )
    client.upsert("c", POINTS)


def refused(call: Callable[[], Any]) -> tuple[Any, str]:
    """The status (gRPC code or HTTP) and the words of a refusal."""
    with pytest.raises((grpc.RpcError, UnexpectedResponse)) as caught:
        call()
    if isinstance(caught.value, UnexpectedResponse):
        said = caught.value.content.decode()
        return caught.value.status_code, json.loads(said)["status"]["error"] if said[:1] == "{" else said
    return caught.value.code(), caught.value.details()


def read(client: QdrantClient, *ids: str, **more: Any) -> dict[str, Any]:
    """Points by their ids, asked for until the client has seen that its connection was cut."""
    end = time.monotonic() + 10
    while True:
        try:
            return {str(one.id): one for one in client.retrieve("c", list(ids), **more)}
        except (grpc.RpcError, ResponseHandlingException):
            if time.monotonic() > end:
                raise


def test_it_tells_its_version_without_a_key(tmp_path, protocol):
    with Standin(tmp_path, version="1.17.3", api_key="secret") as standin:
        client = client_of(standin, protocol)
        assert client.info().version == "1.17.3"
        assert httpx.get(standin.url).json()["version"] == "1.17.3"
        client.close()


def test_a_collection_echoes_its_configuration(client):
    assert not client.collection_exists("c")
    quantised = models.ScalarQuantization(scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8))
    make(client, metadata={"plan": {"x": [1, None]}, "n": 1}, quantization_config=quantised)
    client.create_payload_index("c", "k", models.PayloadSchemaType.KEYWORD)
    client.create_payload_index("c", "v5.started", models.PayloadSchemaType.INTEGER)
    info = client.get_collection("c")
    assert info.status == models.CollectionStatus.GREEN
    assert info.points_count == 2
    assert info.config.params.vectors == VECTORS
    assert info.config.params.sparse_vectors.keys() == {"sparse"}
    assert info.config.metadata == {"plan": {"x": [1, None]}, "n": 1}
    assert info.config.quantization_config.scalar.type == models.ScalarType.INT8
    assert {name: one.data_type for name, one in info.payload_schema.items()} == {
        "k": models.PayloadSchemaType.KEYWORD,
        "v5.started": models.PayloadSchemaType.INTEGER,
    }
    assert client.collection_exists("c")
    assert [one.name for one in client.get_collections().collections] == ["c"]


def test_a_change_merges_metadata_and_graphs(client):
    make(client, metadata={"a": 1, "b": 2, "c": 3})
    client.update_collection(
        "c",
        metadata={"b": 20, "c": None},
        hnsw_config=models.HnswConfigDiff(m=32),
        vectors_config={"multi": models.VectorParamsDiff(hnsw_config=models.HnswConfigDiff(ef_construct=7))},
        quantization_config=models.Disabled.DISABLED,
    )
    config = client.get_collection("c").config
    assert config.metadata == {"a": 1, "b": 20}
    assert (config.hnsw_config.m, config.hnsw_config.ef_construct) == (32, 100)
    graph = config.params.vectors["multi"].hnsw_config
    assert (graph.m, graph.ef_construct) == (0, 7)


def test_points_are_read_as_they_were_written(client):
    make(client)
    read = client.retrieve("c", [B, ABSENT, A], with_vectors=True)
    assert [one.id for one in read] == [B, A]
    assert read[1].payload == POINTS[0].payload
    assert read[1].vector == POINTS[0].vector
    (one,) = client.retrieve("c", [A], with_payload=["k"], with_vectors=["dense"])
    assert (one.payload, one.vector) == ({"k": "a"}, {"dense": [1.0, 0.0, 0.0]})


def test_filters_choose(client):
    make(client)

    def ids(**given: Any) -> list[str]:
        points, after = client.scroll("c", models.Filter(**given), limit=10)
        assert after is None
        assert client.count("c", models.Filter(**given)).count == len(points)
        return [one.id for one in points]

    has_multi = models.HasVectorCondition(has_vector="multi")
    is_b = models.FieldCondition(key="k", match=models.MatchValue(value="b"))
    assert ids(must=[has_multi]) == [A]
    assert ids(must_not=[has_multi]) == [B]
    assert ids(should=[has_multi, is_b]) == [A, B]
    assert ids(must=[models.HasIdCondition(has_id=[B, ABSENT]), is_b]) == [B]
    assert ids(must=[models.FieldCondition(key="k", match=models.MatchAny(any=["b", "z"]))]) == [B]
    assert ids(must=[NOT_NEWER]) == [A]
    page, after = client.scroll("c", limit=1)
    assert [one.id for one in page] == [A]
    assert [one.id for one in client.scroll("c", limit=1, offset=after)[0]] == [B]


def test_queries_rank_by_one_vector_or_by_several(client):
    make(client)
    sparse = models.SparseVector(indices=[3], values=[2.0])
    assert [hit.id for hit in client.query_points("c", [0.0, 1.0, 0.1], using="dense").points] == [B, A]
    (hit,) = client.query_points("c", sparse, using="sparse", with_payload=["k"]).points
    assert (hit.id, hit.score, hit.payload) == (A, 2.0, {"k": "a"})
    (hit,) = client.query_points("c", [[0.0, 1.0]], using="multi", with_payload=False).points
    assert hit.score == pytest.approx(1.0, abs=1e-3)
    fused = client.query_points(
        "c",
        prefetch=[
            models.Prefetch(query=[0.0, 1.0, 0.1], using="dense", limit=5),
            models.Prefetch(query=sparse, using="sparse", limit=5),
        ],
        query=models.RrfQuery(rrf=models.Rrf(k=4)),
        limit=2,
    ).points
    assert [hit.id for hit in fused] == [A, B]
    assert [hit.score for hit in fused] == pytest.approx([1 / 4 + 1 / 5, 1 / 4])


def test_conditional_writes_leave_what_does_not_match(client):
    make(client)
    changed = [
        models.PointStruct(id=one, vector={"dense": [0.0, 0.0, 1.0]}, payload={"mark": 1})
        for one in (A, B, ABSENT)
    ]
    client.upsert("c", changed, update_filter=NOT_NEWER)
    assert {i: one.payload.get("mark") for i, one in read(client, A, B, ABSENT).items()} == {
        A: 1,
        B: None,
        ABSENT: 1,
    }
    vectors = [models.PointVectors(id=one, vector={"dense": [1.0, 0.0, 0.0]}) for one in (A, B)]
    client.update_vectors("c", vectors, update_filter=NOT_NEWER)
    standing = read(client, A, B, with_vectors=["dense"])
    assert [standing[i].vector["dense"] for i in (A, B)] == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    client.upsert("c", changed[1:2], update_mode=models.UpdateMode.INSERT_ONLY)
    assert read(client, B)[B].payload["k"] == "b"


def test_payloads_vectors_and_points_are_changed_and_removed(client):
    make(client)
    only_b = models.Filter(must=[models.HasIdCondition(has_id=[B])])
    client.set_payload("c", {"more": 1}, points=[A])
    client.overwrite_payload("c", {"all": 1}, points=only_b)
    client.delete_vectors("c", ["multi"], points=[A])
    standing = read(client, A, B, with_vectors=True)
    assert standing[A].payload == {**POINTS[0].payload, "more": 1}
    assert standing[A].vector.keys() == {"dense", "sparse"}
    assert standing[B].payload == {"all": 1}
    client.batch_update_points(
        "c",
        [
            models.OverwritePayloadOperation(
                overwrite_payload=models.SetPayload(payload={"q": 1}, filter=only_b)
            ),
            models.UpdateVectorsOperation(
                update_vectors=models.UpdateVectors(
                    points=[models.PointVectors(id=B, vector={"multi": [[0.0, 1.0]]})]
                )
            ),
            models.DeleteOperation(delete=models.PointIdsList(points=[A])),
        ],
    )
    standing = read(client, A, B, with_vectors=True)
    assert standing.keys() == {B}
    assert (standing[B].payload, standing[B].vector["multi"]) == ({"q": 1}, [[0.0, 1.0]])
    client.delete("c", only_b)
    assert client.count("c").count == 0
    assert client.delete_collection("c")
    assert not client.delete_collection("c")


def test_a_vector_name_is_added_once(client):
    make(client)
    added = models.DenseVectorNameConfig(
        dense=models.DenseVectorConfig(size=2, distance=models.Distance.COSINE)
    )
    for _ in range(2):
        client.create_vector_name("c", "new", added)
    client.create_vector_name("c", "terms", models.SparseVectorNameConfig(sparse=models.SparseVectorConfig()))
    config = client.get_collection("c").config.params
    assert config.vectors.keys() == {*VECTORS, "new"}
    assert config.sparse_vectors.keys() == {"sparse", "terms"}
    client.update_vectors("c", [models.PointVectors(id=A, vector={"new": [0.0, 1.0]})])
    assert read(client, A, with_vectors=["new"])[A].vector == {"new": [0.0, 1.0]}
    added.dense.size = 3
    _, said = refused(lambda: client.create_vector_name("c", "new", added))
    assert said == "Wrong input: Vector `new` already exists with a different configuration"


def _upsert(vector: Any) -> Callable[[QdrantClient], Any]:
    return lambda client: client.upsert("c", [models.PointStruct(id=A, vector=vector)])


@pytest.mark.parametrize(
    ("call", "http", "code", "said"),
    [
        (lambda c: c.get_collection("x"), 404, "NOT_FOUND", "Not found: Collection `x` doesn't exist!"),
        (
            lambda c: c.create_collection("c", VECTORS),
            409,
            "ALREADY_EXISTS",
            "Wrong input: Collection `c` already exists!",
        ),
        (
            _upsert({"dense": [1.0, 2.0]}),
            400,
            "INVALID_ARGUMENT",
            "Wrong input: Vector dimension error: expected dim: 3, got 2",
        ),
        (
            _upsert({"nobody": [1.0]}),
            400,
            "INVALID_ARGUMENT",
            "Wrong input: Not existing vector name error: nobody",
        ),
        (
            _upsert({"sparse": models.SparseVector(indices=[1, 1], values=[1.0, 1.0])}),
            422,
            "INVALID_ARGUMENT",
            "Validation error in body: [indices: must be unique]",
        ),
        (
            lambda c: c.query_points("c", [1.0], using="nobody"),
            400,
            "INVALID_ARGUMENT",
            "Wrong input: Not existing vector name error: nobody",
        ),
        (
            lambda c: c.set_payload("c", {"a": 1}, points=[ABSENT]),
            404,
            "NOT_FOUND",
            f"Not found: No point with id {ABSENT} found",
        ),
    ],
)
def test_a_request_that_cannot_be_done_is_refused(client, protocol, call, http, code, said):
    make(client)
    assert refused(lambda: call(client)) == (http if protocol == "rest" else grpc.StatusCode[code], said)


def test_a_body_that_is_no_request_is_refused(web, client):
    make(client)
    for body in (b"{", b'{"points": [{"id": 1.5, "vector": {}}]}', b'{"points": [], "wrong": 1}'):
        answer = web.put("/collections/c/points", content=body)
        assert answer.status_code == 400
        assert answer.json()["status"]["error"].startswith("Format error in JSON body: ")
    assert web.get("/nowhere").status_code == 404


def test_rest_refuses_what_is_too_large_and_grpc_does_not(standin, client, protocol):
    make(client)
    point = models.PointStruct(id=A, vector={}, payload={"text": "x" * MAX_BODY})
    if protocol == "grpc":
        client.upsert("c", [point])
        assert len(read(client, A)[A].payload["text"]) == MAX_BODY
    else:
        status, said = refused(lambda: client.upsert("c", [point]))
        size = standin.requests[-1].nbytes
        assert status == 400
        assert (
            said
            == f"Payload error: JSON payload ({size} bytes) is larger than allowed (limit: {MAX_BODY} bytes)."
        )


def test_an_old_server_skips_what_it_does_not_know(tmp_path, protocol):
    with Standin(tmp_path, version="1.15.0") as standin:
        client = client_of(standin, protocol)
        make(client, metadata={"a": 1})
        client.upsert(
            "c", [models.PointStruct(id=B, vector={}, payload={"mark": 1})], update_filter=NOT_NEWER
        )
        assert read(client, B)[B].payload == {"mark": 1}
        assert client.get_collection("c").config.metadata is None
        added = models.SparseVectorNameConfig(sparse=models.SparseVectorConfig())
        status, _ = refused(lambda: client.create_vector_name("c", "new", added))
        assert status == (404 if protocol == "rest" else grpc.StatusCode.UNIMPLEMENTED)
        client.close()


def test_keys_are_checked(tmp_path, protocol):
    with Standin(tmp_path, api_key="secret", read_only_api_key="look") as standin:
        # Warns, rightly, that a key goes over plain text.
        with pytest.warns(UserWarning, match="insecure"):
            clients = {key: client_of(standin, protocol, api_key=key) for key in ("secret", "look", "wrong")}
        clients[None] = client_of(standin, protocol)
        make(clients["secret"])
        assert clients["look"].count("c").count == 2
        grpc_code, by_grpc = grpc.StatusCode, protocol == "grpc"
        unauthorized = grpc_code.UNAUTHENTICATED if by_grpc else 401
        assert refused(lambda: clients["wrong"].count("c")) == (unauthorized, "Invalid API key or JWT")
        assert refused(lambda: clients[None].count("c")) == (
            unauthorized,
            "Must provide an API key or an Authorization bearer token",
        )
        assert refused(lambda: clients["look"].upsert("c", POINTS)) == (
            grpc_code.PERMISSION_DENIED if by_grpc else 403,
            "Forbidden: Global manage access is required",
        )
        for client in clients.values():
            client.close()


def test_no_more_requests_are_kept_than_memory_allows(standin, client, monkeypatch):
    make(client)
    standin.requests.clear()
    client.count("c")
    monkeypatch.setattr("tests.qdrant_standin.gate.BYTES_KEPT", 300)
    for _ in range(3):
        client.upsert("c", POINTS)
    assert [request.operation for request in standin.requests] == ["Points.Upsert"]


def test_requests_are_recorded(standin, client, protocol):
    make(client)
    request = standin.requests[-1]
    assert (request.operation, request.collection, request.writes) == ("Points.Upsert", "c", True)
    assert request.call == ("PUT /collections/c/points" if protocol == "rest" else "/qdrant.Points/Upsert")
    assert len(request.message.points) == 2
    if protocol == "grpc":
        assert request.nbytes == len(request.message.SerializeToString())
    else:
        assert request.nbytes > 100


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (500, "INTERNAL"),
        (503, "UNAVAILABLE"),
        (507, "RESOURCE_EXHAUSTED"),
    ],
)
def test_requests_are_refused_on_demand(standin, client, protocol, status, code):
    make(client)
    standin.fail(status, "words", next=2, operation="Points.Count")
    assert client.collection_exists("c")
    for _ in range(2):
        found, said = refused(lambda: client.count("c"))
        assert found == (status if protocol == "rest" else grpc.StatusCode[code])
        assert said.endswith("words")
    assert client.count("c").count == 2


def test_a_rate_limit_says_when_to_come_back(standin, client):
    make(client)
    standin.fail(429, retry_after=7, next=lambda request: request.writes, times=1)
    assert client.count("c").count == 2
    with pytest.raises(ResourceExhaustedResponse) as caught:
        client.upsert("c", POINTS)
    assert caught.value.retry_after_s == 7
    client.upsert("c", POINTS)


@pytest.mark.parametrize("after", [False, True])
def test_a_connection_is_cut_before_or_after_the_work(standin, client, after):
    make(client)
    standin.cut(operation="Points.Upsert", after=after)
    with pytest.raises((grpc.RpcError, ResponseHandlingException)):
        client.upsert("c", [models.PointStruct(id=ABSENT, vector={})])
    assert bool(read(client, ABSENT)) == after


def test_a_delay_delays(standin, client):
    make(client)
    standin.delay(0.2)
    began = time.monotonic()
    client.count("c")
    assert time.monotonic() - began >= 0.2


def test_writes_are_forbidden_or_find_no_space(standin, client, protocol):
    make(client)
    by_grpc = protocol == "grpc"
    standin.read_only = True
    assert refused(lambda: client.upsert("c", POINTS)) == (
        grpc.StatusCode.FAILED_PRECONDITION if by_grpc else 403,
        "Storage locked: Write operations are forbidden",
    )
    standin.mend()
    standin.disk_full = True
    assert refused(lambda: client.upsert("c", POINTS)) == (
        grpc.StatusCode.INTERNAL if by_grpc else 500,
        "Service internal error: No space left on device: WAL buffer size exceeds available disk space",
    )
    assert client.count("c").count == 2
    standin.mend()
    client.upsert("c", POINTS)


def test_nobody_hears_of_a_failed_write_that_nobody_waits_for(client):
    make(client)
    result = client.upsert("c", [models.PointStruct(id=A, vector={"dense": [1.0]})], wait=False)
    assert result.status == models.UpdateStatus.ACKNOWLEDGED


def test_a_restart_keeps_ports_and_points(standin, client):
    make(client, metadata={"a": 1})
    standin.stop()
    with pytest.raises((grpc.RpcError, ResponseHandlingException)):
        client.count("c")
    standin.start()
    assert read(client, A)[A].payload == POINTS[0].payload
    assert client.get_collection("c").config.metadata == {"a": 1}


def _program(root: Path, *arguments: str) -> tuple[subprocess.Popen[str], dict[str, int]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.qdrant_standin", "--root", str(root), *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, json.loads(process.stdout.readline())


def test_a_killed_program_loses_nothing_that_it_acknowledged(tmp_path):
    process, ports = _program(tmp_path)
    client = QdrantClient("127.0.0.1", **ports, prefer_grpc=True, check_compatibility=False)
    make(client)
    process.kill()
    process.communicate()
    process, again = _program(tmp_path, "--port", str(ports["port"]), "--grpc-port", str(ports["grpc_port"]))
    assert again == ports
    assert read(client, A, with_vectors=True)[A].vector == POINTS[0].vector
    client.close()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 0


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_both_protocols_are_served_over_tls(tmp_path):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    ask = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -keyout {key} -out {certificate}"
    subprocess.run([*ask.split(), "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    with Standin(tmp_path / "root", tls=(certificate, key)) as standin:
        assert standin.url.startswith("https://")
        trust = ssl.create_default_context(cafile=certificate)
        rest = QdrantClient(url=standin.url, verify=trust, check_compatibility=False)
        make(rest)
        rest.close()
        credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{standin.grpc_port}", credentials) as channel:
            found = proto.PointsStub(channel).Count(proto.CountPoints(collection_name="c"))
        assert found.result.count == 2
