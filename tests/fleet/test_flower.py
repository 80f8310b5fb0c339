"""Flower on a real fleet, over HTTP and in a real browser.

With FLOWER_SCREENSHOTS=FOLDER the pages are kept there as pictures, as docs/images has them.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from ledger.alive import Process
from ledger.doorbell import Doorbell
from ledger.ledger import Ledger
from registry.celery_app import make_app
from tests.redis_servers import ServerFactory, fleet_rights, make_certificates, missing, tls_kind

pytestmark = pytest.mark.fleet

PATHS = (
    "/", "/workers", "/tasks", "/broker", "/metrics", "/api/workers", "/api/tasks", "/api/queues/length",
    "/static/css/flower.css", "/login", "/nothing", "/healthcheck/x",
)  # fmt: skip
CONTROL = (
    "/api/worker/shutdown/a@b", "/api/worker/pool/shrink/a@b", "/api/worker/queue/cancel-consumer/a@b",
    "/api/task/revoke/1", "/api/task/send-task/v5.embed", "/api/task/rate-limit/v5.embed",
)  # fmt: skip


@dataclass(frozen=True)
class Visitor:
    """Somebody who asks Flower for pages."""

    url: str
    login: str = ""

    @property
    def authorization(self) -> dict[str, str]:
        """The header of the login, if there is one."""
        return (
            {"Authorization": f"Basic {base64.b64encode(self.login.encode()).decode()}"} if self.login else {}
        )

    def ask(self, method: str, path: str) -> tuple[int, str]:
        """Status and body."""
        host = self.url.split("/")[2]
        connection = http.client.HTTPConnection(host, timeout=30)
        connection.request(method, path, headers=self.authorization)
        answer = connection.getresponse()
        status, body = answer.status, answer.read().decode()
        connection.close()
        return status, body

    def get(self, path: str) -> str:
        """A page that must be there."""
        status, body = self.ask("GET", path)
        assert status == 200, (path, status, body)
        return body


def flower_url(fleet: Any) -> str:
    """Where the running Flower says it is; empty while there is none."""
    ledger = Ledger(fleet.settings())
    try:
        return next((p.note for p in ledger.alive.list() if p.kind == "flower"), "")
    finally:
        ledger.close()


def password(fleet: Any) -> str:
    return (fleet.data_dir / "flower.password").read_text().strip()


@pytest.fixture
def start(
    make_fleet: Callable[..., Any], redis_server: object, eventually: Callable[..., Any]
) -> Callable[..., Any]:
    """Starts `v5 flower` on a server without any worker; gives the fleet and the process."""

    @contextmanager
    def run(*options: str, **settings: Any) -> Iterator[tuple[Any, subprocess.Popen[str], str]]:
        fleet = make_fleet(alive_seconds="3", **settings)
        process = fleet.start("flower", "--port", "0", *options)
        try:
            url = eventually(
                lambda: process.poll() is None and flower_url(fleet), what="Flower announces itself"
            )
            yield fleet, process, url
        finally:
            process.kill()
            process.communicate()

    return run


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[webdriver.Chrome]:
    """A headless Chromium with a profile of its own."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        missing("a browser (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1640,860",
    ):  # fmt: skip
        options.add_argument(argument)
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield running
    running.quit()


def keep(browser: webdriver.Chrome, name: str) -> None:
    folder = os.environ.get("FLOWER_SCREENSHOTS")
    if folder:
        assert browser.save_screenshot(str(Path(folder) / f"{name}.png"))


def rows(browser: webdriver.Chrome, table: str) -> list[list[str]]:
    """The cells of a table as a person reads them; a name too long for its cell is one word again."""
    script = """return [...document.querySelectorAll(arguments[0] + ' tbody tr')].map(
        row => [...row.cells].map(cell => cell.innerText.trim()))"""
    found: list[list[str]] = browser.execute_script(script, f"#{table}")
    return [[cell.replace("\n", "") for cell in row] for row in found]


