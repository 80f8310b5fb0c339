"""The supervisor of a detached producer: what it starts again, and what has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from producer import detached
from producer.detached import Supervisor
from registry.plan import Plan
from registry.processes import birth
from registry.settings import Settings
from registry.submissions import Detached, Submissions


@pytest.fixture
def settings(data_dir: Path) -> Settings:
    """Of a private Redis, as the processes below have them."""
    return Settings(_env_file=None, data_dir=data_dir)


@pytest.fixture
def submissions(settings: Settings) -> Submissions:
    return Submissions(settings.data_dir)


@pytest.fixture
def supervise(submissions: Submissions, plan: Plan) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts the supervisor of a submission as it starts in earnest; ended with the test."""
    started = []

    def start(path: Path, **fields: Any) -> subprocess.Popen[bytes]:
        submissions.write(written(path, plan, **fields))
        process = subprocess.Popen(
            [sys.executable, "-m", "producer.detached", str(submissions.path("it").parents[1]), "it"],
            env={**os.environ, "V5_DATA_DIR": str(submissions.path("it").parents[1])},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def written(path: Path, plan: Plan, **fields: Any) -> Detached:
    arguments = ("--plan", plan.model_dump_json(), str(path), "-c", "c")
    return Detached(**{"id": "it", "arguments": arguments, "cwd": "/", "collection": "c",
                       "created": time.time(), **fields})  # fmt: skip


def read(submissions: Submissions) -> Detached:
    found = submissions.read("it")
    assert found is not None
    return found


@pytest.mark.usefixtures("redis_server")
def test_a_producer_killed_before_it_has_a_job_starts_again_and_lets_go_when_stopped(
    submissions: Submissions,
    supervise: Callable[..., subprocess.Popen[bytes]],
    corpus: Callable[..., Path],
    eventually: Callable[..., Any],
) -> None:
    supervisor = supervise(corpus(1))
    first = eventually(lambda: read(submissions).producer)
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: (one := read(submissions).producer) != first and one)
    assert (read(submissions).restarts, read(submissions).exit_code) == (1, None)
    assert birth(second)
    supervisor.terminate()
    assert supervisor.wait(30) == 0
    assert not birth(second)
    stopped = read(submissions)
    assert (stopped.pid, stopped.producer, stopped.exit_code) == (0, 0, None)


def test_redis_away_ends_nothing_and_what_cannot_be_ends_at_once(
    submissions: Submissions,
    supervise: Callable[..., subprocess.Popen[bytes]],
    corpus: Callable[..., Path],
    eventually: Callable[..., Any],
    tmp_path: Path,
) -> None:
    # With a job, or long after it was detached: nobody waits to be told.
    for fields in ({"job": "there-is-one"}, {"created": 1.0}):
        supervisor = supervise(corpus(1), **fields)
        eventually(lambda: read(submissions).restarts)
        assert (read(submissions).exit_code, read(submissions).said) == (None, "exit code 1")
        supervisor.kill()
        supervisor.wait()
    for path, code in ((corpus(1), 1), (tmp_path / "absent.jsonl", 2)):
        assert supervise(path).wait(60) == 0
        ended = read(submissions)
        assert (ended.exit_code, ended.restarts, ended.running) == (code, 0, False)


def test_it_gives_up_only_where_nothing_was_stored_for_long(
    submissions: Submissions, corpus: Callable[..., Path], plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory is gone: the producer cannot even be started."""
    monkeypatch.setattr(detached, "FUTILE", 3.0)
    monkeypatch.setattr(detached, "BACKOFF", 0.02)
    monkeypatch.setattr(detached, "MOST_BACKOFF", 0.02)
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)}
    submission = written(corpus(1), plan, cwd="/there/is/none", job="there-is-one")
    try:
        Supervisor(submissions, submission).run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    ended = read(submissions)
    assert ended.exit_code == 1
    assert ended.restarts > 12


@pytest.mark.parametrize(("end", "code"), [("cancel", 1), ("seal", 0)])
def test_a_job_that_ended_while_its_producer_was_gone_is_not_opened_anew(
    ledger: Ledger,
    submissions: Submissions,
    supervise: Callable[..., subprocess.Popen[bytes]],
    corpus: Callable[..., Path],
    plan: Plan,
    end: str,
    code: int,
) -> None:
    path = corpus(1)
    job, _ = ledger.jobs.open("c", plan, [str(path)])
    getattr(ledger.jobs, end)(job.id)
    assert supervise(path, job=job.id).wait(60) == 0
    ended = read(submissions)
    assert (ended.exit_code, ended.said) == (
        code,
        f"{ledger.jobs.get(job.id).state}: 0 stored, 0 dead letters",
    )
    assert [one.id for one in ledger.jobs.list()] == [job.id]
