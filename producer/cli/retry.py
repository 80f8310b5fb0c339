"""`v5 retry`: stage the chunks of a job's dead letters again."""

from __future__ import annotations

import sys
from typing import Any

import click

from producer.cli.options import corpus_options, read_corpus
from producer.cli.rerun import rerun
from producer.cli.submit import exit_code
from producer.fleet import Fleet
from producer.retry import Retry
from registry.console import as_json, data_dir, print_json, start_logging
from registry.errors import UsageError
from registry.settings import load_settings


@click.command()
@click.argument("job")
@corpus_options
@as_json
@data_dir
def retry(job: str, as_json: bool, **options: Any) -> None:
    """Try the dead letters of JOB again: read their chunks from the corpus at PATH…, and embed only those.

    Letters that go through are forgotten; the others stay, with the new reasons under the new job. The
    corpus is needed, with the options of its submission: a letter keeps only the beginning of a text, for
    people to read. A file or record that could not be read is tried with all that its file has. Exit code 3
    if letters remain.

    \b
    Examples:
      v5 retry 261122-101500-1a2b3c src/ docs/
      v5 retry 261122-101500-1a2b3c notes.jsonl --json | tail -1
    """
    settings = load_settings()
    start_logging(settings)
    fleet = Fleet(settings)
    try:
        failed = fleet.ledger.jobs.get(job)
        if failed.held:
            raise UsageError(f"job {job} is being submitted; wait for its end (`v5 watch {job}`), then retry")
        letters = list(fleet.ledger.jobs.dead(job))
        if not letters:
            _tell(job, 0, 0, "", as_json=as_json)
            return
        corpus = read_corpus(settings, **options)
        again = Retry(letters)
        summary = rerun(
            fleet, corpus.narrowed(f"retry {job}", again.has), failed.collection, failed.plan, as_json=as_json
        )
        through, failed_again = 0, summary.dead
        if summary.state in ("done", "sealed"):
            dead = {letter.id for letter in fleet.ledger.jobs.dead(summary.job)}
            through = fleet.ledger.jobs.forgive(job, again.gone_through(dead))
    finally:
        fleet.close()
    left = len(letters) - through
    _tell(job, through, left, summary.job, as_json=as_json)
    sys.exit(exit_code(summary.state, left or failed_again))


def _tell(job: str, through: int, left: int, by: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"event": "end", "job": job, "through": through, "left": left, "by": by})
    elif not by:
        click.echo(f"job {job} has no dead letters")
    else:
        click.echo(f"job {job}: {through} dead letters went through by job {by}, {left} remain")
        if left:
            click.echo(f"why: v5 dead {by}; those not listed there are not in the corpus that was given")
