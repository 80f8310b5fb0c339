"""`v5 submit --detach`: a producer that outlives its terminal and its own death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from registry.processes import birth
from registry.submissions import Detached, Submissions, submissions_of

pytestmark = pytest.mark.fleet

COUNT = 500


@pytest.fixture
def detaching(fake_fleet: Any) -> Iterator[Any]:
    """A fleet that is slow enough for things to happen in the middle of a job; no producer outlives it."""
    fake_fleet.environment |= {"V5_FAKE_SECONDS": "0.004", "V5_INFLIGHT_BYTES": "100000"}
    fake_fleet.up()
    yield fake_fleet
    written(fake_fleet).stop()


def written(fleet: Any) -> Submissions:
    return submissions_of(fleet.settings())


def producer_of(fleet: Any, ledger: Ledger) -> Any:
    return next((process for process in ledger.alive.list() if process.kind == "producer"), None)


def check(fleet: Any, path: Path, job: str) -> None:
    found = fleet.ok("verify", str(path), "-c", "c")
    assert (found["present"], found["missing"], found["stale"]) == (COUNT, 0, 0)
    (seen,) = [row for row in fleet.ok("jobs") if row["job"] == job]
    assert (seen["state"], seen["done"], seen["staged"]) == ("done", COUNT, COUNT), seen


def test_it_outlives_its_terminal_and_its_own_death_and_is_shown(
    detaching: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    path = corpus(COUNT)
    # A session of its own, as a terminal has one; hung up as soon as the command has returned.
    terminal = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _TERMINAL,
            sys.executable,
            "-m",
            "v5",
            "submit",
            str(path),
            "-c",
            "c",
            "--detach",
        ],
        env=detaching.environment,
        start_new_session=True,
    )
    assert terminal.wait(60) == -signal.SIGHUP
    ledger = Ledger(detaching.settings())
    (submission,) = written(detaching).ours()
    assert submission.running
    assert os.getsid(submission.pid) == submission.pid
    again = detaching.ok("submit", str(path), "-c", "c", "--detach")
    assert (again["started"], again["job"], again["pid"]) == (False, submission.job, submission.pid)

    first = eventually(lambda: producer_of(detaching, ledger))
    shown = {row["name"]: row for row in detaching.ok("ps")["processes"]}["submit-c"]
    assert shown["kind"] == "producer"
    assert submission.job in shown["note"]
    eventually(lambda: ledger.jobs.get(submission.job).done > 50)
    os.kill(first.pid, signal.SIGKILL)
    eventually(
        lambda: (one := producer_of(detaching, ledger)) and one.pid != first.pid, what="a new producer"
    )
    eventually(lambda: ledger.jobs.get(submission.job).state == "done", 90)
    ended = eventually(lambda: (one := written(detaching).ours()[0]).exit_code is not None and one)
    assert (ended.exit_code, ended.restarts) == (0, 1)
    ledger.close()
    check(detaching, path, submission.job)


#: Runs a command, then hangs up on everything in its session, itself included.
_TERMINAL = """
import os, signal, subprocess, sys
assert subprocess.run(sys.argv[1:]).returncode == 0
os.killpg(0, signal.SIGHUP)
"""


def test_down_stops_it_up_goes_on_and_a_killed_supervisor_is_continued_by_the_same_command(
    detaching: Any, corpus: Callable[..., Path], eventually: Callable[..., Any]
) -> None:
    path = corpus(COUNT)
    job = detaching.ok("submit", str(path), "-c", "c", "--detach")["job"]
    submissions = written(detaching)
    assert submissions.ours()[0].running
    assert "submit-c" in detaching.ok("down")["stopped"]
    (stopped,) = submissions.ours()
    assert not stopped.running
    assert stopped.exit_code is None
    assert "what is staged goes on" in submissions.log(stopped.id).read_text()
    up = detaching.ok("up", "--primary", "qdrant-minilm-onnx", "--companion", "all-miniLM-l6")
    assert up["resumed"] == ["c"]
    running = eventually(lambda: (one := submissions.ours()[0]).running and one)

    ledger = Ledger(detaching.settings())
    producer = eventually(lambda: producer_of(detaching, ledger))
    os.kill(running.pid, signal.SIGKILL)
    eventually(lambda: not birth(producer.pid), what="the producer to end with its supervisor")
    assert ledger.jobs.get(job).state == "open"
    assert detaching.ok("submit", str(path), "-c", "c", "--detach")["job"] == job
    eventually(lambda: ledger.jobs.get(job).state == "done", 90)
    ledger.close()
    check(detaching, path, job)


def test_cancel_ends_it_and_what_is_wrong_is_said_before_detaching(
    detaching: Any, corpus: Callable[..., Path], eventually: Callable[..., Any], tmp_path: Path
) -> None:
    for arguments, words in (
        (["-"], "write it to a file"),
        ([str(tmp_path / "absent")], "absent"),
        ([str(corpus(1)), "--dry-run"], "--dry-run"),
    ):
        done = detaching.v5("submit", *arguments, "-c", "c", "--detach")
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
    submissions = written(detaching)
    assert submissions.ours() == []
    path = corpus(5000)

    def of(job: str) -> Detached:
        return next(one for one in submissions.ours() if one.job == job)

    def cancelled(job: str) -> None:
        detaching.ok("cancel", job)
        ended = eventually(lambda: (one := of(job)).exit_code is not None and one)
        assert (ended.exit_code, ended.restarts, ended.running) == (1, 0, False)
        assert ended.said.startswith("cancelled")

    first = detaching.ok("submit", str(path), "-c", "c", "--detach")["job"]
    # Other words, the same job: the ledger knows who has it.
    other = detaching.v5("submit", "-c", "c", str(path), "--detach")
    assert other.returncode == 1
    assert f"job {first} is being submitted by" in other.stderr
    cancelled(first)
    second = detaching.ok("submit", str(path), "-c", "c", "--detach")["job"]
    # The fleet's supervisor starts it again, and it finds its job ended rather than open another.
    supervisor = of(second).pid
    assert supervisor > 0
    os.kill(supervisor, signal.SIGKILL)
    cancelled(second)
    assert {row["job"]: row["state"] for row in detaching.ok("jobs")} == {
        first: "cancelled",
        second: "cancelled",
    }
