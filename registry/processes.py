"""What the rooms share about processes of this machine."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from pathlib import Path

#: Runs a `v5` command. Not from the working directory (-P), which may hold packages of our rooms' names.
V5 = (sys.executable, "-P", "-m", "v5")

#: How much freed memory a process keeps for the next of its kind, and the smallest that it gives back at
#: once. Bytes.
_KEPT_BYTES = 32 << 20
#: What `keep_freed_memory` sets, for a process of another kind: its environment, as glibc reads it. To set
#: only one of them would undo the other.
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": str(_KEPT_BYTES), "MALLOC_MMAP_THRESHOLD_": str(_KEPT_BYTES)}
#: New objects between two looks of the garbage collector at the youngest; Python's own is 700.
_COLLECT_EVERY = 20_000

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def die_with_parent() -> None:
    """In a child, before exec: get SIGTERM when the parent ends, however it ends (Linux)."""
    if _libc is not None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def keep_freed_memory() -> None:
    """Keep the memory of freed blobs for the next ones: a megabyte's pages, fetched anew each time, are a
    twentieth of what the pipeline takes. Only with glibc; what the environment says of it stands."""
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None and not ALLOCATOR.keys() & os.environ.keys():
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)


def collect_rarely() -> None:
    """Have the garbage collector look at new objects less often: while a command imports what it needs,
    nothing of it is garbage, and the looks take a fifteenth of the time."""
    gc.set_threshold(_COLLECT_EVERY, 20, 20)


def spare_what_stands() -> None:
    """Have the garbage collector never look again at what was loaded until now. For a process that serves
    for long."""
    gc.collect()
    gc.freeze()


def birth(pid: int) -> int:
    """Start of a process in ticks since boot; 0 if it does not run (or has ended and was not waited for)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return 0
    return 0 if fields[0] == "Z" else int(fields[19])
