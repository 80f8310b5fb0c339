"""`v5 doctor`: what is configured, reachable, wrong, and how to mend it."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import click

from ledger.ledger import Ledger
from ledger.server import maxmemory
from ledger.servers import Server
from registry.console import as_json, data_dir, print_json
from registry.errors import V5Error
from registry.models import MODELS, model
from registry.settings import Settings, load_settings
from store.bulk import BulkLoad, bulk_loads
from store.factory import open_store
from store.meta import read_meta
from worker import fleet, private_redis
from worker.devices import cuda_devices

#: Less free space than this in the data directory is a warning. Bytes.
LITTLE_SPACE = 2 << 30


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    verdict: Literal["ok", "warning", "wrong"]
    said: str
    #: For programs: each thing that `said` sums up.
    details: list[dict[str, Any]] = field(default_factory=list)


@click.command()
@as_json
@data_dir
def doctor(as_json: bool) -> None:
    """Check settings, Redis, the store, devices, runtimes, weights and disk; say what to mend.

    Exit code 1 if something is wrong.

    \b
    Examples:
      v5 doctor
      v5 doctor --json
    """
    settings = load_settings()
    findings = [finding for look in LOOKS for finding in look(settings)]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        colours = {"ok": "green", "warning": "yellow", "wrong": "red"}
        for finding in findings:
            click.secho(f"{finding.verdict:8}", fg=colours[finding.verdict], nl=False)
            click.echo(f"{finding.what}: {finding.said}")
    sys.exit(1 if any(finding.verdict == "wrong" for finding in findings) else 0)


def _data(settings: Settings) -> list[Finding]:
    folder = settings.data_dir.absolute()
    standing = next(p for p in (folder, *folder.parents) if p.exists())
    if not os.access(standing, os.W_OK):
        return [Finding("data directory", "wrong", f"{standing} cannot be written; set V5_DATA_DIR")]
    free = shutil.disk_usage(standing).free
    verdict: Literal["ok", "warning"] = "warning" if free < LITTLE_SPACE else "ok"
    return [Finding("data directory", verdict, f"{folder}, {free >> 20} MiB free")]


def _redis(settings: Settings) -> list[Finding]:
    ledger = Ledger(settings)
    try:
        main = ledger.servers.ledger
        servers = ledger.servers.all
        found = [_server(server, "Redis" if server is main else _title(server)) for server in servers]
        if found[0].verdict == "wrong":
            return [_no_ledger(settings, found[0]), *found[1:]]
        forgetful = ledger.servers.forgetful()
        if forgetful:
            found.append(Finding("Redis on disk", "warning", forgetful))
        if all(finding.verdict == "ok" for finding in found[: len(servers)]):
            budget = ledger.blobs.budget(settings.inflight_bytes)
            found.append(Finding("budget", "ok", f"{budget >> 20} MiB may be in flight"))
        living = ledger.alive.list()
        names = ", ".join(f"{p.name} ({p.condition})" for p in living)
        found.append(
            Finding("fleet", "ok", names)
            if living
            else Finding("fleet", "warning", "nobody is alive; `v5 up`")
        )
        return [*found, *_refused(ledger)]
    except V5Error as error:
        return [Finding("Redis", "wrong", str(error))]
    finally:
        ledger.close()


def _refused(ledger: Ledger) -> list[Finding]:
    """Messages that the fleet did not let in, within a week of the last."""
    counts, last = ledger.refused.counts(), ledger.refused.last()
    if not last:
        return []
    newest, process = last[0]
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(newest.at))
    others = "something else writes to the broker: find it, or give the fleet a Redis user (docs/redis.md)"
    versions = "a process of another version sends them: bring all to one"
    todo = versions if newest.kind == "other version" else others
    said = (
        f"{sum(counts.values())} ({kinds}); {todo}. The last at {when}, by {process}, from {newest.queue}: "
        f"{newest.why}; it begins with {newest.sample[:100]}"
    )
    details = [{**asdict(message), "process": name} for message, name in last]
    return [Finding("refused messages", "warning", said, details)]


def _server(server: Server, what: str) -> Finding:
    """One server: fit for its roles, and how much memory it may use."""
    try:
        server.check()
        if "broker" in server.roles:
            server.check_consumer()
        limit = maxmemory(server.client)
    except V5Error as error:
        return Finding(what, "wrong", str(error))
    unchecked = server.address.tls is not None and not server.address.tls.verify
    said = f"{server.address.shown}, " + (f"maxmemory {limit >> 20} MiB" if limit else "no maxmemory")
    if unchecked:
        return Finding(what, "warning", f"{said}, its TLS certificate is not checked")
    return Finding(what, "ok", said)


def _title(server: Server) -> str:
    return f"Redis of the {' and '.join(sorted(server.roles, reverse=True))} at {server.address.shown}"


def _no_ledger(settings: Settings, wrong: Finding) -> Finding:
    """A private server need not run yet."""
    if not settings.embedded_redis:
        return wrong
    try:
        said = f"not running; `v5 up` will start {private_redis.find_server()}"
    except V5Error as absent:
        return Finding("Redis", "wrong", str(absent))
    return Finding("Redis", "warning" if fleet.is_running(settings) else "ok", said)


def _store(settings: Settings) -> list[Finding]:
    if settings.qdrant_url:
        return _server_store(settings)
    version = _version("qdrant-edge-py")
    if not version:
        return [Finding("store", "wrong", "qdrant-edge-py is not installed: `pip install qdrant-edge-py`")]
    folder = settings.data_dir / "store"
    found = [Finding("store", "ok", f"embedded, qdrant-edge-py {version}, {folder}")]
    try:
        # The aggregator has it open; only its records can be read beside that.
        metas = {path.name: read_meta(path) for path in sorted(folder.glob("*/"))}
    except V5Error as error:
        return [*found, Finding("store", "wrong", str(error))]
    return found + [
        finding
        for name, meta in metas.items()
        if meta
        for finding in _bulk_loads(name, bulk_loads(meta.notes))
    ]


def _bulk_loads(collection: str, loads: Sequence[BulkLoad]) -> list[Finding]:
    if not loads:
        return []
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(loads[0].since / 1000))
    jobs = ", ".join(load.job for load in loads)
    said = (
        f"in bulk mode since {began}, for {jobs}: searches compare with every new vector until these have "
        f"ended, then indexes are built (`v5 optimise -c {collection}` waits for that)"
    )
    return [Finding(f"collection {collection}", "warning", said, [asdict(load) for load in loads])]


def _server_store(settings: Settings) -> list[Finding]:
    try:
        store = open_store(settings.model_copy(update={"qdrant_retries": 0}))
    except V5Error as error:
        return [Finding("store", "wrong", str(error))]
    try:
        store.connect()
        collections = store.collections()
        said = f"Qdrant at {settings.qdrant_url}, {len(collections)} collections"
        loads = [_bulk_loads(name, bulk_loads(store.notes(name))) for name in collections]
        return [Finding("store", "ok", said), *(finding for some in loads for finding in some)]
    except V5Error as error:
        return [Finding("store", "wrong", str(error))]
    finally:
        store.close()


def _runtimes(_settings: Settings) -> list[Finding]:
    cpu, gpu = _version("onnxruntime"), _version("onnxruntime-gpu")
    found = []
    if cpu and gpu:
        found.append(
            Finding(
                "onnxruntime", "wrong", "onnxruntime and onnxruntime-gpu overwrite each other; remove one"
            )
        )
    elif not (cpu or gpu):
        found.append(Finding("onnxruntime", "warning", "not installed: this machine can submit, not embed"))
    else:
        found.append(Finding("onnxruntime", "ok", cpu or f"{gpu} (GPU)"))
    torch = _version("torch")
    said = torch or "not installed: no sentence-transformers models here"
    found.append(Finding("torch", "ok" if torch else "warning", said))
    devices = cuda_devices()
    found.append(Finding("devices", "ok", ", ".join(devices) or "CPU only (no CUDA device found)"))
    return found


def _weights(settings: Settings) -> list[Finding]:
    from worker.weights import is_here

    found = []
    for name in MODELS:
        here = is_here(model(name), settings)
        found.append(
            Finding(f"weights of {name}", "ok", here)
            if here
            else Finding(
                f"weights of {name}", "warning", "not on this machine; needed only where it is served"
            )
        )
    return found


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


LOOKS: tuple[Callable[[Settings], list[Finding]], ...] = (_data, _redis, _store, _runtimes, _weights)
