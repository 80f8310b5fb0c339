"""docker-compose.yml as Compose reads it: anchors merged, variables put in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent.parent
PATH = ROOT / "docker-compose.yml"
#: What every `.env` must give, with values for tests.
SECRETS = {
    "REDIS_PASSWORD": "redis-secret",
    "V5_QDRANT_API_KEY": "qdrant-secret",
    "V5_FLOWER_PASSWORD": "flower-secret",
}

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class VariableMissing(Exception):
    """A variable that the file demands; Compose refuses with this sentence."""


def interpolate(text: str, variables: Mapping[str, str]) -> str:
    """Put variables in: `$$`, `$NAME`, `${NAME}`, and `${NAME:-…}`, `${NAME:?…}` with what may be nested."""
    out = []
    at = 0
    while at < len(text):
        if text[at] != "$":
            out.append(text[at])
            at += 1
        elif text.startswith("$$", at):
            out.append("$")
            at += 2
        elif text.startswith("${", at):
            end = _closing(text, at)
            out.append(_value(text[at + 2 : end], variables))
            at = end + 1
        else:
            name = _NAME.match(text, at + 1)
            assert name, f"a lone $ in {text!r}"
            out.append(variables.get(name.group(), ""))
            at = name.end()
    return "".join(out)


def _closing(text: str, at: int) -> int:
    depth = 0
    for i in range(at, len(text)):
        depth += text.startswith("${", i) - (text[i] == "}")
        if depth == 0 and text[i] == "}":
            return i
    raise AssertionError(f"an unclosed ${{ in {text!r}")


def _value(inside: str, variables: Mapping[str, str]) -> str:
    name = _NAME.match(inside)
    assert name, inside
    operator, rest = inside[name.end() :][:2], inside[name.end() + 2 :]
    assert operator in ("", ":-", ":?"), inside
    value = variables.get(name.group(), "")
    if value or not operator:
        return value
    if operator == ":?":
        raise VariableMissing(f"required variable {name.group()} is missing a value: {rest}")
    return interpolate(rest, variables)


def strings(value: Any) -> Iterator[str]:
    """All texts of a document, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def raw() -> dict[str, Any]:
    """The file with anchors merged and variables as they are written."""
    return yaml.safe_load(PATH.read_text())


def resolved(variables: Mapping[str, str]) -> dict[str, Any]:
    """The file with variables put in. Raises VariableMissing."""

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return interpolate(value, variables)
        if isinstance(value, Mapping):
            return {key: walk(inner) for key, inner in value.items()}
        return [walk(inner) for inner in value] if isinstance(value, list) else value

    return walk(raw())


def seconds(text: str) -> float:
    """A duration of the file, of which it uses seconds only."""
    assert text.endswith("s"), text
    return float(text[:-1])
