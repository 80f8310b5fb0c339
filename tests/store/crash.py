"""A process that opens a store, does as told, and dies. `python crash.py ROOT STEP SCRIPT`

STEP: die before the STEP-th step on the disk (a directory made or removed, a file renamed, synced); 0: never.
SCRIPT: what to do, with `store`, `narrow`, `wide` and `arm()`, which begins to count. At its end the process
prints `done` and the number of steps.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from registry.plan import Plan
from store.edge import EdgeStore

root, step, script = sys.argv[1:]
taken = 0
armed = False
sync = os.fsync


def count() -> None:
    global taken
    if armed:
        taken += 1
        if taken == int(step):
            os.kill(os.getpid(), signal.SIGKILL)


def on_event(event: str, arguments: tuple[Any, ...]) -> None:
    if event in {"os.mkdir", "os.rename", "shutil.rmtree"}:
        count()


def counted_sync(handle: int) -> None:
    count()
    sync(handle)


def arm() -> None:
    global armed
    armed = True


sys.addaudithook(on_event)
os.fsync = counted_sync
narrow = Plan(primary="all-miniLM-l6")
wide = Plan(primary="all-miniLM-l6", companions=("bge-m3",), outputs={"bge-m3": ("dense", "sparse", "multi")})
store = EdgeStore(Path(root))
exec(script)  # noqa: S102
print("done", taken, flush=True)
