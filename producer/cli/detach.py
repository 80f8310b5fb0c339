"""`v5 submit --detach`."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from registry.console import print_json
from registry.files import tail
from registry.plan import Plan
from registry.settings import Settings
from registry.submissions import Detached, submissions_of


def detach_submission(settings: Settings, collection: str, plan: Plan, *, as_json: bool) -> NoReturn:
    """Hand this command's submission to a supervised process, say how to follow it, and exit."""
    command = sys.argv[sys.argv.index("submit") + 1 :]
    # The fleet's plan of today, should another fleet run when it is started again.
    arguments = ["--plan", plan.model_dump_json()]
    arguments += [word for word in command if word not in ("--detach", "--json")]
    submissions = submissions_of(settings)
    submission, fresh = submissions.start(arguments, collection)
    log = submissions.log(submission.id)
    if submission.exit_code and not submission.job:
        click.echo(f"error: the submission did not start; its log ({log}) ends:\n{tail(log)}", err=True)
        sys.exit(submission.exit_code)
    if as_json:
        print_json(
            {
                "event": "detached", "started": fresh, "job": submission.job, "collection": collection,
                "pid": submission.pid, "log": str(log),
            }
        )  # fmt: skip
    else:
        _tell(submission, fresh, str(log))
    sys.exit(submission.exit_code or 0)


def _tell(submission: Detached, fresh: bool, log: str) -> None:
    job = submission.job
    if not fresh:
        click.echo(f"this submission runs already, as job {job or '(none yet)'}; log: {log}")
    elif submission.exit_code is not None:
        click.echo(f"job {job} has ended already: {submission.said}; log: {log}")
        return
    elif job:
        click.echo(f"job {job} goes on without this terminal; log: {log}")
    else:
        click.echo(f"the submission waits for its fleet; log: {log}")
    click.echo(f"next: v5 watch {job} (or v5 cancel {job})" if job else "next: v5 ps")
