"""Breaks a copy of the project in one way after the other and runs the tests that must notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.mutants import MUTANTS, ROOT, Mutant

#: What pytest exits with when tests ran and some failed; anything else is no verdict.
FAILED = 1
_SKIP = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "node_modules")


def run(mutant: Mutant, copy: Path) -> subprocess.CompletedProcess[str]:
    """The tests of a mutant over a broken copy of the project."""
    shutil.copytree(ROOT, copy, ignore=_SKIP)
    mutant.apply(copy)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["--hypothesis-profile=first", *mutant.tests]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=900)


def main() -> int:
    """Arguments: words that a mutant's name must contain; without any, all. Exit code 1 if one survives."""
    words = sys.argv[1:]
    chosen = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    survived = 0
    for mutant in chosen:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="v5-mutant-") as folder:
            done = run(mutant, Path(folder) / "copy")
        noticed = done.returncode == FAILED
        survived += not noticed
        by = next(
            (line.split(" - ")[0] for line in done.stdout.splitlines() if line.startswith("FAILED")), ""
        )
        verdict = "noticed" if noticed else "SURVIVED"
        print(f"{verdict:9} {time.monotonic() - began:5.1f} s  {mutant.name}  {by}", flush=True)
        if not noticed:
            print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
    print(f"{len(chosen) - survived} of {len(chosen)} noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
