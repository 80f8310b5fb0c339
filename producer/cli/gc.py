"""`v5 gc`: find and remove what crashes left in Redis."""

from __future__ import annotations

from collections import Counter

import click

from ledger.ledger import Ledger
from ledger.orphans import GRACE, Orphans
from registry.console import as_json, data_dir, print_json
from registry.settings import load_settings

#: What each kind is called, for people.
_SAID = {
    "batch": "batches of no unfinished job",
    "open": "entries for batches that are gone",
    "step": "steps of batches that have ended",
    "blob": "blobs of no open batch",
    "alive": "entries of processes that are gone",
    "active": "entries of jobs that have ended",
    "adopt": "names of submissions that have ended",
    "hold": "holds on jobs that have ended",
    "letters": "lists of dead letters of forgotten jobs",
}


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what there is; remove nothing.")
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=GRACE,
    show_default=True,
    metavar="SECONDS",
    help="Leave younger batches and blobs alone: one may be about to be used.",
)
@as_json
@data_dir
def gc(dry_run: bool, older_than: float, as_json: bool) -> None:
    """Remove what nobody will ever look at again from Redis: what crashes at the wrong moment leave.

    Nothing live is touched, whatever runs meanwhile: everything is judged again at the moment it is removed.
    Finished jobs and their dead letters stay in `v5 jobs` for a month.

    \b
    Examples:
      v5 gc --dry-run
      v5 gc
      v5 gc --json
    """
    ledger = Ledger(load_settings())
    ledger.check()
    try:
        orphans = Orphans(ledger, older_than)
        counts: Counter[str] = Counter()
        freed = 0
        for orphan in orphans.find():
            if dry_run or orphans.remove(orphan):
                counts[orphan.kind] += 1
                freed += orphan.bytes
        unaccounted = orphans.unaccounted(correct=not dry_run)
    finally:
        ledger.close()
    if as_json:
        print_json(
            {
                "removed": not dry_run,
                "orphans": {kind: counts[kind] for kind in _SAID},
                "bytes": freed,
                "reserved_bytes": unaccounted,
            }
        )
        return
    for kind, said in _SAID.items():
        if counts[kind]:
            click.echo(f"{counts[kind]} {said}")
    if unaccounted:
        click.echo(f"{unaccounted} bytes of the in-flight budget that no batch accounts for")
    if not counts and not unaccounted:
        click.echo("nothing to remove")
    else:
        click.echo(f"{'would free' if dry_run else 'freed'} {freed} bytes of blobs")
