"""`v5 up`, `v5 down`, `v5 ps`: a local fleet on this machine's devices."""

from __future__ import annotations

import socket
import time
from dataclasses import asdict
from typing import Any

import click

from ledger.ledger import Ledger
from registry.console import as_json, data_dir, plan_options, print_json, read_plan, start_logging, warn_of
from registry.errors import FleetError, V5Error
from registry.plan import make_plan, plan_from_json
from registry.settings import Settings, load_settings
from registry.submissions import submissions_of
from worker import fleet
from worker.supervisor import Supervisor


@click.command()
@plan_options
@click.option("--foreground", is_flag=True, help="Stay in the foreground, logging; Ctrl-C stops the fleet.")
@click.option(
    "--timeout", default=300.0, show_default=True, help="Seconds until every process must be ready."
)
@click.option("--flower", is_flag=True, help="Serve Flower, too (see `v5 flower`).")
@click.option("--rerank", is_flag=True, help="Serve the reranker, too (see `v5 search --rerank`).")
@click.option("--plan", "plan_json", hidden=True, help="The plan as JSON.")
@as_json
@data_dir
def up(
    foreground: bool,
    timeout: float,
    flower: bool,
    rerank: bool,
    plan_json: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Start a local fleet for a plan; returns when every process is ready.

    A process that dies is started again. Without --primary the plan is the registry's default model. Without
    V5_REDIS_URL the fleet brings its own Redis, without V5_QDRANT_URL its own store.

    \b
    Examples:
      v5 up --primary qdrant-minilm-onnx --companion all-miniLM-l6
      v5 up --primary jina-code-embeddings-1.5b --companion bge-m3 --output bge-m3=dense,sparse
      v5 up --primary qdrant-minilm-onnx --rerank
    """
    settings = load_settings()
    plan = plan_from_json(plan_json) if plan_json else read_plan(settings, **options)
    if plan is None:
        plan = make_plan(fake=settings.made_up)
    warn_of(plan)
    if foreground:
        start_logging(settings)
        Supervisor(settings, plan, flower=flower, rerank=rerank).run()
        return
    began = time.monotonic()
    said = (lambda _line: None) if as_json else click.echo
    fresh, processes = fleet.up(settings, plan, timeout, said, flower=flower, rerank=rerank)
    state = fleet.read_state(settings) if fresh else None
    resumed = state["resumed"] if state else []
    if as_json:
        print_json({"started": fresh, "plan": plan.describe(), "processes": processes, "resumed": resumed})
    elif fresh:
        click.echo(f"the fleet is up after {time.monotonic() - began:.1f} s, serving {plan.describe()}")
        for collection in resumed:
            click.echo(f"the detached submission to {collection} goes on")
        click.echo("next: v5 submit PATH --collection NAME")
    else:
        click.echo("the fleet was up already, with this plan")


@click.command()
@as_json
@data_dir
def down(as_json: bool) -> None:
    """Stop the local fleet: workers give back what they are at, the store is flushed, Redis saves.

    \b
    Example:
      v5 down
    """
    names = fleet.down(load_settings())
    if as_json:
        print_json({"stopped": names})
    else:
        click.echo(f"stopped {', '.join(names)}" if names else "no fleet was running here")


@click.command()
@as_json
@data_dir
def ps(as_json: bool) -> None:
    """Show the fleet's processes, on this and on other machines, and what waits in its queues.

    `busy` is the device's share of the time in which a worker had work, since it started.

    \b
    Example:
      v5 ps
    """
    settings = load_settings()
    report = _report(settings)
    if as_json:
        print_json(report)
        return
    if not report["processes"]:
        raise FleetError(f"no process of a fleet is alive; start one with `v5 up` ({settings.data_dir})")
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("process", "host", "pid", "device", "busy", "condition", "restarts", "note"):
        table.add_column(heading, no_wrap=heading == "process")
    for row in report["processes"]:
        table.add_row(
            row["name"], row["host"], str(row["pid"]), row["device"] or "–", _busy(row), row["condition"],
            "–" if row["restarts"] is None else str(row["restarts"]), row["note"],
        )  # fmt: skip
    Console().print(table)
    for queue, depth in report["steps"].items():
        click.echo(f"{queue}: {depth} steps to do")


def _busy(row: dict[str, Any]) -> str:
    """How much of the time in which a worker had work its device was busy."""
    counters = row.get("counters") or {}
    working = counters.get("working_seconds", 0)
    return f"{min(counters['busy_seconds'] / working, 1):.0%}" if working else "–"


def _report(settings: Settings) -> dict[str, Any]:
    state = fleet.read_state(settings) if fleet.is_running(settings) else None
    local = list(state["processes"]) if state else []
    submissions = submissions_of(settings)
    local += [
        {"name": f"submit-{one.collection}", "pid": one.producer, "restarts": one.restarts, "failed": False,
         "last_end": one.said, "log": str(submissions.log(one.id))}
        for one in submissions.ours() if one.running
    ]  # fmt: skip
    ledger = Ledger(settings)
    try:
        ledger.check()
        living, failed = ledger.alive.list(), ledger.alive.failed()
        steps = ledger.depths()
        reserved = ledger.reserved()
    except V5Error:
        if state is None:
            raise
        living, failed, steps, reserved = [], [], {}, 0
    finally:
        ledger.close()
    rows = []
    for process in [*living, *failed]:
        here = process.host == socket.gethostname()
        key, value = ("name", process.name) if process in failed else ("pid", process.pid)
        mine = next((row for row in local if here and row[key] == value), None)
        if mine is not None:
            local.remove(mine)
        ended = mine["last_end"] if mine else ""
        note = process.note or (f"ended before: {ended}" if ended else "")
        rows.append({**asdict(process), "note": note, "restarts": mine["restarts"] if mine else None})
    for row in local:
        pid = row["pid"]
        condition = "failed" if row["failed"] else "running" if pid else "restarting"
        where = "" if row["name"] == "redis" else f"see {row['log']}"
        note = "; ".join(filter(None, [row["last_end"], where]))
        rows.append(
            {"kind": "", "name": row["name"], "host": "", "pid": pid, "device": "", "model": "",
             "condition": condition, "restarts": row["restarts"], "note": note}
        )  # fmt: skip
    return {
        "supervisor": state["pid"] if state else None,
        "processes": rows,
        "steps": steps,
        "reserved_bytes": reserved,
    }
