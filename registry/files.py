"""What the rooms share about files of this machine."""

from __future__ import annotations

from pathlib import Path

#: Lines of a failed process' log that are shown.
LOG_LINES = 6


def write_whole(path: Path, text: str) -> None:
    """Write a file all at once: whoever reads meanwhile finds the former text. Raises OSError."""
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def tail(path: Path, lines: int = LOG_LINES) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
