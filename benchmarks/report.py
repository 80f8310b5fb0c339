"""Results of a benchmark: a table for people, JSON for machines."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_NAMED = ("torch", "onnxruntime", "sentence-transformers", "transformers", "numpy")


def machine() -> dict[str, Any]:
    """What the numbers depend on: processor, cores this process may use, versions."""
    versions = {}
    for name in _NAMED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"machine": platform.machine(), "cores": cores, "python": platform.python_version(), **versions}


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; floats with three significant digits or one decimal."""
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    Console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
    return str(value)


def save(file: str | None, results: dict[str, Any]) -> None:
    """Write results and the machine as JSON, if a file was asked for."""
    if file:
        Path(file).write_text(json.dumps({**results, "machine": machine()}, indent=1) + "\n")
