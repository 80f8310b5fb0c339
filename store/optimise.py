"""A program of its own: build a shard's indexes. `python optimise.py SHARD_DIRECTORY`

Qdrant Edge holds the interpreter for as long as it optimises, minutes for a large shard, in which the process
could neither answer nor renew a lease. So it happens in a child, on a copy (see store.edge_collection).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

import qdrant_edge

#: prctl's option, from linux/prctl.h.
_PR_SET_PDEATHSIG = 1


def main(directory: str) -> None:
    """Optimise the shard and leave it closed. Dies with its parent, and gives way to other processes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(10)
    shard = qdrant_edge.EdgeShard.load(directory)
    shard.optimize()
    shard.flush()
    # Replaced segments are deleted from disk only here.
    shard.close()


if __name__ == "__main__":
    main(sys.argv[1])
