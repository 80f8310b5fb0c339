"""`v5 submit --dry-run`: what a submission would take, submitting nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping

import click

from ledger.blobs import DEFAULT_BUDGET
from ledger.ledger import Ledger
from producer.cli.meter import LINE_EVERY
from producer.corpus import Corpus
from producer.forecast import Forecast, Speed, forecast, speeds
from registry.console import print_json, with_index
from registry.errors import LedgerUnavailable, PlanError
from registry.plan import Plan
from registry.settings import Settings

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def dry_run(
    settings: Settings, corpus: Corpus, plan: Plan | None, index: str | None, *, as_json: bool
) -> None:
    """Read the corpus and print the forecast. A fleet gives rates, budget and a default plan, if it is there.

    Raises PlanError if neither the options nor a fleet say which plan.
    """
    plan, speed, budget, notes = _ask(settings, plan)
    plan = with_index(plan, index)
    found = forecast(corpus, plan, settings, speed, _Reading(as_json=as_json).show, budget=budget)
    if as_json:
        print_json({"event": "forecast", **found.as_json(budget), "notes": notes})
    else:
        _tell(found, budget, notes)


def _ask(settings: Settings, plan: Plan | None) -> tuple[Plan, Mapping[str, Speed], int, list[str]]:
    """The plan, what is known about its models, the in-flight budget, and what had to be assumed."""
    ledger = Ledger(settings)
    try:
        ledger.check()
        plan = plan or ledger.fleet_plan()
        if plan is None:
            raise PlanError(
                "this fleet was not started for a plan; say --primary MODEL (and --companion MODEL)"
            )
        budget = ledger.blobs.budget(settings.inflight_bytes)
        return plan, speeds(plan, ledger.rates.all(), ledger.alive.list()), budget, []
    except LedgerUnavailable as error:
        if plan is None:
            raise PlanError(f"without a fleet, a dry run needs --primary MODEL ({error})") from error
        budget = settings.inflight_bytes
        if not budget:
            budget = settings.redis_maxmemory // 2 if settings.embedded_redis else DEFAULT_BUDGET
        note = f"no fleet was asked, so speeds are unknown and the budget is assumed: {error}"
        return plan, speeds(plan, {}, []), budget, [note]
    finally:
        ledger.close()


class _Reading:
    """Says now and then how much was read: over itself on a terminal, a line elsewhere."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._said = time.monotonic()

    def show(self, found: Forecast) -> None:
        now = time.monotonic()
        terminal = sys.stderr.isatty() and not self._as_json
        if now - self._said < (0.25 if terminal else LINE_EVERY):
            return
        self._said = now
        if self._as_json:
            print_json({"event": "progress", "chunks": found.chunks, "text_bytes": found.text_bytes})
            return
        line = f"read {found.chunks:,} chunks, {size(found.text_bytes)} of text"
        # \x1b[K ends the line: it may be shorter than the one before.
        click.echo(f"\r{line}\x1b[K\r" if terminal else line, err=True, nl=not terminal)


def _tell(found: Forecast, budget: int, notes: list[str]) -> None:
    if sys.stderr.isatty():
        click.echo("\x1b[K", err=True, nl=False)
    from rich.console import Console
    from rich.table import Table

    click.echo(f"plan: {found.plan.describe()}")
    copies = f" ({found.copies:,} with the text of another, not embedded again)" if found.copies else ""
    click.echo(
        f"corpus: {_many(found.files, 'file')}, {_many(found.chunks, 'chunk')}{copies} in "
        f"{_many(found.batches, 'batch', 'batches')}"
    )
    for what, reasons in (("would be dead letters", found.rejected), ("left out", found.left_out)):
        if reasons:
            said = "; ".join(f"{count:,} × {reason}" for reason, count in sorted(reasons.items()))
            click.echo(f"{what}: {sum(reasons.values()):,} ({said})")
    click.echo(f"text: {size(found.text_bytes)}; with payloads, compressed: {size(found.packed_bytes)}")
    click.echo(
        f"Redis: {size(found.redis_bytes)} in total (vectors {size(found.vector_bytes)}), at most "
        f"{size(found.in_flight(budget))} at once of a budget of {size(budget)}"
    )
    click.echo(
        f"Qdrant: {size(found.qdrant_bytes)} on disk, {size(found.stored_payload_bytes)} of it payloads and "
        "their indexes"
    )
    console = Console()
    table = Table(box=None, pad_edge=False)
    for heading in ("vector", "as stored", "links", "quantized", "total"):
        table.add_column(heading, justify="left" if heading == "vector" else "right")
    for name, vector in found.vectors.items():
        row = (vector.raw, vector.links, vector.quantized, vector.total)
        table.add_row(name, *(size(part) if part else "-" for part in row))
    console.print(table)
    for name, model in found.models.items():
        click.echo(
            f"{name}: about {model.tokens:,} tokens{_basis(model.speed)}; "
            + _duration(model.hours, model.speed)
        )
    if found.hours is not None:
        click.echo(f"the job: {_hours(found.hours)}, the slowest model's: models run side by side")
    for note in notes:
        click.echo(f"note: {note}")


def _basis(speed: Speed) -> str:
    said = f"{speed.bytes_per_token:.2f} bytes each"
    return f" (measured: {said})" if speed.measured else f" (an estimate at {said})"


def _duration(hours: float | None, speed: Speed) -> str:
    if hours is None or speed.tokens_per_second is None:
        return "not measured yet: run a job with this model first"
    workers = f"{_many(speed.workers, 'worker')} now" if speed.workers else "one worker when last measured"
    return f"{_hours(hours)} at {speed.tokens_per_second:,.0f} tokens/s ({workers})"


def _hours(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:.0f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"


def _many(count: int, one: str, more: str = "") -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def size(count: float) -> str:
    """Bytes for people."""
    power = 0
    while count >= 1024 and power < len(_UNITS) - 1:
        count /= 1024
        power += 1
    return f"{count:,.0f} {_UNITS[power]}" if power == 0 or count >= 100 else f"{count:,.1f} {_UNITS[power]}"
