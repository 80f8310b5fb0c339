"""Detached submissions as they are written down in the data directory, for who starts, shows or ends them.

Each is the command without its environment: settings, and the secrets among them, come from whoever starts
it. `producer/detached.py` runs one; a local fleet goes on with those that are its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from registry.errors import FleetError
from registry.files import write_whole
from registry.processes import birth
from registry.settings import Settings

#: How long the command that detaches waits for a job. Seconds.
WAIT = 30.0
#: How long a producer gets to let go of its job. Seconds.
GRACE = 20.0
#: How long one is waited for that was killed. Seconds.
KILLED = 5.0
#: Submissions that have ended are remembered for this long. Seconds.
HISTORY = 7 * 86400
#: A longer log is put aside at the next start, and the one put aside before it goes. Bytes.
MOST_LOG = 8 << 20


@dataclass(frozen=True)
class Detached:
    """A submission as it is written down."""

    id: str
    #: What follows `v5 submit`.
    arguments: tuple[str, ...]
    cwd: str
    collection: str
    created: float
    #: The Redis it goes to, without its password; empty: the private one of the data directory.
    redis: str = ""
    #: The supervisor: pid and start in the kernel's ticks. 0 if it was stopped.
    pid: int = 0
    born: int = 0
    #: Process id of the producer, 0 while there is none.
    producer: int = 0
    job: str = ""
    restarts: int = 0
    #: Set once it has ended and is not started again.
    exit_code: int | None = None
    #: How it ended, or the producer last did, in words.
    said: str = ""

    @property
    def running(self) -> bool:
        """Whether its supervisor lives."""
        return bool(self.pid) and birth(self.pid) == self.born

    @property
    def died(self) -> bool:
        """Whether its supervisor ended without a word."""
        return self.exit_code is None and bool(self.pid) and not self.running


class Submissions:
    """The detached submissions of a data directory."""

    def __init__(self, data_dir: Path, redis: str = "") -> None:
        """Those that go to `redis` are ours to show, go on with and stop; empty: the private one."""
        self._root = data_dir.absolute()
        self._redis = redis
        self._folder = self._root / "submissions"

    def log(self, name: str) -> Path:
        """The log of a submission, of its supervisor and its producer."""
        return self._root / "logs" / f"submit-{name}.log"

    def path(self, name: str) -> Path:
        """Where a submission is written down."""
        return self._folder / f"{name}.json"

    def lock(self, name: str) -> Path:
        """Held by its supervisor while it runs."""
        return self._folder / f"{name}.lock"

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
        write_whole(self.path(submission.id), json.dumps(asdict(submission)))

    def ours(self) -> list[Detached]:
        """Those of our Redis, oldest first; any that ended long ago are forgotten on the way."""
        found = [one for path in self._folder.glob("*.json") if (one := self.read(path.stem))]
        for one in found:
            if one.exit_code is not None:
                self._forget_old(one.id)
        return sorted((one for one in found if one.redis == self._redis), key=lambda one: one.created)

    def _forget_old(self, name: str) -> None:
        with contextlib.suppress(OSError):
            if time.time() - self.path(name).stat().st_mtime > HISTORY:
                for path in (self.log(name), self._aside(name), self.lock(name), self.path(name)):
                    path.unlink(missing_ok=True)

    def _aside(self, name: str) -> Path:
        return self.log(name).with_suffix(".log.old")

    def start(self, arguments: Sequence[str], collection: str) -> tuple[Detached, bool]:
        """Start a submission in a session of its own and wait until it has a job or has ended.

        Returns it and whether it was started now; the same one that runs already is left alone. Raises
        FleetError if it cannot be written down.
        """
        self.ours()
        cwd = str(Path.cwd())
        name = hashlib.sha256(json.dumps([self._redis, cwd, *arguments]).encode()).hexdigest()[:10]
        standing = self.read(name)
        if standing is not None and standing.exit_code is None and standing.running:
            return standing, False
        fresh = Detached(name, tuple(arguments), cwd, collection, time.time(), self._redis)
        try:
            self.write(fresh)
            self.spawn(name)
        except OSError as error:
            raise FleetError(
                f"the submission cannot be written down in {self._folder}: {error}; choose another data "
                "directory with V5_DATA_DIR"
            ) from error
        end = time.monotonic() + WAIT
        while True:
            found = self.read(name) or fresh
            if found.job or found.exit_code is not None or time.monotonic() > end:
                return found, True
            time.sleep(0.05)

    def spawn(self, name: str) -> None:
        """Start the supervisor of a submission that is written down; a second one ends at once."""
        log = self.log(name)
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > MOST_LOG:
            log.replace(self._aside(name))
        with log.open("ab") as out:
            subprocess.Popen(
                [sys.executable, "-P", "-m", "producer.detached", str(self._root), name],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, "V5_DATA_DIR": str(self._root)},
                start_new_session=True,
            )

    def attends(self, job: str) -> bool:
        """Whether the supervisor of a submission lives that goes on with that job."""
        return any(one.job == job and one.running for one in self.ours())

    def resume(self) -> list[str]:
        """Start ours again that are unfinished and do not run; returns their collections. Raises OSError."""
        return self._start_again([one for one in self.ours() if one.exit_code is None and not one.running])

    def revive(self) -> list[str]:
        """Start those of ours again whose supervisor died; as `resume`, but what was stopped stays so."""
        return self._start_again([one for one in self.ours() if one.died])

    def _start_again(self, waiting: Sequence[Detached]) -> list[str]:
        for one in waiting:
            self.spawn(one.id)
        return [one.collection for one in waiting]

    def stop(self) -> list[str]:
        """End those of ours that run, which lets go of their jobs; `resume` goes on with them. Returns their
        collections."""
        running = [one for one in self.ours() if one.running]
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, KILLED)):
            for one in running:
                if one.running:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one.pid, number)
            end = time.monotonic() + seconds
            while any(one.running for one in running) and time.monotonic() < end:
                time.sleep(0.05)
        return [one.collection for one in running]


def submissions_of(settings: Settings) -> Submissions:
    """The detached submissions of the settings' data directory and Redis."""
    return Submissions(settings.data_dir, "" if settings.embedded_redis else settings.ledger_address.shown)
