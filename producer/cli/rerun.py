"""Submitting a part of a corpus again, for `v5 repair` and `v5 retry`."""

from __future__ import annotations

import sys

import click

from producer.cli.meter import Meter
from producer.corpus import Corpus
from producer.fleet import Fleet
from producer.submission import Submission, Summary
from registry.plan import Plan


def rerun(fleet: Fleet, corpus: Corpus, collection: str, plan: Plan, *, as_json: bool) -> Summary:
    """Submit and follow to the end, with progress. Ctrl-C ends the process with 130."""
    meter = Meter(as_json=as_json)
    for what in fleet.unserved(plan).values():
        click.echo(f"warning: {what}; its steps wait until then", err=True)
    try:
        with meter:
            return Submission(fleet, corpus, collection, plan, meter.show).run()
    except KeyboardInterrupt:
        click.echo("interrupted; nothing is lost, and the same command again does the rest", err=True)
        sys.exit(130)
