"""A detached producer and its supervisor: `v5 submit --detach` goes on here, started again where it dies.

The supervisor is `python -m producer.detached DATA_DIR ID`, its producer a child of that: `v5 submit` with
the same arguments, which adopts the job it left. `registry/submissions.py` says how they are written down.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from registry.processes import V5, birth, die_with_parent
from registry.submissions import WAIT, Detached, Submissions

log = logging.getLogger(__name__)

#: First wait before a restart; doubles up to MOST_BACKOFF. Seconds.
BACKOFF = 1.0
MOST_BACKOFF = 60.0
#: Where it ended again and again and nothing was stored for this long, a person has to look. Seconds.
FUTILE = 86400.0
#: The log gets a line about progress this often. Seconds.
LINE_EVERY = 30.0
#: Exit code of a command that asks for what cannot be: no restart mends it.
_EXIT_USAGE = 2


class Supervisor:
    """Runs one submission's producer until it has ended for a reason that a restart would not mend."""

    def __init__(self, submissions: Submissions, submission: Detached) -> None:
        self._submissions = submissions
        self._it = submission
        self._stopping = threading.Event()
        self._child: subprocess.Popen[str] | None = None
        #: Chunks that the producer of now has seen stored.
        self._done = 0
        self._logged = 0.0

    def run(self) -> None:
        """Until it has ended, or SIGTERM or SIGINT ask for that. A hang-up is not for it."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        self._note(pid=os.getpid(), born=birth(os.getpid()), said="")
        wait, stored = BACKOFF, time.monotonic()
        while not self._stopping.is_set():
            code, end = self._produce()
            if end is not None:
                self._end(code, f"{end['state']}: {end['done']} stored, {end['dead']} dead letters")
                return
            if self._stopping.is_set():
                break
            if self._done:
                wait, stored = BACKOFF, time.monotonic()
            if code == _EXIT_USAGE or (code > 0 and self._awaited) or time.monotonic() - stored > FUTILE:
                self._end(code, _said(code))
                return
            self._note(producer=0, restarts=self._it.restarts + 1, said=_said(code))
            log.warning("the producer ended (%s); it starts again in %.0f s", _said(code), wait)
            self._stopping.wait(wait)
            wait = min(wait * 2, MOST_BACKOFF)
        self._note(pid=0, born=0, producer=0, said="stopped; `v5 up`, or the same command, goes on")
        log.info("stopped; what is staged goes on")

    @property
    def _awaited(self) -> bool:
        """Whether who detached it still waits for its job, and is told what hinders it."""
        return not self._it.job and time.time() - self._it.created < WAIT

    def _produce(self) -> tuple[int, dict[str, Any] | None]:
        """One run of the producer: its exit code and, if it came to its end, what it said then."""
        self._done, end = 0, None
        continued = ["--job", self._it.job] if self._it.job else []
        try:
            self._child = subprocess.Popen(
                [*V5, "submit", "--json", *continued, *self._it.arguments],
                cwd=self._it.cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                text=True,
                # SIGINT at a terminal is not for it.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        except OSError as error:
            log.error("the producer cannot be started: %s", error)
            return 1, None
        if self._stopping.is_set():
            self._child.terminate()
        self._note(producer=self._child.pid)
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

    def _end(self, code: int, said: str) -> None:
        self._note(pid=0, born=0, producer=0, exit_code=code, said=said)
        log.info("ended: %s", said)

    def _on_signal(self, _number: int, _frame: object) -> None:
        self._stopping.set()
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

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


def main(data_dir: str, name: str) -> None:
    """Supervise the submission of that id, unless somebody does or it has ended."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    submissions = Submissions(Path(data_dir))
    with submissions.lock(name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("it runs already")
            return
        submission = submissions.read(name)
        if submission is not None and submission.exit_code is None:
            Supervisor(submissions, submission).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
