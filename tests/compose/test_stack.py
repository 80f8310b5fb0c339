"""The services of profile `cpu`, run as docker-compose.yml says, as processes of this machine."""

from __future__ import annotations

import base64
import http.client
import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import qdrant_client

from ledger.ledger import Ledger
from registry.settings import load_settings
from tests.compose.compose_file import SECRETS
from tests.compose.stack import Stack

pytestmark = pytest.mark.fleet

WORKERS = ["worker-qdrant-minilm-onnx", "worker-all-minilm-l6"]
PLAN = ["--primary", "qdrant-minilm-onnx", "--companion", "all-miniLM-l6"]
#: A real server instead of the stand-in; the collections made there are removed again.
SERVER = os.environ.get("V5_TEST_QDRANT_URL", "")
KEY = {"V5_QDRANT_API_KEY": os.environ.get("V5_TEST_QDRANT_API_KEY", "")} if SERVER else {}
VARIABLES = SECRETS | {"HF_HUB_OFFLINE": "1", "REDIS_MAXMEMORY": "200mb", "V5_THREADS": "1"}
#: As in the fleet's other tests: a killed worker's lease runs out in seconds, and a job takes some.
CLOCKS = {
    "V5_FAKE_SECONDS": "0.004",
    "V5_LEASE_SECONDS": "4",
    "V5_RING_SECONDS": "1.5",
    "V5_RECONCILE_SECONDS": "0.2",
}
COUNT = 400


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """The directory that the producer sees as /corpus."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    return folder


@pytest.fixture
def make_stack(data_dir: Path, corpus: Path) -> Iterator[Callable[..., Stack]]:
    """Makes a stack (not started) with variables of `.env` in addition; ended at the end."""
    made: list[Stack] = []

    def make(cache: Path | None = None, qdrant_url: str = "", **variables: str) -> Stack:
        volumes = {"cache": cache} if cache else {}
        made.append(Stack(data_dir / str(len(made)), VARIABLES | variables, corpus, volumes, qdrant_url))
        return made[-1]

    yield make
    for stack in made:
        stack.close()


@pytest.fixture
def collection() -> Iterator[str]:
    """The name of a collection that does not exist yet."""
    name = f"compose-{uuid.uuid4().hex}"
    yield name
    if SERVER:
        client = qdrant_client.QdrantClient(url=SERVER, api_key=KEY["V5_QDRANT_API_KEY"] or None)
        client.delete_collection(name)
        client.close()


def ended(process: Any, code: int = 0, timeout: float = 60.0) -> Any:
    """Wait for a command of the producer; its last line, as JSON."""
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == code, out + err
    assert "Traceback" not in err
    return json.loads(out.splitlines()[-1])


def write(corpus: Path, texts: list[str]) -> None:
    lines = [json.dumps({"id": f"c{i}", "text": text}) for i, text in enumerate(texts)]
    (corpus / "chunks.jsonl").write_text("\n".join(lines) + "\n")


def page(stack: Stack, password: str = "") -> int:
    """HTTP status of Flower's first page."""
    connection = http.client.HTTPConnection("127.0.0.1", int(stack.port("5555")), timeout=20)
    login = base64.b64encode(f"v5:{password}".encode()).decode()
    connection.request("GET", "/", headers={"Authorization": f"Basic {login}"} if password else {})
    status = connection.getresponse().status
    connection.close()
    return status


