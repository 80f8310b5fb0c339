"""`v5 verify`: is everything of a corpus in the collection, with every vector?"""

from __future__ import annotations

import sys
from typing import Any

import click

from producer.batching import windows
from producer.cli.options import collection, corpus_options, read_corpus
from producer.fleet import Fleet
from registry.console import as_json, data_dir, print_json
from registry.settings import load_settings

#: So many places are named per kind of finding.
EXAMPLES = 5


@click.command()
@corpus_options
@collection
@as_json
@data_dir
def verify(collection: str, as_json: bool, **options: Any) -> None:
    """Compare a corpus with a collection, chunk by chunk and vector by vector. Exit code 1 if it differs.

    `missing` chunks do not stand or lack a vector of the collection's plan; `stale` ones stand with another
    text or payload. Corpus options must be those of the submission. Also says in which number format, by
    which backend and on which kind of device each vector's values were computed.

    \b
    Example:
      v5 verify src/ docs/ --collection code
    """
    settings = load_settings()
    corpus = read_corpus(settings, **options)
    fleet = Fleet(settings)
    try:
        described = fleet.describe(collection)
        names = [vector.name for vector in described.plan.vectors()]
        counts = {"expected": 0, "present": 0, "missing": 0, "stale": 0, "unreadable": 0}
        examples: dict[str, list[str]] = {"missing": [], "stale": [], "unreadable": []}

        def note(finding: str, where: str) -> None:
            counts[finding] += 1
            if len(examples[finding]) < EXAMPLES:
                examples[finding].append(where)

        for window in windows(corpus.items(), settings):
            for problem in window.problems:
                if problem.severity == "rejected":
                    note("unreadable", f"{problem.where}: {problem.reason}")
            counts["expected"] += len(window.chunks)
            rows = [(chunk.id, chunk.content_hash, chunk.payload_hash) for chunk in window.chunks]
            verdicts = fleet.compare(collection, names, rows) if rows else []
            for chunk, (verdict, *lacking) in zip(window.chunks, verdicts, strict=True):
                if verdict == "same":
                    counts["present"] += 1
                elif verdict in ("absent", "lacking"):
                    note("missing", chunk.where + (f" lacks {', '.join(lacking[0])}" if lacking else ""))
                else:
                    note("stale", chunk.where)
    finally:
        fleet.close()
    whole = not (counts["missing"] or counts["stale"])
    if as_json:
        print_json({"collection": collection, **counts, "examples": examples, "numerics": described.numerics})
    else:
        for name, facts in described.numerics.items():
            click.echo(f"{name}: {'; '.join(_said(fact) for fact in facts)}")
        click.echo(", ".join(f"{count} {name}" for name, count in counts.items()))
        for finding, places in examples.items():
            for place in places:
                click.echo(f"  {finding}: {place}")
        click.echo(
            "complete" if whole else f"not complete; submit the same paths to {collection!r} again to mend it"
        )
    sys.exit(0 if whole else 1)


def _said(fact: dict[str, Any]) -> str:
    """One way in which vectors were made, for people."""
    words = [fact["dtype"], fact["quantization"], "TF32" if fact["tf32"] else ""]
    return f"{fact['model']} in {' '.join(filter(None, words))} by {fact['backend']} on {fact['device']}"
