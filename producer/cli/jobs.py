"""`v5 jobs`, `v5 watch`, `v5 cancel`, `v5 dead`: follow and steer."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

import click

from ledger.jobs import Job
from ledger.ledger import Ledger
from ledger.work import told
from producer.cli.meter import Meter
from producer.cli.submit import EXIT_DEAD
from producer.submission import LOOK, Progress
from registry.console import as_json, data_dir, print_json
from registry.settings import load_settings
from registry.submissions import submissions_of

#: Characters of a dead letter's text that are shown to people; `--json` has all that was kept.
SHOWN_TEXT = 100


def _ledger() -> Ledger:
    ledger = Ledger(load_settings())
    ledger.check()
    return ledger


@click.command()
@as_json
@data_dir
def jobs(as_json: bool) -> None:
    """List jobs, newest first.

    \b
    Examples:
      v5 jobs
      v5 jobs --json
    """
    found = _ledger().jobs.list()
    if as_json:
        print_json([job.summary() for job in found])
        return
    if not found:
        click.echo("no jobs yet; `v5 submit PATH --collection NAME` makes one")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("job", "collection", "state", "done", "staged", "dead", "open batches", "sources"):
        table.add_column(heading, no_wrap=heading == "job")
    for job in found:
        table.add_row(
            job.id, job.collection, _state(job), str(job.done), str(job.staged), str(job.dead),
            str(job.open_batches), " ".join(filter(None, (*job.sources, job.part))),
        )  # fmt: skip
    Console().print(table)


def _state(job: Job) -> str:
    if job.interrupted:
        return "interrupted (submit again)"
    return {"open": "running", "sealed": "finishing"}.get(job.state, job.state)


@click.command()
@click.argument("job")
@as_json
@data_dir
def watch(job: str, as_json: bool) -> None:
    """Follow JOB until it is done, or until nobody works on it any more.

    \b
    Example:
      v5 watch 261122-101500-1a2b3c
    """
    ledger = _ledger()
    detached = submissions_of(ledger.settings)
    with Meter(as_json=as_json) as meter:
        while True:
            seen = ledger.jobs.get(job)
            meter.show(
                Progress(
                    job=job, read=seen.staged, staged=seen.staged, done=seen.done, dead=seen.dead,
                    complete=seen.state != "open",
                )
            )  # fmt: skip
            if seen.state in ("done", "cancelled", "paused"):
                break
            if seen.interrupted and not seen.open_batches and not detached.attends(job):
                break
            time.sleep(LOOK)
    if as_json:
        print_json({"event": "end", **seen.summary()})
    else:
        click.echo(f"job {job}: {_state(seen)}, {seen.done} chunks stored, {seen.dead} dead letters")
        for one in seen.work:
            click.echo(f"  {told(one.summary(seen.seconds))}")
    if seen.state != "done":
        sys.exit(1)
    sys.exit(EXIT_DEAD if seen.dead else 0)


@click.command()
@click.argument("job")
@as_json
@data_dir
def cancel(job: str, as_json: bool) -> None:
    """End JOB: nothing more is staged, its open batches are dropped. What is stored stays.

    \b
    Example:
      v5 cancel 261122-101500-1a2b3c
    """
    state, dropped = _ledger().jobs.cancel(job)
    if as_json:
        print_json({"job": job, "state": state, "dropped_batches": dropped})
    elif state == "done":
        click.echo(f"job {job} was done already; nothing is changed")
    else:
        click.echo(f"job {job} is cancelled; {dropped} open batches were dropped")


@click.command()
@click.argument("job")
@as_json
@data_dir
def dead(job: str, as_json: bool) -> None:
    """List the dead letters of JOB: which chunks are not in the collection, why, and how their text begins.

    \b
    Examples:
      v5 dead 261122-101500-1a2b3c
      v5 dead 261122-101500-1a2b3c --json | jq -r .id
      v5 retry 261122-101500-1a2b3c src/
    """
    ledger = _ledger()
    ledger.jobs.get(job)
    for letter in ledger.jobs.dead(job):
        if as_json:
            print_json(asdict(letter))
        else:
            click.echo(f"{letter.where or letter.id} ({letter.stage}): {letter.reason}")
            if letter.text:
                click.echo(f"    {_beginning(letter.text)}")


def _beginning(text: str) -> str:
    """How a text begins, on one line without control characters."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line[:SHOWN_TEXT])
