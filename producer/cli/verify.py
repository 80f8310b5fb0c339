"""`v5 verify`: is everything of a corpus in the collection, with every vector?"""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import click

from producer.cli.options import collection, corpus_options, read_corpus, shard_option
from producer.fleet import Fleet
from producer.shard import Shard
from producer.verification import Counts, findings
from registry.console import as_json, data_dir, print_json
from registry.settings import load_settings

#: So many places are named to people per kind of finding.
EXAMPLES = 5


@click.command()
@corpus_options
@collection
@shard_option
@as_json
@data_dir
def verify(collection: str, shard: Shard | None, as_json: bool, **options: Any) -> None:
    """Compare a corpus with a collection, chunk by chunk and vector by vector. Exit code 1 if it differs.

    `missing` chunks do not stand or lack a vector of the collection's plan; `stale` ones stand with another
    text or payload. Corpus options must be those of the submission. Also says in which number format, by
    which backend and on which kind of device each vector's values were computed. With --json, a line with
    the id for every finding, then one with the numbers.

    \b
    Examples:
      v5 verify src/ docs/ --collection code
      v5 verify src/ docs/ --collection code --json | jq -r 'select(.event == "finding") | .id'
    """
    settings = load_settings()
    corpus = read_corpus(settings, **options)
    if shard is not None:
        corpus = corpus.narrowed(str(shard), shard.has)
    fleet = Fleet(settings)
    counts = Counts()
    examples: dict[str, list[str]] = {"missing": [], "stale": [], "unreadable": []}
    try:
        described = fleet.describe(collection)
        names = [vector.name for vector in described.plan.vectors()]
        for finding in findings(fleet, corpus, collection, names, counts):
            if as_json:
                print_json({"event": "finding", **asdict(finding)})
            if len(examples[finding.kind]) < EXAMPLES:
                lacks = f" lacks {', '.join(finding.lacking)}" if finding.lacking else ""
                examples[finding.kind].append(finding.where + lacks)
    finally:
        fleet.close()
    if as_json:
        print_json(
            {
                "event": "end",
                "collection": collection,
                **counts.as_json(),
                "examples": examples,
                "numerics": described.numerics,
            }
        )
    else:
        for name, facts in described.numerics.items():
            click.echo(f"{name}: {'; '.join(_said(fact) for fact in facts)}")
        click.echo(", ".join(f"{count} {name}" for name, count in counts.as_json().items()))
        for kind, places in examples.items():
            for place in places:
                click.echo(f"  {kind}: {place}")
        click.echo(
            "complete" if counts.whole else "not complete; `v5 repair` with the same arguments mends it"
        )
    sys.exit(0 if counts.whole else 1)


def _said(fact: dict[str, Any]) -> str:
    """One way in which vectors were made, for people."""
    words = [fact["dtype"], fact["quantization"], "TF32" if fact["tf32"] else ""]
    if attention := fact.get("attention"):
        words.append(f"without padding ({attention})")
    if fact.get("compiled"):
        words.append("compiled")
    if transport := fact.get("transport"):
        words.append(f"(sent as {transport})")
    return f"{fact['model']} in {' '.join(filter(None, words))} by {fact['backend']} on {fact['device']}"
