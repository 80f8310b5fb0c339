"""Detached submissions: `v5 submit --detach` in a session of its own, started again where it dies.

A submission is written down in the data directory, without its environment: settings, and the secrets among
them, come from whoever starts it. Its supervisor is `python -m producer.detached run FILE`, its producer a
child of that: `v5 submit` with the same arguments, which adopts the job it left. `resume` starts what is
written down as unfinished and does not run (after a reboot); `stop` ends what runs, as Ctrl-C would.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from registry.errors import FleetError
from registry.processes import birth, die_with_parent

log = logging.getLogger(__name__)

#: First wait before a restart; doubles up to MOST_BACKOFF. Seconds.
BACKOFF = 1.0
MOST_BACKOFF = 60.0
#: So many ends in a row between which nothing was stored, and a person has to look.
MOST_FUTILE = 10
#: How long the command that detaches waits for a job. Seconds.
WAIT = 30.0
#: How long a producer gets to let go of its job. Seconds.
GRACE = 20.0
#: The log gets a line about progress this often. Seconds.
LINE_EVERY = 30.0
#: Submissions that have ended are remembered for this long. Seconds.
HISTORY = 7 * 86400


@dataclass(frozen=True)
class Detached:
    """A submission as it is written down."""

    id: str
    #: What follows `v5 submit`.
    arguments: tuple[str, ...]
    cwd: str
    collection: str
    created: float
    #: The supervisor: pid and start in the kernel's ticks.
    pid: int = 0
    born: int = 0
    job: str = ""
    restarts: int = 0
    #: Set once it has ended and is not started again.
    exit_code: int | None = None
    #: How it ended, or last failed, in words.
    said: str = ""

    @property
    def running(self) -> bool:
        """Whether its supervisor lives."""
        return bool(self.pid) and birth(self.pid) == self.born


class Submissions:
    """The detached submissions of a data directory."""

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir.absolute()
        self._folder = self._root / "submissions"

    def log(self, name: str) -> Path:
        """The log of a submission, of its supervisor and its producer."""
        return self._root / "logs" / f"submit-{name}.log"

    def path(self, name: str) -> Path:
        """Where a submission is written down."""
        return self._folder / f"{name}.json"

    def read(self, name: str) -> Detached | None:
        """A submission; None if it is not there or cannot be read."""
        try:
            fields = json.loads(self.path(name).read_text())
            return Detached(**{**fields, "arguments": tuple(fields["arguments"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, submission: Detached) -> None:
        """Write a submission down, all of it or nothing. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = self.path(submission.id).with_suffix(".new")
        fresh.write_text(json.dumps(asdict(submission)))
        fresh.replace(self.path(submission.id))

    def all(self) -> list[Detached]:
        """All of them, oldest first; those that ended long ago are forgotten on the way."""
        found = [one for path in self._folder.glob("*.json") if (one := self.read(path.stem))]
        for one in found:
            if one.exit_code is not None and time.time() - one.created > HISTORY:
                for path in (self.path(one.id), self.log(one.id)):
                    path.unlink(missing_ok=True)
        return sorted(found, key=lambda one: one.created)

    def start(self, arguments: Sequence[str], collection: str) -> tuple[Detached, bool]:
        """Start a submission in a session of its own and wait until it has a job or has ended.

        Returns it and whether it was started now; the same one that runs already is left alone. Raises
        FleetError if it cannot be written down.
        """
        cwd = str(Path.cwd())
        name = hashlib.sha256(json.dumps([cwd, *arguments]).encode()).hexdigest()[:10]
        standing = self.read(name)
        if standing is not None and standing.exit_code is None and standing.running:
            return standing, False
        try:
            self.write(Detached(name, tuple(arguments), cwd, collection, time.time()))
            self.spawn(name)
        except OSError as error:
            raise FleetError(
                f"the submission cannot be written down in {self._folder}: {error}; choose another data "
                "directory with V5_DATA_DIR"
            ) from error
        end = time.monotonic() + WAIT
        while True:
            found = self.read(name)
            if found is not None and (found.job or found.exit_code is not None):
                return found, True
            if time.monotonic() > end:
                return found or Detached(name, tuple(arguments), cwd, collection, time.time()), True
            time.sleep(0.05)

    def spawn(self, name: str) -> None:
        """Start the supervisor of a submission that is written down; a second one ends at once."""
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as out:
            subprocess.Popen(
                [sys.executable, "-m", "producer.detached", "run", str(self._root), name],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "V5_DATA_DIR": str(self._root)},
                start_new_session=True,
            )

    def resume(self) -> list[str]:
        """Start those again that are unfinished and do not run; returns their collections."""
        waiting = [one for one in self.all() if one.exit_code is None and not one.running]
        for one in waiting:
            self.spawn(one.id)
        return [one.collection for one in waiting]

    def stop(self) -> list[str]:
        """End those that run, which lets go of their jobs; `resume` goes on with them. Returns their
        collections."""
        running = [one for one in self.all() if one.running]
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, 5.0)):
            for one in running:
                if one.running:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one.pid, number)
            end = time.monotonic() + seconds
            while any(one.running for one in running) and time.monotonic() < end:
                time.sleep(0.05)
        return [one.collection for one in running]


