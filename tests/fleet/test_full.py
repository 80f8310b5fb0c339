"""Redis at its maxmemory in the middle of a job: it empties itself and the job ends."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger.ledger import Ledger
from ledger.server import is_full
from registry.errors import InfrastructureError

pytestmark = pytest.mark.fleet


def test_a_job_larger_than_redis_without_a_budget_fills_it_and_still_ends(
    make_fleet: Callable[..., Any], corpus: Callable[..., Path]
) -> None:
    """The budget that would prevent it is set far too high on purpose."""
    fleet = make_fleet(
        fake_encoders="true", fake_seconds="0.005", ring_seconds="1.5", lease_seconds="4",
        reconcile_seconds="0.2", alive_seconds="3", batch_chunks="32", window_chunks="256",
        redis_maxmemory=8 << 20, inflight_bytes=1 << 30,
    )  # fmt: skip
    fleet.up()
    rng = random.Random(1)
    path = corpus(1500, text=lambda _i: "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(2500)))
    submit = fleet.start("submit", str(path), "-c", "c", "--json")
    ledger = Ledger(fleet.settings())
    was_full = False
    while submit.poll() is None:
        with contextlib.suppress(InfrastructureError):
            was_full = was_full or is_full(ledger.redis)
    out, err = submit.communicate(timeout=10)
    assert submit.returncode == 0, err
    assert was_full, "the test did not fill Redis"
    end = json.loads(out.splitlines()[-1])
    assert (end["chunks"], end["dead"]) == (1500, 0)
    # A batch was stored as a whole or dropped as a whole.
    (job,) = ledger.jobs.list()
    assert job.staged == job.done + job.lost
    found = fleet.ok("verify", str(path), "-c", "c")
    assert (found["present"], found["missing"], found["stale"]) == (1500, 0, 0)
    assert ledger.reserved() == 0
    assert not ledger.redis.keys("v5:batch:*")
    ledger.close()


def test_the_budget_keeps_a_small_redis_from_filling(
    make_fleet: Callable[..., Any], corpus: Callable[..., Path]
) -> None:
    fleet = make_fleet(
        fake_encoders="true", fake_seconds="0.001", batch_chunks="32", window_chunks="256",
        redis_maxmemory=8 << 20,
    )  # fmt: skip
    fleet.up()
    rng = random.Random(2)
    path = corpus(1500, text=lambda _i: "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(2500)))
    end = fleet.ok("submit", str(path), "-c", "c")
    assert (end["done"], end["dead"]) == (1500, 0)
    ledger = Ledger(fleet.settings())
    peak = int(ledger.redis.info("memory")["used_memory_peak"])
    ledger.close()
    assert peak < 8 << 20
    fleet_log = (fleet.data_dir / "logs" / "fleet.log").read_text()
    assert "died" not in fleet_log


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 300 MB; needs the right to mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root may mount a small disk")
    done = subprocess.run([mount, "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(path)], capture_output=True)
    if done.returncode:
        pytest.skip(f"no disk could be mounted: {done.stderr.decode()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk_in_the_data_directory_is_said_and_outlived(
    small_disk: Path, make_fleet: Callable[..., Any], corpus: Callable[..., Path]
) -> None:
    fleet = make_fleet(fake_encoders="true", ring_seconds="1.5", reconcile_seconds="0.2", alive_seconds="3")
    fleet.environment |= {"V5_DATA_DIR": str(small_disk / "d"), "V5_PATIENCE_SECONDS": "4"}
    fleet.up()
    path = corpus(200)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as out:
        while True:
            out.write(bytes(1 << 20))
    done = fleet.v5("submit", str(path), "-c", "c")
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    filler.unlink()
    fleet.environment["V5_PATIENCE_SECONDS"] = "60"
    assert fleet.ok("submit", str(path), "-c", "c")["chunks"] == 200
    found = fleet.ok("verify", str(path), "-c", "c")
    assert (found["present"], found["missing"]) == (200, 0)
