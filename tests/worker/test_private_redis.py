"""The private server as it was started."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ledger.ledger import Ledger
from registry.settings import MIB

#: Blobs of a batch, and the pages of both.
BLOBS = ["b:x", "b:y"]
PAGES = len(BLOBS) * MIB // 4096


def test_the_memory_of_blobs_is_there_for_the_next(
    ledger: Ledger, redis_server: subprocess.Popen[bytes]
) -> None:
    about = ledger.redis.info()
    # What is supervised, and dies with its parent, is no wrapper around it.
    assert about["process_id"] == redis_server.pid
    if about["mem_allocator"] != "libc":
        pytest.skip("this server was built with an allocator of its own")
    before, batches = _faults(redis_server.pid), 50
    for _ in range(batches):
        for key in BLOBS:
            ledger.blobs.put("b", key, bytes(MIB))
        ledger.blobs.get("b", BLOBS)
        ledger.blobs.delete("b", BLOBS)
    assert _faults(redis_server.pid) - before < batches * PAGES / 2


def _faults(pid: int) -> int:
    """Pages that the system gave to a process so far."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])
