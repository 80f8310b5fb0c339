"""`v5 submit --prune --dry-run`: how many points would be removed, removing none."""

from __future__ import annotations

import click

from producer.batching import windows
from producer.corpus import Corpus
from producer.fleet import Fleet
from producer.pruning import Pruning
from registry.console import print_json
from registry.settings import Settings


def tell_pruning(settings: Settings, corpus: Corpus, collection: str, *, as_json: bool) -> None:
    """Read the corpus and the collection, and say what is left over. Needs the fleet, which has the store."""
    fleet = Fleet(settings)
    pruning = None
    try:
        pruning = Pruning(fleet, collection, corpus.sources)
        points = fleet.describe(collection).points
        for window in windows(corpus.items(), settings):
            pruning.note(window)
        hindrance = pruning.hindrance
        found = 0 if hindrance else pruning.count()
        unsourced = pruning.unsourced
    finally:
        fleet.close()
        if pruning is not None:
            pruning.close()
    if as_json:
        print_json(
            {
                "event": "prune",
                "collection": collection,
                "points": points,
                "prunable": found,
                "unsourced": unsourced,
                "hindrance": hindrance,
            }
        )
        return
    if hindrance:
        click.echo(f"nothing would be pruned: {hindrance}")
        return
    click.echo(f"{found} of {points} points would be pruned; newer ones are spared at the time")
    if unsourced:
        click.echo(f"{unsourced} points do not say what they were read from; none of them would be")
