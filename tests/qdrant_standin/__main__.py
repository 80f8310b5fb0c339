"""The stand-in as a program, from the repository's root: `python -m tests.qdrant_standin --root DIR`.

Prints its ports as a line of JSON when it serves; SIGTERM and SIGINT stop it.
"""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path

from tests.qdrant_standin.standin import Standin


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.qdrant_standin", description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument("--api-key")
    parser.add_argument("--read-only-api-key")
    parser.add_argument("--version", default="1.18.0")
    parser.add_argument("--tls", type=Path, nargs=2, metavar=("CERTIFICATE", "KEY"))
    given = vars(parser.parse_args())
    stop = {signal.SIGTERM, signal.SIGINT}
    # Blocked in every thread that is started below, so that only `sigwait` takes them.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    with Standin(**{**given, "tls": given["tls"] and tuple(given["tls"])}) as standin:
        print(json.dumps({"port": standin.port, "grpc_port": standin.grpc_port}), flush=True)
        signal.sigwait(stop)


if __name__ == "__main__":
    main()
