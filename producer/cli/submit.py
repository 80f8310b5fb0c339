"""`v5 submit`."""

from __future__ import annotations

import signal
import sys
from typing import Any

import click

from ledger.work import told
from producer.announcement import Announcement
from producer.cli.detach import detach_submission
from producer.cli.dry_run import dry_run as tell_forecast
from producer.cli.meter import Meter
from producer.cli.migration import tell_migration
from producer.cli.optimise import wait_until_indexed
from producer.cli.options import (
    CORPUS_FIELDS,
    PIPE,
    collection,
    corpus_options,
    read_corpus,
    shard_option,
)
from producer.cli.pruning import tell_pruning
from producer.fleet import Fleet
from producer.pruning import Pruning
from producer.shard import Shard
from producer.submission import Progress, Submission, Summary
from registry.console import (
    as_json,
    data_dir,
    index_option,
    plan_options,
    print_json,
    read_plan,
    start_logging,
    warn_of,
    with_index,
)
from registry.errors import JobUnknown, PlanError
from registry.plan import Plan, plan_from_json
from registry.settings import Settings, load_settings

#: Exit code of a submission that ended with dead letters.
EXIT_DEAD = 3
#: From this share of the time on, it is said that the producer was the limit.
LIMITED = 0.1


@click.command()
@corpus_options
@collection
@plan_options
@index_option
@shard_option
@click.option(
    "--prune",
    is_flag=True,
    help="Then remove the points of the submitted sources that are no longer in the corpus.",
)
@click.option(
    "--migrate",
    is_flag=True,
    help="First remove the vectors that stand in other spaces than the plan's, to embed them anew.",
)
@click.option(
    "--bulk",
    is_flag=True,
    help="Build indexes once at the end instead of while loading, and wait for them.",
)
@click.option(
    "--detach",
    is_flag=True,
    help="Hand it to a process that outlives this terminal and is started again should it die.",
)
@click.option("--plan", "plan_json", hidden=True, help="The plan as JSON.")
@click.option("--job", hidden=True, help="The job to go on with, unless it has ended.")
@click.option("--dry-run", is_flag=True, help="Only say what it would take; no fleet is needed.")
@as_json
@data_dir
def submit(
    collection: str,
    shard: Shard | None,
    prune: bool,
    migrate: bool,
    bulk: bool,
    detach: bool,
    plan_json: str | None,
    job: str | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit a corpus: source code, prose, JSON Lines, Parquet, or a folder of *_chunks.json files.

    What the collection already has is skipped. Without --primary, the running fleet's plan is used. Ctrl-C
    loses nothing: what is staged goes on, and the same command again does the rest.

    `-` reads JSON Lines (also gzipped) from a pipe; chunks without an id are named by --name and their line,
    so a pipe of other content needs another name.

    --prune goes by the file that each point was read from, and never touches points of other sources or newer
    ones. Nothing is removed if a file or record could not be read, or the submission did not end. What the
    options leave out now counts as removed. With --dry-run it says how many points that would be.

    --migrate is for a model's new revision, another task, variant or --truncate: it says which vectors of the
    collection are of another space, removes these from all its points, and embeds the corpus' anew; the other
    vectors stay and can be searched meanwhile. Points of other sources lack them until these are submitted,
    too. With --dry-run it only says which.

    --bulk is for loading much at once: until the job ends, the collection's new vectors are in no index, and
    searches compare with each of them. Then indexes are built as before; should this producer die, the
    aggregator sees to that. Ctrl-C while they are built loses nothing: `v5 optimise` waits for them.

    --detach returns once there is a job; `v5 ps` shows its producer, `v5 watch JOB` follows it, `v5 cancel
    JOB` ends it. Should all of it die, a fleet on this machine starts it again. `v5 down` stops it with a
    fleet that has its own Redis, and `v5 up` goes on with it; elsewhere the same command does.

    \b
    Examples:
      v5 submit src/ docs/ --collection code
      v5 submit chunks.jsonl -c notes --primary qdrant-minilm-onnx --companion all-miniLM-l6
      v5 submit Chunked/MyCollection -c v4 --min-tokens 50
      v5 submit corpus.parquet -c notes
      v5 submit - -c notes --name notes.jsonl < notes.jsonl
      v5 submit src/ -c code --primary qdrant-minilm-onnx --dry-run
      v5 submit src/ -c code --prune
      v5 submit dump.parquet -c notes --detach
      v5 submit dump.parquet -c notes --bulk
      v5 submit src/ -c code --prune --dry-run
      v5 submit src/ -c code --migrate --dry-run
      v5 submit dump.parquet -c notes --shard 1/4
      v5 submit src/ -c code --json | tail -1
    """
    if prune and shard is not None:
        raise click.UsageError(
            "--prune needs the whole corpus: a shard does not know what the others have. Submit the shards, "
            "then prune once without --shard"
        )
    if detach and dry_run:
        raise click.UsageError("--dry-run submits nothing that could be detached; leave one of the two out")
    if detach and PIPE in options["paths"]:
        raise click.UsageError(
            "a pipe cannot be read again should the producer start anew: write it to a file, then submit that"
        )
    settings = load_settings()
    start_logging(settings)
    corpus_fields = {key: options.pop(key) for key in CORPUS_FIELDS}
    index = options.pop("index")
    plan = plan_from_json(plan_json) if plan_json else read_plan(settings, **options)
    corpus = read_corpus(settings, **corpus_fields)
    if shard is not None:
        corpus = corpus.narrowed(str(shard), shard.has)
    if dry_run and migrate:
        _tell_migration(settings, collection, plan, as_json=as_json)
    if dry_run and prune:
        tell_pruning(settings, corpus, collection, as_json=as_json)
    if dry_run and (migrate or prune):
        return
    if dry_run:
        tell_forecast(settings, corpus, plan, index, as_json=as_json)
        return
    # A service manager's stop is as good as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    fleet = Fleet(settings)
    if job is not None:
        _end_as(fleet, job)
    pruning = Pruning(fleet, collection, corpus.sources) if prune else None
    plan = with_index(plan or _fleet_plan(fleet), index)
    warn_of(plan)
    meter = Meter(as_json=as_json)
    for what in fleet.unserved(plan).values():
        click.echo(f"warning: {what}; its steps wait until then", err=True)
    if migrate:
        tell_migration(fleet, collection, plan, as_json=as_json)
    if detach:
        fleet.close()
        detach_submission(settings, collection, plan, as_json=as_json)
    if bulk:
        click.echo(
            f"bulk mode: collection {collection!r} is indexed when the job has ended; until then searches "
            "compare with every new vector",
            err=True,
        )
    announcement = Announcement(fleet.ledger.alive, collection, settings.alive_seconds)

    def report(progress: Progress) -> None:
        meter.show(progress)
        announcement.show(progress)

    submission = Submission(
        fleet, corpus, collection, plan, report, pruning=pruning, migrate=migrate, bulk=bulk
    )
    try:
        with meter, announcement:
            summary = submission.run()
    except KeyboardInterrupt:
        again = "with the same pipe " if PIPE in corpus_fields["paths"] else ""
        click.echo(
            f"interrupted; nothing is lost: what is staged of job {submission.progress.job or '(none yet)'} "
            f"goes on, and the same command again {again}does the rest{', then prunes' if prune else ''}",
            err=True,
        )
        sys.exit(130)
    else:
        waited = _wait_for_indexes(fleet, collection, as_json=as_json) if bulk else 0
    finally:
        fleet.close()
        if pruning is not None:
            pruning.close()
    tell(summary, settings, as_json=as_json)
    sys.exit(waited or exit_code(summary.state, summary.dead))


def exit_code(state: str, dead: int) -> int:
    """What a submission whose job is in that state, with so many dead letters, exits with."""
    if state not in ("done", "sealed"):
        return 1
    return EXIT_DEAD if dead else 0


def _wait_for_indexes(fleet: Fleet, collection: str, *, as_json: bool) -> int:
    """Wait until what a bulk load left is indexed; what the command exits with, unless for other reasons."""
    try:
        return 0 if wait_until_indexed(fleet, collection, as_json=as_json).status == "green" else 1
    except KeyboardInterrupt:
        click.echo(
            f"interrupted; the indexes are built all the same: `v5 optimise -c {collection}` waits for them",
            err=True,
        )
        return 130


def _tell_migration(settings: Settings, collection: str, plan: Plan | None, *, as_json: bool) -> None:
    fleet = Fleet(settings)
    try:
        tell_migration(fleet, collection, plan or _fleet_plan(fleet), as_json=as_json)
    finally:
        fleet.close()


def _end_as(fleet: Fleet, job: str) -> None:
    """Exit as a job ended that did so while its producer was gone: the same submission would open another."""
    try:
        seen = fleet.ledger.jobs.get(job)
    except JobUnknown:
        return
    if seen.state == "open":
        return
    print_json({"event": "end", **seen.summary()})
    sys.exit(exit_code(seen.state, seen.dead))


def _fleet_plan(fleet: Fleet) -> Plan:
    plan = fleet.ledger.fleet_plan()
    if plan is None:
        raise PlanError("this fleet was not started for a plan; say --primary MODEL (and --companion MODEL)")
    return plan


def tell(summary: Summary, settings: Settings, *, as_json: bool) -> None:
    """Say what a submission came to."""
    if as_json:
        print_json({"event": "end", **summary.as_json()})
        return
    click.echo(
        f"job {summary.job}: {summary.done} chunks embedded and stored in {summary.seconds:.1f} s "
        f"({summary.chunks_per_second:.0f}/s), {summary.skipped} already there, {summary.dead} dead letters"
    )
    for row in summary.workers:
        click.echo(f"  {told(row)}")
    if summary.done and summary.producer_limited >= LIMITED:
        click.echo(
            f"the producer was the limit for {summary.producer_limited:.0%} of the time: it read, and "
            "nothing waited for the fleet; several shards at once (--shard) read faster"
        )
    if summary.ignored:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.ignored_reasons.items()))
        click.echo(f"left out: {reasons}")
    if summary.truncated:
        click.echo(f"{summary.truncated} vectors are of texts over a limit, and lack what is past it")
    if summary.dead:
        click.echo(f"why: v5 dead {summary.job}")
    if summary.pruned is not None:
        click.echo(f"pruned: {summary.pruned} points of these sources that the corpus has no more")
    if summary.prune_note:
        click.echo(summary.prune_note)
    for name, count in summary.lacking.items():
        click.echo(
            f"{count} points of the collection lack {name}: they are not of this corpus, or of another "
            f"shard (submit their sources, too){', or dead letters' if summary.dead else ''}"
        )
    if summary.state == "paused":
        click.echo(
            f"the job paused: {summary.dead} dead letters are over the limit of {settings.max_dead} "
            "(V5_MAX_DEAD); mend the corpus or raise it, then submit again"
        )
    elif summary.state == "cancelled":
        click.echo("the job was cancelled; submit again to go on")
    else:
        click.echo(f'next: v5 search "…" --collection {summary.collection}')
