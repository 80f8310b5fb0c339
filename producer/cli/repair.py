"""`v5 repair`: verify, then embed exactly what is missing or stale."""

from __future__ import annotations

import sys
from typing import Any

import click

from producer.cli.options import collection, corpus_options, read_corpus, shard_option
from producer.cli.rerun import rerun
from producer.cli.submit import EXIT_DEAD
from producer.corpus import Corpus
from producer.fleet import Fleet
from producer.ids import Ids
from producer.shard import Shard
from producer.verification import Counts, findings
from registry.chunks import Chunk
from registry.console import as_json, data_dir, print_json, start_logging
from registry.settings import load_settings


@click.command()
@corpus_options
@collection
@shard_option
@as_json
@data_dir
def repair(collection: str, shard: Shard | None, as_json: bool, **options: Any) -> None:
    """Verify a corpus, then submit exactly what `v5 verify` finds missing or stale, and verify again.

    The collection's own plan decides which vectors a chunk must have. Nothing is removed. Exit code 0 if the
    collection is whole at the end, 3 if what is not in is on the dead-letter list, else 1.

    \b
    Examples:
      v5 repair src/ docs/ --collection code
      v5 repair dump.jsonl -c notes --json | tail -1
    """
    settings = load_settings()
    start_logging(settings)
    corpus = read_corpus(settings, **options)
    if shard is not None:
        corpus = corpus.narrowed(str(shard), shard.has)
    fleet, ids = Fleet(settings), Ids()
    try:
        plan = fleet.plan(collection)
        names = [vector.name for vector in plan.vectors()]
        before = _verify(fleet, corpus, collection, names, ids)
        summary, after = None, before
        if not before.whole:
            part = corpus.narrowed("repair", lambda item: isinstance(item, Chunk) and item.id in ids)
            summary = rerun(fleet, part, collection, plan, as_json=as_json)
            after = _verify(fleet, corpus, collection, names, ids)
    finally:
        fleet.close()
        ids.close()
    dead = summary.dead if summary else 0
    if as_json:
        done = summary.as_json() if summary else None
        print_json(
            {"event": "end", "collection": collection, "before": before.as_json(), "after": after.as_json(),
             "submission": done}
        )  # fmt: skip
    else:
        click.echo(f"found {before.missing} missing and {before.stale} stale of {before.expected} chunks")
        if summary is not None:
            click.echo(
                f"job {summary.job}: {summary.done} chunks embedded or written anew, {dead} dead letters"
            )
        click.echo("complete" if after.whole else f"{after.missing} missing and {after.stale} stale remain")
        if dead and summary is not None:
            click.echo(f"why: v5 dead {summary.job}")
    if after.whole:
        sys.exit(0)
    sys.exit(EXIT_DEAD if after.missing + after.stale <= dead else 1)


def _verify(fleet: Fleet, corpus: Corpus, collection: str, names: list[str], ids: Ids) -> Counts:
    """Count, and note the ids of what is not as it should be."""
    counts = Counts()
    ids.clear()
    ids.add(f.id for f in findings(fleet, corpus, collection, names, counts) if f.id)
    return counts
