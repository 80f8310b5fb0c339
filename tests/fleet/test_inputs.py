"""Corpora from a pipe and from Parquet, through a real fleet."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.fleet


@pytest.fixture
def running(fake_fleet: Any) -> Any:
    fake_fleet.up()
    return fake_fleet


def lines(first: int, end: int) -> str:
    return "".join(json.dumps({"text": f"line {i} " + "word " * (i % 30)}) + "\n" for i in range(first, end))


def piped(fleet: Any, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "v5", *arguments],
        env=fleet.environment, input=body, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def open_pipe(fleet: Any, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "v5", *arguments],
        env=fleet.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background ignores SIGINT, and its children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def end_of(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_pipe_is_submitted_and_the_same_file_is_then_known(running: Any, tmp_path: Path) -> None:
    body = lines(0, 3000)
    end = end_of(piped(running, body, "submit", "-", "-c", "c", "--name", "notes.jsonl", "--json"))
    assert (end["done"], end["skipped"], end["dead"]) == (3000, 0, 0)
    assert list((running.data_dir / "spool").iterdir()) == []
    (tmp_path / "notes.jsonl").write_text(body)
    assert running.ok("verify", str(tmp_path / "notes.jsonl"), "-c", "c")["present"] == 3000
    assert running.ok("submit", str(tmp_path / "notes.jsonl"), "-c", "c")["skipped"] == 3000
    assert (
        end_of(piped(running, body, "verify", "-", "-c", "c", "--name", "notes.jsonl", "--json"))["present"]
        == 3000
    )


def test_chunks_are_stored_before_the_pipe_has_ended(running: Any, eventually: Callable[..., Any]) -> None:
    submit = open_pipe(running, "submit", "-", "-c", "c", "--json")
    assert submit.stdin is not None
    submit.stdin.write(lines(0, 700))
    submit.stdin.flush()
    # Two windows of 256; the third is not full yet.
    eventually(lambda: (jobs := running.ok("jobs")) and jobs[0]["done"] >= 512, what="two windows stored")
    assert submit.poll() is None
    submit.stdin.write(lines(700, 1000))
    out, err = submit.communicate(timeout=100)
    assert submit.returncode == 0, err
    assert json.loads(out.splitlines()[-1])["done"] == 1000


def test_an_interrupted_pipe_goes_on_where_it_is_given_again(
    running: Any, eventually: Callable[..., Any]
) -> None:
    submit = open_pipe(running, "submit", "-", "-c", "c")
    assert submit.stdin is not None
    submit.stdin.write(lines(0, 600))
    submit.stdin.flush()
    eventually(lambda: (jobs := running.ok("jobs")) and jobs[0]["staged"] >= 512, what="two windows staged")
    submit.send_signal(signal.SIGINT)
    _, err = submit.communicate(timeout=60)
    assert submit.returncode == 130
    assert "the same command again with the same pipe does the rest" in err
    end = end_of(piped(running, lines(0, 600), "submit", "-", "-c", "c", "--json"))
    [job] = running.ok("jobs")
    assert end["job"] == job["job"]
    assert (end["chunks"], end["dead"], job["state"]) == (600, 0, "done")
    assert end["skipped"] >= 512


@pytest.mark.parametrize(
    ("arguments", "body", "said"),
    [
        (["-", "-"], "x", "stands alone"),
        (["-", "other.jsonl"], "x", "stands alone"),
        (["-"], "", "nothing came on standard input"),
        (["nowhere.jsonl", "--name", "n"], "", "--name is for JSON Lines from a pipe"),
    ],
)
def test_a_pipe_that_cannot_be_is_a_usage_error(
    fake_fleet: Any, arguments: list[str], body: str, said: str
) -> None:
    done = piped(fake_fleet, body, "submit", *arguments, "-c", "c")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_parquet_is_submitted_and_known_again(running: Any, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    texts: list[str | None] = [f"row {i}" for i in range(1000)]
    texts[7] = None
    columns = {
        "text": pa.array(texts).dictionary_encode(),
        "id": list(range(1000)),
        "metadata": [{"n": i, "tags": ["a"]} for i in range(1000)],
        "seen": pa.array([1_700_000_000] * 1000, pa.timestamp("s", "UTC")),
        "thumbnail": [b"\0"] * 1000,
    }
    pq.write_table(pa.table(columns), tmp_path / "p/rows.parquet", row_group_size=300)
    end = running.ends(3, "submit", str(tmp_path / "p"), "-c", "c")
    assert (end["done"], end["dead"]) == (999, 1)
    assert end["ignored_reasons"] == {
        "column thumbnail is binary, which JSON cannot hold; the chunks go without it": 1
    }
    payload = running.ok("get", "42", "-c", "c")["payload"]
    assert payload["metadata"] == {"n": 42, "tags": ["a"]}
    assert payload["seen"] == "2023-11-14 22:13:20.000Z"
    assert (payload["path"], payload["row"]) == ("p/rows.parquet", 42)
    assert "p/rows.parquet[7]" in running.v5("dead", end["job"]).stdout
    assert running.ends(3, "submit", str(tmp_path / "p"), "-c", "c")["skipped"] == 999
