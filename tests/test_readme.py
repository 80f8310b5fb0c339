"""The README's commands exist and take the options it shows; the help is quick and complete."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

from v5.__main__ import v5
from v5.commands import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text: str) -> list[str]:
    """Lines of code blocks that begin with `v5`."""
    blocks = re.findall(r"```\n(.*?)```", text, re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("v5 ")]


def parse(line: str) -> None:
    """Parse a command line without running it."""
    words = shlex.split(line.split(" | ")[0])[1:]
    command = v5.get_command(click.Context(v5), words[0])
    assert command is not None, f"there is no `v5 {words[0]}`"
    command.make_context(words[0], words[1:])


@pytest.mark.parametrize("line", commands((ROOT / "README.md").read_text()))
def test_a_command_of_the_readme_is_valid(line: str) -> None:
    parse(line)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples_that_are_valid(name: str) -> None:
    command = v5.get_command(click.Context(v5), name)
    assert command is not None
    text = command.get_help(click.Context(command, info_name=name))
    examples = [line.strip() for line in text.splitlines() if line.strip().startswith("v5 ")]
    assert examples, f"`v5 {name} --help` shows no example"
    for example in examples:
        parse(example)


@pytest.mark.parametrize("doc", DOCS, ids=lambda path: path.name)
def test_names_in_the_docs_exist(doc: Path) -> None:
    text = doc.read_text()
    for name in re.findall(r"`v5 ([a-z]+)", text):
        assert name in COMMANDS, name
    for path in re.findall(
        r"`((?:registry|ledger|store|worker|producer|docs|tests|benchmarks)/[\w/.]+)`", text
    ):
        assert (ROOT / path).exists(), path
    for test in re.findall(r"`(test_\w+)`", text):
        assert any(test in file.read_text() for file in (ROOT / "tests").rglob("*.py")), test


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from v5.__main__ import main\n"
        "sys.argv = ['v5', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'celery', 'redis', 'numpy', 'rich', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_the_cpu_and_gpu_extras_cannot_be_installed_together() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def flatbuffers(extra: str) -> Requirement:
        return next(r for r in map(Requirement, extras[extra]) if r.name == "flatbuffers")

    both = flatbuffers("cpu").specifier & flatbuffers("gpu").specifier
    assert not list(both.filter(["24.0", "24.3.25", "24.12.23", "25.0", "25.9.23", "25.12.19", "26.0"]))
    assert not any("torch" in r or "onnx" in r or "qdrant" in r for r in project["dependencies"])
