"""`v5 health`: whether a process of this machine is ready, for container health checks."""

from __future__ import annotations

import os
import socket
import time

import click

from ledger.alive import Alive, Process
from ledger.server import connect
from registry.console import as_json, data_dir, print_json
from registry.errors import FleetError
from registry.processes import birth
from registry.settings import load_settings

#: Clocks of the announcement and of the kernel may differ by this much. Seconds.
CLOCK_ERROR = 1.0


@click.command()
@click.argument("name")
@as_json
@data_dir
def health(name: str, as_json: bool) -> None:
    """Say whether the process NAME of this machine (or container) is alive and ready.

    It asks the ledger, so it fails, too, where the process cannot reach Redis. Processes of other machines
    do not count, nor do announcements of a process that has died since. Exit code 1 if it is not ready.

    \b
    Examples:
      v5 health aggregator
      v5 health worker-bge-m3
    """
    settings = load_settings()
    # Not the whole ledger: a health check runs every few seconds, and numpy alone is a third of its start.
    client = connect(settings.ledger_url)
    try:
        living = Alive(client, settings.alive_seconds).list()
    finally:
        client.close()
    mine = [process for process in living if process.name == name and _runs_here(process)]
    ready = next((process for process in mine if process.condition == "ready"), None)
    if ready is None:
        raise FleetError(_unready(name, mine))
    if as_json:
        print_json({"name": name, "pid": ready.pid, "condition": ready.condition})
    else:
        click.echo(f"{name} is ready ({ready.device or 'store'})")


def _runs_here(process: Process) -> bool:
    """Whether an announcement is of a process that runs on this machine now.

    A container that is started again has the host name and the process ids of the one before it, whose
    announcement stands for some seconds: it is older than the process that has its id.
    """
    if process.host != socket.gethostname():
        return False
    born = birth(process.pid)
    if not born:
        return False
    up = time.clock_gettime(time.CLOCK_BOOTTIME) - born / os.sysconf("SC_CLK_TCK")
    return process.since >= time.time() - up - CLOCK_ERROR


def _unready(name: str, mine: list[Process]) -> str:
    host = socket.gethostname()
    if not mine:
        return f"{name} does not run on {host}, or has not announced itself; its log says why"
    said = f"{mine[0].condition}{': ' if mine[0].note else ''}{mine[0].note}"
    return f"{name} runs on {host} and is not ready ({said})"
