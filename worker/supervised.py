"""Child processes that are restarted when they die and never outlive their supervisor."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from registry.processes import birth, die_with_parent

log = logging.getLogger(__name__)

#: Exit code of a process that no restart will mend: wrong settings, missing weights (EX_CONFIG).
EXIT_CONFIG = 78
#: Exit code of a process that ended itself so that its supervisor starts a fresh one (EX_SOFTWARE).
EXIT_GAVE_UP = 70
#: Names the pipe on which a child gives signs of life, and the two it gives: still starting, and well.
HEARTBEAT = "V5_HEARTBEAT_FD"
STARTING, WELL = b".", b"!"
#: First wait before a restart; doubles up to MOST_BACKOFF. Seconds.
BACKOFF = 0.5
MOST_BACKOFF = 30.0
#: … and up to this where it had been ready: what ended it came with its work, and waiting would not mend it.
MOST_AFTER_READY = 4.0
#: A process that lived this long starts with a fresh backoff. Seconds.
SETTLED = 60.0
#: A longer pause between two looks was the supervisor's own, which was stopped, not the child's. Seconds.
MOST_TICK = 1.0


@dataclass(frozen=True)
class Silence:
    """How long a child may give no sign of life. Seconds."""

    #: Until it is ready: imports and the loading of a model may hold the interpreter for long.
    starting: float
    ready: float


@dataclass
class Child:
    """One supervised process."""

    name: str
    command: list[str]
    log: Path
    environment: dict[str, str] = field(default_factory=dict)
    #: Set for a child that gives signs of life; one that is silent for longer hangs, and is killed.
    silence: Silence | None = None
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    last_exit: int | None = None
    #: How it ended last, in words; empty if it never did.
    last_end: str = ""
    #: True once it ended in a way that no restart mends.
    failed: bool = False
    _started: float = 0.0
    _again: float = 0.0
    _wait: float = BACKOFF
    _pipe: int | None = None
    _looked: float = 0.0
    _silent: float = 0.0
    _well: bool = False
    _hung: str = ""

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
        heard, signs = os.pipe() if self.silence else (None, None)
        try:
            with self.log.open("ab") as out:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    env={**os.environ, **self.environment, **({HEARTBEAT: str(signs)} if signs else {})},
                    # A terminal's Ctrl-C is for the supervisor, which stops its children in order.
                    start_new_session=True,
                    preexec_fn=die_with_parent,
                    pass_fds=[signs] if signs else [],
                )
        finally:
            if signs is not None:
                os.close(signs)
        if heard is not None:
            os.set_blocking(heard, False)
        self._pipe, self._silent, self._well, self._hung = heard, 0.0, False, ""
        self._started = self._looked = time.monotonic()

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
            self._listen(self.process, now)
            return False
        self.last_exit, self.process = code, None
        self.last_end = self._hung or _said(code)
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if code == EXIT_CONFIG:
            self.failed = True
            log.error("%s cannot start and is not restarted; its reason is in %s", self.name, self.log)
            return True
        most = MOST_AFTER_READY if self._well else MOST_BACKOFF
        self._wait = BACKOFF if now - self._started > SETTLED else min(self._wait * 2, most)
        self._again = now + self._wait
        self.restarts += 1
        log.warning("%s died (%s); restart %d in %.1f s", self.name, self.last_end, self.restarts, self._wait)
        return True

    def _listen(self, process: subprocess.Popen[bytes], now: float) -> None:
        """Kill it if it has been silent for too long. Only silence that the supervisor was there for counts:
        after a stop of both, the child has its time to speak."""
        if self._pipe is None or self.silence is None or self._hung:
            return
        self._silent += min(now - self._looked, MOST_TICK)
        self._looked = now
        try:
            heard = os.read(self._pipe, 4096)
        except BlockingIOError:
            heard = b""
        if heard:
            self._silent, self._well = 0.0, heard.endswith(WELL)
        if self._silent > (self.silence.ready if self._well else self.silence.starting):
            self._hung = f"killed: it gave no sign of life for {self._silent:.0f} s"
            log.error("%s hangs and is killed: it gave no sign of life for %.0f s", self.name, self._silent)
            process.kill()

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
    if code == EXIT_GAVE_UP:
        return f"it gave up, exit code {code}; its log says why"
    return f"exit code {code}"
