"""Results of a benchmark: a table for people, JSON for machines."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

#: Columns of a table that does not go to a terminal.
WIDTH = 160
_NAMED = ("torch", "onnxruntime", "sentence-transformers", "transformers", "numpy", "celery", "redis")


@dataclass(frozen=True)
class Aim:
    """A figure that was promised, what was measured, and whether that is enough."""

    name: str
    value: float
    bound: Literal["≥", "≤"]
    aim: float
    met: bool


def at_least(name: str, value: float, aim: float) -> Aim:
    """An aim that is met from `aim` upwards."""
    return Aim(name, value, "≥", aim, value >= aim)


def at_most(name: str, value: float, aim: float) -> Aim:
    """An aim that is met up to `aim`."""
    return Aim(name, value, "≤", aim, value <= aim)


def show_aims(aims: Sequence[Aim]) -> None:
    """Print a line for each aim."""
    for aim in aims:
        said = "met" if aim.met else "not met"
        print(f"{aim.name}: {aim.value:.4g} (aim {aim.bound} {aim.aim:g}, {said})")


def machine() -> dict[str, Any]:
    """What the numbers depend on: the day, processor, cores this process may use, versions."""
    versions = {}
    for name in _NAMED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": cores,
        "python": platform.python_version(),
        **versions,
    }


def _cpu() -> str:
    """What the processor calls itself; its architecture where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; floats with three significant digits or one decimal."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    # A file has no width, and a table cut to 80 columns would lose its figures.
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
    return str(value)


def save(file: str | None, results: dict[str, Any], aims: Sequence[Aim] = ()) -> None:
    """Write results, aims and the machine as JSON, if a file was asked for."""
    if file:
        whole = {**results, "aims": [asdict(aim) for aim in aims], "machine": machine()}
        Path(file).write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")
