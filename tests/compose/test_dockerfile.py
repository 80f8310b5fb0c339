"""The Dockerfile: linted, pinned, and built from what the project says it needs."""

from __future__ import annotations

import re
import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest

from tests.compose.compose_file import ROOT, SECRETS, resolved

DOCKERFILE = ROOT / "Dockerfile"
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"
TEXT = DOCKERFILE.read_text()


def lint(text: str) -> list[str]:
    """What hadolint finds; it reads no configuration but the file's own remarks."""
    done = subprocess.run(
        [HADOLINT, "--no-color", "-"], input=text, capture_output=True, text=True, cwd=ROOT / "tests"
    )
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


def stages() -> dict[str, str]:
    """Instructions of each stage, by its name."""
    parts = re.split(r"^FROM \S+ AS (\S+)\n", TEXT, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_linter_finds_nothing() -> None:
    assert lint(TEXT) == []


@pytest.mark.parametrize(
    ("line", "instead", "rule"),
    [
        ("FROM python:${PYTHON} AS base", "FROM python AS base", "DL3006"),
        ("USER 10001:10001", "USER root", "DL3002"),
        ('ENTRYPOINT ["v5"]', "ENTRYPOINT v5", "DL3025"),
        ("&& python -m venv /opt/v5", "&& python -m venv $(pwd)/v5", "SC2046"),
        ("WORKDIR /tmp", "WORKDIR tmp", "DL3000"),
    ],
)
def test_the_linter_finds_what_is_wrong(line: str, instead: str, rule: str) -> None:
    assert line in TEXT
    assert any(rule in found for found in lint(TEXT.replace(line, instead)))


@pytest.mark.parametrize("target", ["fleet", "worker"])
def test_an_image_runs_the_command_as_nobody_in_particular(target: str) -> None:
    instructions = stages()[target]
    assert "USER 10001:10001\n" in instructions
    assert 'ENTRYPOINT ["v5"]\n' in instructions
    users = {service["user"] for service in resolved(SECRETS)["services"].values() if "build" in service}
    assert users == {"10001:10001"}


def test_the_targets_and_arguments_of_the_compose_file_exist() -> None:
    for service in resolved(SECRETS)["services"].values():
        if "build" in service:
            assert service["build"]["target"] in stages()
            assert all(f"ARG {argument}" in TEXT for argument in service["build"]["args"])


def test_every_installation_is_pinned_and_of_an_extra_that_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = set(project["project"]["optional-dependencies"])
    installed = re.findall(r"/src\[([^\]]+)\]", TEXT)
    assert installed
    for extra in ("cpu", "gpu"):
        for wanted in installed:
            assert set(wanted.replace("${EXTRA}", extra).split(",")) <= extras
    for line in re.findall(r"pip install (.*)", TEXT):
        assert "--constraint /src/constraints.txt" in line or "--no-deps" in line


def test_the_build_sees_every_room_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    rooms = {name.removesuffix("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    seen = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert seen == rooms | {"pyproject.toml", "constraints.txt", "README.md"}
    assert all((ROOT / path).exists() for path in seen)
