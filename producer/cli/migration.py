"""What `v5 submit --migrate` would remove and have embedded anew, said before it happens."""

from __future__ import annotations

from dataclasses import asdict

import click

from producer.fleet import Fleet
from registry.console import print_json
from registry.plan import Plan


def tell_migration(fleet: Fleet, collection: str, plan: Plan, *, as_json: bool) -> None:
    """Say which vectors of the collection stand in other spaces than the plan's. Changes nothing.

    Raises UsageError if the collection cannot be migrated to the plan.
    """
    points, changes = fleet.changes(collection, plan)
    if as_json:
        rows = [asdict(change) for change in changes]
        print_json({"event": "migration", "collection": collection, "points": points, "changes": rows})
        return
    if not changes:
        click.echo(f"nothing to migrate: collection {collection!r} holds no vector of another space")
        return
    click.echo(f"to be removed from the {points:,} points of collection {collection!r}, and embedded anew:")
    for change in changes:
        click.echo(f"  {change.name}: {change.standing} → {change.offered} ({change.difference})")
