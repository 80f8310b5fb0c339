"""Child processes that are restarted when they die and never outlive their supervisor."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

#: Exit code of a process that no restart will mend: wrong settings, missing weights (EX_CONFIG).
EXIT_CONFIG = 78
#: First wait before a restart; doubles up to MOST_BACKOFF. Seconds.
BACKOFF = 0.5
MOST_BACKOFF = 30.0
#: A process that lived this long starts with a fresh backoff. Seconds.
SETTLED = 60.0

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """In a child, before exec: get SIGTERM when the parent ends, however it ends (Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Child:
    """One supervised process."""

    name: str
    command: list[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    last_exit: int | None = None
    #: True once it ended in a way that no restart mends.
    failed: bool = False
    _started: float = 0.0
    _again: float = 0.0
    _wait: float = BACKOFF

    @property
    def born(self) -> int:
        """When it started, in the kernel's ticks: with the pid, its name for good. 0 if it does not run."""
        return birth(self.pid)

    @property
    def pid(self) -> int:
        """Process id, 0 while it does not run."""
        return self.process.pid if self.process is not None and self.process.poll() is None else 0

    def start(self) -> None:
        """Start it, its output appended to its log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **self.environment},
                # A terminal's Ctrl-C is for the supervisor, which stops its children in order.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        self._started = time.monotonic()

    def watch(self) -> bool:
        """Restart it if it died and its backoff is over; True if something changed."""
        if self.failed:
            return False
        now = time.monotonic()
        if self.process is None:
            if now < self._again:
                return False
            self.start()
            return True
        code = self.process.poll()
        if code is None:
            return False
        self.last_exit, self.process = code, None
        if code == EXIT_CONFIG:
            self.failed = True
            log.error("%s cannot start and is not restarted; its reason is in %s", self.name, self.log)
            return True
        self._wait = BACKOFF if now - self._started > SETTLED else min(self._wait * 2, MOST_BACKOFF)
        self._again = now + self._wait
        self.restarts += 1
        log.warning("%s died (%s); restart %d in %.1f s", self.name, _said(code), self.restarts, self._wait)
        return True

    def stop(self, grace: float) -> None:
        """SIGTERM, then SIGKILL after `grace` seconds."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            log.warning("%s did not stop in %.0f s and is killed", self.name, grace)
            self.process.kill()
            self.process.wait()


def birth(pid: int) -> int:
    """Start of a process in ticks since boot; 0 if it does not run (or has ended and was not waited for)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])


def stop_all(children: list[Child], grace: float) -> None:
    """Stop several at once, waiting for all of them."""
    for child in children:
        if child.pid:
            child.process.terminate()  # type: ignore[union-attr]
    end = time.monotonic() + grace
    for child in children:
        child.stop(max(0.1, end - time.monotonic()))


def _said(code: int) -> str:
    if code < 0:
        try:
            return f"killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"killed by signal {-code}"
    return f"exit code {code}"