class Supervisor:
    """Runs one submission's producer until it has ended for a reason that a restart would not mend."""

    def __init__(self, submissions: Submissions, submission: Detached) -> None:
        self._submissions = submissions
        self._it = submission
        self._stopping = threading.Event()
        self._child: subprocess.Popen[str] | None = None
        self._done = 0
        self._logged = 0.0

    def run(self) -> None:
        """Until it has ended, or SIGTERM or SIGINT ask for that. A hang-up is not for it."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._note(pid=os.getpid(), born=birth(os.getpid()))
        wait, futile = BACKOFF, 0
        while not self._stopping.is_set():
            before = self._done
            code, end = self._produce()
            if self._stopping.is_set():
                break
            # Before it had a job nothing is at stake, and what hinders it is said to whoever waits.
            if end is not None or code == 2 or not self._it.job:
                self._end(code, end)
                return
            futile = futile + 1 if self._done == before else 0
            if futile >= MOST_FUTILE:
                self._end(code, None)
                return
            wait = BACKOFF if self._done > before else min(wait * 2, MOST_BACKOFF)
            self._note(restarts=self._it.restarts + 1, said=_said(code))
            log.warning("the producer ended (%s); it starts again in %.0f s", _said(code), wait)
            self._stopping.wait(wait)
        self._note(pid=0, born=0, said="stopped; `v5 up`, or the same command, goes on")
        log.info("stopped; what is staged goes on")

    def _produce(self) -> tuple[int, dict[str, Any] | None]:
        """One run of the producer: its exit code and, if it came to its end, what it said then."""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "v5", "submit", *self._it.arguments, "--json"],
            cwd=self._it.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            # SIGINT at a terminal is not for it.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        if self._stopping.is_set():
            self._child.send_signal(signal.SIGINT)
        end = None
        with self._child:
            for line in self._child.stdout or ():
                event = _event(line)
                if event.get("job") and event["job"] != self._it.job:
                    self._note(job=str(event["job"]))
                    log.info("job %s, collection %s", event["job"], self._it.collection)
                self._done = max(self._done, int(event.get("done", 0)))
                if event.get("event") == "end":
                    end = event
                elif time.monotonic() - self._logged > LINE_EVERY:
                    self._logged = time.monotonic()
                    log.info("%s", line.strip())
        return self._child.returncode, end

    def _end(self, code: int, end: dict[str, Any] | None) -> None:
        said = f"{end['state']}: {end['done']} stored, {end['dead']} dead letters" if end else _said(code)
        self._note(pid=0, born=0, exit_code=code, said=said)
        log.info("ended: %s", said)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stopping.set()
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGINT)

    def _note(self, **fields: Any) -> None:
        self._it = replace(self._it, **fields)
        try:
            self._submissions.write(self._it)
        except OSError as error:
            log.warning("could not write down %s: %s", self._it.id, error)


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def _said(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def main(arguments: Sequence[str]) -> None:
    """`run DATA_DIR ID`, `resume DATA_DIR` or `stop DATA_DIR`."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    what, data_dir, *rest = arguments
    submissions = Submissions(Path(data_dir))
    if what != "run":
        print("\n".join(submissions.resume() if what == "resume" else submissions.stop()))
        return
    with submissions.path(rest[0]).with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("it runs already")
            return
        submission = submissions.read(rest[0])
        if submission is not None and submission.exit_code is None:
            Supervisor(submissions, submission).run()


if __name__ == "__main__":
    main(sys.argv[1:])
