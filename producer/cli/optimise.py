"""`v5 optimise`, and the end of `v5 submit --bulk`: wait until a collection's indexes are built."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict

import click

from producer.cli.meter import LINE_EVERY
from producer.cli.options import collection
from producer.fleet import Fleet, Indexing
from registry.console import as_json, data_dir, print_json
from registry.errors import InfrastructureError
from registry.settings import load_settings

#: How often the store is asked. Seconds.
LOOK = 1.0
#: A server may call itself green for a moment before it sees what is to be built. Seconds.
GREEN_FOR = 2.0


@click.command()
@collection
@as_json
@data_dir
def optimise(collection: str, as_json: bool) -> None:
    """Wait until a collection's indexes are built, after a bulk load that was not waited for.

    Indexes wait for every job on the collection that was submitted with --bulk and goes on; once all have
    ended, or nobody works on them any more, they are built as before. Meanwhile the collection can be
    searched, more slowly: a search compares with every vector that is in no index yet. Ctrl-C ends the
    waiting only.

    \b
    Example:
      v5 optimise -c code
    """
    fleet = Fleet(load_settings())
    try:
        found = wait_until_indexed(fleet, collection, as_json=as_json)
    except KeyboardInterrupt:
        click.echo("interrupted; the indexes are built all the same", err=True)
        sys.exit(130)
    finally:
        fleet.close()
    if as_json:
        print_json({"event": "end", "collection": collection, **asdict(found)})
    elif found.status == "green":
        click.echo(f"the indexes of collection {collection!r} are built")
    sys.exit(0 if found.status == "green" else 1)


def wait_until_indexed(fleet: Fleet, collection: str, *, as_json: bool) -> Indexing:
    """Wait until indexes are built, or building failed, which it says; tells on standard error how far it is.

    Raises as Fleet.indexing; InfrastructureError only once the store was away for V5_PATIENCE_SECONDS.
    """
    said, told = "", 0.0
    answered = time.monotonic()
    green_since: float | None = None
    while True:
        now = time.monotonic()
        try:
            found = fleet.indexing(collection)
        except InfrastructureError as error:
            if now - answered >= fleet.settings.patience_seconds:
                raise
            line = f"waiting: {error}"
        else:
            answered = now
            if found.status == "red":
                why = found.failure or "the store does not say why"
                then = f"mend that, then `v5 optimise -c {collection}`"
                click.echo(f"indexing collection {collection!r} failed: {why}; {then}", err=True)
                return found
            if found.status != "green" or found.loads:
                green_since = None
            elif green_since is None:
                green_since = now
            elif now - green_since >= GREEN_FOR:
                return found
            line = _said(found)
            if as_json and now - told >= LINE_EVERY:
                print_json({"event": "indexing", "collection": collection, **asdict(found)})
                told = now
        if not as_json and line != said and now - told >= LINE_EVERY:
            click.echo(line, err=True)
            said, told = line, now
        time.sleep(LOOK)


def _said(found: Indexing) -> str:
    if found.loads:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.loads[0]["since"] / 1000))
        jobs = ", ".join(load["job"] for load in found.loads)
        return f"indexing waits: in bulk mode since {began}, for {jobs}"
    put_off = " (when the fleet is idle)" if found.status == "grey" else ""
    return f"indexing{put_off}: {found.indexed:,} of {found.vectors:,} vectors"