def test_a_job_outlives_a_killed_worker_and_everything_ends_in_its_time(
    make_stack: Callable[..., Stack], corpus: Path, collection: str, eventually: Callable[..., Any]
) -> None:
    stack = make_stack(qdrant_url=SERVER, V5_FAKE_ENCODERS="true", **KEY)
    for name in ("aggregator", "producer", *WORKERS):
        stack.services[name]["environment"] |= CLOCKS
    write(corpus, [f"chunk number {i} " + "word " * (i % 40) for i in range(COUNT)])
    stack.up("cpu", eventually)

    producer = stack.run("producer", "submit", "/corpus", "-c", collection, *PLAN, "--json")
    ledger = Ledger(load_settings(redis_url=stack.environment("producer")["V5_REDIS_URL"]))

    def staged() -> bool:
        assert producer.poll() is None, producer.communicate()
        return bool(ledger.jobs.list()) and ledger.jobs.list()[0].staged > 0

    eventually(staged)
    stack.kill(WORKERS[0])
    dead = stack.health(WORKERS[0])
    assert dead.returncode == 1
    assert "does not run" in dead.stderr
    assert ledger.jobs.list()[0].state != "done", "the job was over before the kill"
    ledger.close()
    # What `restart: unless-stopped` does.
    stack.start(WORKERS[0])
    end = ended(producer, timeout=90)
    assert (end["chunks"], end["done"], end["dead"]) == (COUNT, COUNT, 0)
    stack.wait_healthy(WORKERS[0], eventually)

    found = ended(stack.run("producer", "verify", "/corpus", "-c", collection, "--json"))
    assert (found["present"], found["missing"], found["stale"]) == (COUNT, 0, 0)
    hits = ended(stack.run("producer", "search", "chunk number 7", "-c", collection, "--json"))
    assert hits

    assert page(stack) == 401
    assert page(stack, "wrong") == 401
    assert page(stack, SECRETS["V5_FLOWER_PASSWORD"]) == 200

    for name in ("flower", *WORKERS, "aggregator", "redis"):
        assert stack.stop(name) == 0, stack.log(name)[-2000:]
    logs = [path.read_text() for path in (stack.root / "logs").iterdir()]
    assert not [secret for secret in SECRETS.values() for log in logs if secret in log]


@pytest.mark.weights
@pytest.mark.slow
def test_the_real_pair_finds_what_is_meant(
    make_stack: Callable[..., Stack], corpus: Path, collection: str, eventually: Callable[..., Any]
) -> None:
    pytest.importorskip("sentence_transformers")
    # The exported graph is kept, as the volume keeps it.
    stack = make_stack(load_settings().cache_dir, SERVER, **KEY)
    write(corpus, ["how to bake bread with sourdough", "parse an ISO 8601 date", "tune a violin by ear"])
    stack.up("cpu", eventually)
    end = ended(stack.run("producer", "submit", "/corpus", "-c", collection, *PLAN, "--json"))
    assert (end["done"], end["dead"]) == (3, 0)
    hits = ended(stack.run("producer", "search", "reading timestamps in code", "-c", collection, "--json"))
    assert "ISO 8601" in json.dumps(hits[0])


def test_a_wrong_redis_password_is_said_and_unhealthy(
    make_stack: Callable[..., Stack], eventually: Callable[..., Any]
) -> None:
    stack = make_stack(V5_REDIS_URL="redis://:not-the-password@redis:6379/0", V5_FAKE_ENCODERS="true")
    stack.start("redis")
    stack.wait_healthy("redis", eventually)
    name = WORKERS[0]
    stack.start(name)
    assert stack.processes[name].wait(30) != 0
    assert "refused the login" in stack.log(name)
    assert "Traceback" not in stack.log(name)
    health = stack.health(name)
    assert health.returncode == 1
    assert "refused the login" in health.stderr
    assert "not-the-password" not in stack.log(name) + health.stderr


def test_a_wrong_api_key_is_said_and_unhealthy(
    make_stack: Callable[..., Stack], eventually: Callable[..., Any]
) -> None:
    stack = make_stack(V5_FAKE_ENCODERS="true")
    for name in ("redis", "qdrant"):
        stack.start(name)
        stack.wait_healthy(name, eventually)
    stack.services["aggregator"]["environment"]["V5_QDRANT_API_KEY"] = "not-the-key"
    stack.start("aggregator")
    eventually(lambda: "V5_QDRANT_API_KEY" in stack.log("aggregator"), 30, "the key is named in the log")
    assert stack.health("aggregator").returncode == 1
    assert "Traceback" not in stack.log("aggregator")
    assert "not-the-key" not in stack.log("aggregator")


def test_a_password_that_breaks_the_url_is_refused(make_stack: Callable[..., Stack]) -> None:
    stack = make_stack(REDIS_PASSWORD="p@ss/word")
    stack.start("redis")
    assert stack.processes["redis"].wait(10) == 64
    assert "REDIS_PASSWORD may hold letters, digits and" in stack.log("redis")
    assert "p@ss" not in stack.log("redis")
