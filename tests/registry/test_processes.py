"""What processes of this machine share: memory that was freed, and what the garbage collector looks at."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from registry.processes import ALLOCATOR

#: Prints the page faults of a hundred rounds of eight blobs of 1 MiB, freed before the next.
_BLOBS = """
import resource
def rounds(count):
    for _ in range(count):
        blobs = [b"x" * (1 << 20) for _ in range(8)]
        del blobs
rounds(5)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
rounds(100)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
_KEEP = "from registry.processes import keep_freed_memory; keep_freed_memory()\n"
#: Pages of 4 KiB in the blobs of one round.
_PAGES = 2048


def _faults(program: str, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", program], env=clean | environment, stdout=subprocess.PIPE, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
class TestFreedMemory:
    """A blob gets the pages of the one before it."""

    def test_is_kept(self) -> None:
        assert _faults(_KEEP + _BLOBS) < _PAGES

    def test_is_kept_where_the_environment_says_so(self) -> None:
        assert _faults(_BLOBS, **ALLOCATOR) < _PAGES

    def test_is_given_back_where_the_environment_says_so(self) -> None:
        """As glibc would by itself, or sooner."""
        given_back = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
        assert _faults(_KEEP + _BLOBS, **given_back) > 50 * _PAGES


def test_the_collector_leaves_alone_what_stands() -> None:
    """Rings of objects made later are collected all the same."""
    program = """
import gc, weakref
from registry.processes import spare_what_stands
class Ring: pass
def ring():
    one = Ring(); one.self = one
    return weakref.ref(one)
before = gc.get_freeze_count()
spare_what_stands()
assert gc.get_freeze_count() > before + 1000
late = ring()
for _ in range(20_000):
    ring()
assert late() is None
"""
    subprocess.run([sys.executable, "-c", program], check=True)
