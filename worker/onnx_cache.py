"""Graphs that were made once and are kept: whole and proved, or not there."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from registry.errors import WeightsError
from worker.snapshot import sha256_of

logger = logging.getLogger(__name__)

#: The longest that a graph may take to be made; an export takes 15 to 40 s on two cores. Seconds.
MAKING_SECONDS = 600
#: Name of the graph in its directory.
GRAPH = "model.onnx"
_RECORD = "export.json"
_MADE_BY = ("torch", "transformers", "onnx", "onnxruntime")


def kept(model: str, target: Path, make: Callable[[Path], dict[str, Any]]) -> Path:
    """The graph in the directory `target`; made now by `make(graph)`, which returns facts for the record, if
    it is not there or damaged.

    Raises WeightsError if it cannot be kept, and what `make` raises.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f"{target.name}.lock")):
            if not is_whole(target):
                _make(target, make)
    except OSError as error:
        raise WeightsError(
            f"{model}: the ONNX graph cannot be kept in {target.parent} ({error}); set V5_CACHE_DIR to a "
            "directory that can be written and has 300 MB"
        ) from None
    return target / GRAPH


def is_whole(target: Path) -> bool:
    """Whether the cached graph is there and is, byte for byte, what was proved."""
    try:
        record = json.loads((target / _RECORD).read_text())
        whole = bool(record["sha256"] == sha256_of(target / GRAPH))
    except (OSError, ValueError, KeyError, TypeError, WeightsError):
        whole = False
    if not whole and target.exists():
        logger.warning("the cached ONNX graph in %s is damaged", target)
    return whole


def versions_tag() -> str:
    """12 hex digits that change with the versions of what makes graphs."""
    return hashlib.sha256(json.dumps(_versions(), sort_keys=True).encode()).hexdigest()[:12]


def run_maker(model: str, module: str, arguments: Sequence[str], what: str) -> dict[str, Any]:
    """Run `python -m module` in a process of its own; the last line of its stdout is a JSON object.

    Raises WeightsError with the end of what it said, if it fails; `what` is done, for the message.
    """
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=MAKING_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WeightsError(f"{model}: {what} took over {MAKING_SECONDS} s") from None
    if done.returncode != 0:
        raise WeightsError(f"{model}: {what} failed (exit {done.returncode}): {done.stderr.strip()[-2000:]}")
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


def _make(target: Path, make: Callable[[Path], dict[str, Any]]) -> None:
    """Make beside the target, then rename: a reader sees a whole directory or none."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="export-") as scratch:
        made = Path(scratch) / target.name
        made.mkdir()
        record = {**make(made / GRAPH), "versions": _versions()}
        record["sha256"] = sha256_of(made / GRAPH)
        (made / _RECORD).write_text(json.dumps(record, indent=1))
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One maker at a time; the lock goes with its holder, however that ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _versions() -> dict[str, str]:
    found = {}
    for package in _MADE_BY:
        for name in (package, f"{package}-gpu"):
            try:
                found[package] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found
