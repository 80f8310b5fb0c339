"""What the rooms share about processes of this machine."""

from __future__ import annotations

import ctypes
import signal
import sys
from pathlib import Path

#: Runs a `v5` command. Not from the working directory (-P), which may hold packages of our rooms' names.
V5 = (sys.executable, "-P", "-m", "v5")

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """In a child, before exec: get SIGTERM when the parent ends, however it ends (Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def birth(pid: int) -> int:
    """Start of a process in ticks since boot; 0 if it does not run (or has ended and was not waited for)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
