"""Detached submissions as they are written down: whose they are, which are started again, what is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from registry.processes import birth
from registry.settings import load_settings
from registry.submissions import HISTORY, MOST_LOG, Detached, Submissions, submissions_of

FAR = "redis://far:6379/0"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """Stands for a supervisor that lives."""
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def detached(name: str, **fields: Any) -> Detached:
    return Detached(name, ("corpus.jsonl", "-c", name), "/", name, time.time(), **fields)


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What would have been started."""
    names: list[str] = []
    monkeypatch.setattr(Submissions, "spawn", lambda _self, name: names.append(name))
    return names


def test_only_the_unfinished_of_our_redis_are_started_again(
    tmp_path: Path, spawned: list[str], sleeper: subprocess.Popen[bytes]
) -> None:
    here = Submissions(tmp_path)
    alive = {"pid": sleeper.pid, "born": birth(sleeper.pid)}
    # The same pid, which another process had before the machine started again.
    dead = {"pid": sleeper.pid, "born": birth(sleeper.pid) - 1}
    for one in (
        detached("died", **dead),
        detached("stopped"),
        detached("runs", **alive),
        detached("ended", exit_code=0),
        detached("elsewhere", redis=FAR, **dead),
    ):
        here.write(one)
    assert here.revive() == ["died"] == spawned
    assert here.resume() == ["died", "stopped"]
    assert Submissions(tmp_path, FAR).resume() == ["elsewhere"]


def test_stopping_spares_what_goes_to_another_redis(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], eventually: Callable[..., Any]
) -> None:
    Submissions(tmp_path).write(detached("c", redis=FAR, pid=sleeper.pid, born=birth(sleeper.pid)))
    assert Submissions(tmp_path).stop() == []
    assert sleeper.poll() is None
    assert Submissions(tmp_path, FAR).stop() == ["c"]
    assert eventually(sleeper.poll) == -signal.SIGTERM


def test_no_secret_is_written_down(
    tmp_path: Path, spawned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.submissions.WAIT", 0.0)
    settings = load_settings(
        data_dir=tmp_path, redis_url="redis://me:sesame@far:6379/0", qdrant_api_key="abracadabra"
    )
    submission, fresh = submissions_of(settings).start(["corpus.jsonl", "-c", "c"], "c")
    assert (fresh, spawned) == (True, [submission.id])
    text = submissions_of(settings).path(submission.id).read_text()
    assert "me:***@far" in text
    assert "sesame" not in text
    assert "abracadabra" not in text


def test_what_ended_long_ago_is_forgotten_and_a_long_log_put_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Submissions(tmp_path)
    for one in (detached("old", exit_code=0), detached("open"), detached("recent", exit_code=0)):
        # Long jobs are not old jobs.
        here.write(replace(one, created=1.0))
        here.lock(one.id).touch()
        here.log(one.id).parent.mkdir(exist_ok=True)
        here.log(one.id).write_bytes(b"x" * (MOST_LOG + 1))
    long_ago = time.time() - HISTORY - 60
    for name in ("old", "open"):
        os.utime(here.path(name), (long_ago, long_ago))
    assert {one.id for one in here.ours()} == {"old", "open", "recent"}
    assert {path.stem for path in (tmp_path / "submissions").iterdir()} == {"open", "recent"}
    assert not here.log("old").exists()
    monkeypatch.setattr(subprocess, "Popen", lambda *_args, **_options: None)
    here.spawn("open")
    assert here.log("open").stat().st_size == 0
    assert here.log("open").with_suffix(".log.old").stat().st_size == MOST_LOG + 1
