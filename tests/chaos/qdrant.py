"""The stand-in for a Qdrant server as a process that takes faults by signal: `python -m tests.chaos.qdrant`.

SIGUSR1 fills its disk, SIGUSR2 makes it read-only, SIGHUP mends both.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from tests.qdrant_standin.standin import Standin

_HEARD = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}


def main(root: str, port: str, grpc_port: str, api_key: str) -> None:
    # Blocked in every thread that is started below, so that only `sigwait` takes them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _HEARD)
    with Standin(Path(root), api_key=api_key, port=int(port), grpc_port=int(grpc_port)) as standin:
        while (heard := signal.sigwait(_HEARD)) is not signal.SIGTERM:
            standin.disk_full = heard is signal.SIGUSR1
            standin.read_only = heard is signal.SIGUSR2


if __name__ == "__main__":
    main(*sys.argv[1:])