def test_the_pages_show_job_batch_model_and_step(
    fake_fleet: Any, corpus: Callable[..., Path], browser: webdriver.Chrome, eventually: Callable[..., Any]
) -> None:
    fake_fleet.environment |= {"V5_FLOWER_PORT": "0", "V5_FAKE_SECONDS": "0.002"}
    plan = ("--primary", "qdrant-minilm-onnx", "--companion", "all-miniLM-l6")
    fake_fleet.up(*plan, "--flower")
    url = flower_url(fake_fleet)
    shown = {row["name"]: row for row in fake_fleet.ok("ps")["processes"]}
    assert (shown["flower"]["condition"], shown["flower"]["note"]) == ("ready", url)
    anybody, visitor = Visitor(url), Visitor(url, f"v5:{password(fake_fleet)}")
    # Flower knows what it heard; it must listen before the job begins.
    eventually(lambda: len(json.loads(visitor.get("/workers?json=1"))["data"]) == 3, what="three heartbeats")

    job = fake_fleet.ok(
        "submit", str(corpus(64, text=lambda i: f"UNSPOKENTEXT {i}")), "-c", "c"
    )["job"]  # fmt: skip
    fake_fleet.ok("search", "UNSPOKENQUERY", "-c", "c")

    browser.get(url + "tasks")
    assert "tasks-table" not in browser.page_source
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd("Network.setExtraHTTPHeaders", {"headers": visitor.authorization})
    browser.get(url + "tasks")
    models = plan[1::2]
    steps = [*(f"{model} · embed" for model in models), "aggregate"]
    expected = {(f"job {job} · batch {n}", step) for n in range(4) for step in steps}
    wait = WebDriverWait(browser, 20)
    browser.execute_script("$('#tasks-table').DataTable().page.len(50).draw()")
    wait.until(lambda b: expected <= {(r[0], r[1]) for r in rows(b, "tasks-table") if r[2] == "SUCCESS"})
    found = {(row[0], row[1]): row for row in rows(browser, "tasks-table")}
    embedded = found[f"job {job} · batch 3", "all-miniLM-l6 · embed"]
    assert embedded[3] == "embedded"
    assert embedded[6].startswith("worker-all-miniLM-l6-")
    assert found[f"job {job} · batch 3", "aggregate"][3] == "written"
    requests = {step for whose, step in found if re.fullmatch(r"request \w{8}", whose)}
    assert {"store · search", *(f"{model} · embed query" for model in models)} <= requests
    browser.execute_script("$('#tasks-table').DataTable().page.len(15).draw()")
    wait.until(lambda b: len(rows(b, "tasks-table")) == 15)
    keep(browser, "flower-tasks")
    browser.execute_script(f"$('#tasks-table').DataTable().search('{job} kwargs:all-miniLM-l6').draw()")
    wait.until(
        lambda b: {row[0] for row in rows(b, "tasks-table")} == {f"job {job} · batch {n}" for n in range(4)}
    )
    assert {row[1] for row in rows(browser, "tasks-table")} == {"all-miniLM-l6 · embed"}

    browser.find_element(By.CSS_SELECTOR, "#tasks-table tbody tr td:last-child a").click()
    wait.until(lambda b: b.find_elements(By.ID, "task-page"))
    detail = browser.find_element(By.ID, "task-page").text
    assert re.search(r"Arguments\n(job [\w-]+ · batch \d+|request \w{8})\nKeyword arguments\n\S+", detail), (
        detail
    )

    browser.get(url + "workers")
    wait.until(lambda b: sum("Online" in " ".join(row) for row in rows(b, "workers-table")) == 3)
    keep(browser, "flower-workers")
    names = " ".join(row[0] for row in rows(browser, "workers-table"))
    worker = next(iter(re.findall(r"worker-all-miniLM-l6-\d+@\S+", names)))
    browser.get(f"{url}worker/{worker}")
    assert browser.find_element(By.ID, "workername").text == worker
    assert not browser.find_elements(By.ID, "worker-shutdown")
    browser.get(url + "broker")
    consumers = {row[0]: (row[1], row[4]) for row in rows(browser, "queue-table")}
    assert consumers == dict.fromkeys(
        ["aggregate", "store", *(f"{kind}.{model}" for kind in ("embed", "query") for model in models)],
        ("0", "1"),
    )

    status, body = visitor.ask("POST", f"/api/worker/shutdown/{worker}")
    assert (status, "Read only" in body) == (403, True)
    everything = "".join(
        visitor.get(path)
        for path in ("/api/tasks", "/api/workers?refresh=1", "/metrics", f"/worker/{worker}", "/broker")
    )
    assert job in everything
    assert "UNSPOKEN" not in everything
    assert anybody.ask("GET", "/tasks")[0] == 401
    assert password(fake_fleet) not in "".join(log.read_text() for log in fake_fleet.data_dir.glob("logs/*"))

    assert "flower" in fake_fleet.ok("down")["stopped"]
    host, port = url.split("/")[2].split(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


def test_a_fleet_that_runs_without_flower_says_how_to_start_it(fake_fleet: Any) -> None:
    plan = ("--primary", "qdrant-minilm-onnx")
    fake_fleet.up(*plan)
    done = fake_fleet.v5("up", *plan, "--flower")
    assert (done.returncode, "v5 flower" in done.stderr) == (1, True), done.stderr
    assert fake_fleet.ok("up", *plan)["started"] is False


def test_nobody_gets_past_the_door_without_the_password(start: Callable[..., Any]) -> None:
    with start() as (fleet, process, url):
        right = password(fleet)
        arguments = Path(f"/proc/{process.pid}/cmdline").read_text()
        for login in ("", "v5:", "v5:wrong", "v5:é", f"other:{right}", right):
            for path in PATHS:
                assert Visitor(url, login).ask("GET", path)[0] == 401, (login, path)
            for path in CONTROL:
                assert Visitor(url, login).ask("POST", path)[0] == 401, (login, path)
        assert Visitor(url).get("/healthcheck") == "OK"
        inside = Visitor(url, f"v5:{right}")
        for path in ("/", "/tasks", "/broker", "/metrics", "/api/tasks"):
            inside.get(path)
        for path in CONTROL:
            assert inside.ask("POST", path)[0] == 403, path
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0, err
        assert right not in arguments + out + err
        assert f"password in {fleet.data_dir / 'flower.password'}" in err
        assert "Traceback" not in err
        assert flower_url(fleet) == ""


def test_control_is_given_only_on_request_and_behind_a_prefix_all_the_same(start: Callable[..., Any]) -> None:
    options = ("--allow-control", "--url-prefix", "/ops/flower")
    with start(*options, flower_user="ann", flower_password="of the settings") as (fleet, process, url):
        assert url.endswith("/ops/flower/")
        inside = Visitor(url, "ann:of the settings")
        assert Visitor(url).ask("GET", "/ops/flower/metrics")[0] == 401
        assert Visitor(url).get("/ops/flower/healthcheck") == "OK"
        assert 'href="/ops/flower/tasks"' in inside.get("/ops/flower/tasks")
        assert '"aggregate"' in inside.get("/ops/flower/api/queues/length")
        status, body = inside.ask("POST", "/ops/flower/api/worker/shutdown/a@b")
        assert (status, "Unknown worker" in body) == (404, True), body
        assert not (fleet.data_dir / "flower.password").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_without_a_login_it_says_so_and_keeps_its_api_shut(start: Callable[..., Any]) -> None:
    with start("--no-auth") as (_fleet, process, url):
        Visitor(url).get("/tasks")
        assert Visitor(url).ask("GET", "/api/tasks")[0] == 401
        process.terminate()
        assert "WITHOUT A LOGIN" in process.communicate(timeout=20)[1]


def test_a_port_that_is_taken_is_named(start: Callable[..., Any]) -> None:
    with start() as (fleet, _process, url):
        port = url.split(":")[2].strip("/")
        done = fleet.v5("flower", "--port", port)
        assert done.returncode == 1
        assert f"port {port} at 127.0.0.1: it is taken" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_broker_page_counts_messages_under_the_prefix(start: Callable[..., Any]) -> None:
    with start() as (fleet, _process, url):
        settings = fleet.settings()
        ledger, app = Ledger(settings), make_app(settings)
        doorbell = Doorbell(app, settings)
        ledger.alive.announce(Process(kind="worker", name="w", model="bge-m3", condition="ready"))
        for n in range(3):
            assert doorbell.ring(f"job-1.{n}", "embed.bge-m3")
        lengths = json.loads(Visitor(url, f"v5:{password(fleet)}").get("/api/queues/length"))["active_queues"]
        found = {row["name"]: (row["messages"], row["consumers"]) for row in lengths}
        assert found["embed.bge-m3"] == (3, 1)
        assert found["query.bge-m3"] == (0, 1)
        assert found["aggregate"] == (0, 0)
        ledger.close()
        app.close()


def test_it_ends_at_once_though_redis_hangs(
    start: Callable[..., Any], redis_server: subprocess.Popen[bytes], eventually: Callable[..., Any]
) -> None:
    with start() as (_fleet, process, url):
        redis_server.send_signal(signal.SIGSTOP)
        try:
            # Threads of its pool now wait for Redis, one of them for this page.
            visit = http.client.HTTPConnection(url.split("/")[2], timeout=30)
            visit.request("GET", "/broker", headers=Visitor(url, f"v5:{password(_fleet)}").authorization)
            process.terminate()
            assert process.wait(10) == 0
            visit.close()
        finally:
            redis_server.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("kind", ["password", "tls", "socket"])
def test_a_servers_secrets_are_on_no_page(
    make_fleet: Callable[..., Any],
    redis_servers: ServerFactory,
    tmp_path: Path,
    eventually: Callable[..., Any],
    kind: str,
) -> None:
    certificates = make_certificates(tmp_path / "tls") if kind == "tls" else None
    server = redis_servers.start(
        tls_kind() if certificates else "valkey",
        tcp=kind == "password",
        tls=certificates,
        users=("default off", f"fleet on >p@ss/UNSPOKEN {fleet_rights()}"),
    )
    fleet = make_fleet(
        redis_url=server.url("fleet:p%40ss%2FUNSPOKEN"),
        fake_encoders="true",
        flower_port="0",
        alive_seconds="3",
        **({"redis_tls_ca": certificates.ca} if certificates else {}),
    )
    fleet.up("--primary", "qdrant-minilm-onnx", "--flower")
    visitor = Visitor(flower_url(fleet), f"v5:{password(fleet)}")
    eventually(lambda: len(json.loads(visitor.get("/workers?json=1"))["data"]) == 2, what="two heartbeats")
    names = [row["hostname"] for row in json.loads(visitor.get("/workers?json=1"))["data"]]
    worker = next(name for name in names if name.startswith("worker-"))
    paths = ("/", "/broker", "/metrics", f"/worker/{worker}", "/api/workers?refresh=1")
    pages = [visitor.get(path) for path in paths]
    assert "Broker options" in pages[3]
    lengths = json.loads(visitor.get("/api/queues/length"))["active_queues"]
    assert {"name": "embed.qdrant-minilm-onnx", "messages": 0, "consumers": 1} in lengths
    logs = [log.read_text() for log in fleet.data_dir.glob("logs/*")]
    assert "UNSPOKEN" not in "".join(pages + logs)
    fleet.down()
