"""Progress for people (a bar on a terminal, a line now and then elsewhere) and for programs (JSON lines)."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

import click

from producer.submission import Progress
from registry.console import print_json

#: A plain or JSON progress line this often while something moves. Seconds.
LINE_EVERY = 2.0
#: … and this often while nothing does. Seconds.
STILL_EVERY = 20.0


class Meter:
    """Shows a submission's or a job's progress; `total` is unknown until the corpus has been read."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._lined = time.monotonic()
        self._said: tuple[int, int, str] = (0, 0, "")
        self._bar: Any = None
        self._task: Any = None
        # The rate is that of the last stretch, so that it tells the time left.
        self._marks: list[tuple[float, int]] = []

    def __enter__(self) -> Self:
        if not self._as_json and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("embedding", total=None, said="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: Progress) -> None:
        """Show how far it is."""
        now = time.monotonic()
        recent = [mark for mark in self._marks if now - mark[0] < 15.0]
        self._marks = [*recent[-200:], (now, progress.done)]
        if self._bar is not None:
            total = progress.read + progress.dead if progress.complete else None
            self._bar.update(self._task, completed=progress.finished, total=total, said=self.line(progress))
            return
        moved = (progress.finished, progress.read, progress.waiting) != self._said
        if now - self._lined < (LINE_EVERY if moved else STILL_EVERY):
            return
        self._lined = now
        self._said = (progress.finished, progress.read, progress.waiting)
        if self._as_json:
            print_json({"event": "progress", **self._numbers(progress)})
        else:
            click.echo(self.line(progress), err=True)

    @property
    def rate(self) -> float:
        """Chunks per second over the last stretch."""
        (then, before), (now, done) = self._marks[0], self._marks[-1]
        return (done - before) / (now - then) if now > then else 0.0

    def _left(self, progress: Progress) -> float | None:
        """Seconds to the end; None while it cannot be told."""
        if not progress.complete or self.rate <= 0:
            return None
        return max(0, progress.read - progress.skipped - progress.done) / self.rate

    def _numbers(self, progress: Progress) -> dict[str, Any]:
        left = self._left(progress)
        return {
            "job": progress.job,
            "read": progress.read,
            "skipped": progress.skipped,
            "staged": progress.staged,
            "done": progress.done,
            "dead": progress.dead,
            "complete": progress.complete,
            "chunks_per_second": round(self.rate, 1),
            "seconds_left": None if left is None else round(left),
            "waiting": progress.waiting,
        }

    def line(self, progress: Progress) -> str:
        """One line for people."""
        left = self._left(progress)
        known = f"{progress.read}" if progress.complete else f"{progress.read}+"
        parts = [f"{progress.skipped + progress.done}/{known} chunks", f"{self.rate:.0f} chunks/s"]
        if left is not None:
            parts.append(f"{left:.0f} s left")
        if progress.dead:
            parts.append(f"{progress.dead} dead letters")
        if progress.waiting:
            parts.append(progress.waiting)
        return ", ".join(parts)
