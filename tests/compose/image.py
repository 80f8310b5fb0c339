"""What an image has installed, by the project's own account, and what it therefore lacks."""

from __future__ import annotations

import functools
import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.compose.compose_file import ROOT

#: Come with every virtual environment.
_ALWAYS = {"pip", "setuptools"}


def hide_what_it_lacks(extras: frozenset[str], folder: Path) -> None:
    """Fill a folder for PYTHONPATH with modules that fail like absent ones."""
    folder.mkdir()
    for module in _lacking(extras):
        said = f"the image has no {module}"
        (folder / f"{module}.py").write_text(f"raise ModuleNotFoundError({said!r}, name={module!r})\n")


@functools.cache
def _lacking(extras: frozenset[str]) -> list[str]:
    """Top-level modules installed here that no dependency with these extras brings."""
    has = _distributions(extras) | _ALWAYS
    return [
        module
        for module, owners in metadata.packages_distributions().items()
        if module.isidentifier()
        and not module.startswith("__")
        and not has & {canonicalize_name(owner) for owner in owners}
    ]


def _distributions(extras: frozenset[str]) -> set[str]:
    """Names of the project with these extras and of all it needs, as they are installed here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting = [
        Requirement(text)
        for text in [
            *project["dependencies"],
            *(text for extra in extras for text in project["optional-dependencies"][extra]),
        ]
    ]
    found: dict[str, set[str]] = {canonicalize_name(project["name"]): set()}
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if name in found and wanted.extras <= found[name]:
            continue
        found[name] = found.get(name, set()) | wanted.extras
        for text in metadata.requires(name) or []:
            inner = Requirement(text)
            marker = inner.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *found[name]}):
                waiting.append(inner)
    return set(found)


def installed_extras(dockerfile: str, target: str) -> frozenset[str]:
    """Extras that a target's stage installs, its parents' included; of a worker, as for CPUs."""
    stages = {
        name: (parent, body)
        for parent, name, body in re.findall(
            r"^FROM (\S+) AS (\S+)\n(.*?)(?=^FROM|\Z)", dockerfile, re.M | re.S
        )
    }
    extras: set[str] = set()
    while target in stages:
        target, body = stages[target]
        for listed in re.findall(r"/src\[([^\]]+)\]", body):
            extras |= set(listed.replace("${EXTRA}", "cpu").split(","))
    return frozenset(extras)
