"""`v5 quickstart`: the whole path on this machine, with the commands a person would type."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import click

from registry.console import data_dir
from registry.errors import FleetError
from registry.settings import load_settings

PRIMARY = "qdrant-minilm-onnx"
COMPANION = "all-miniLM-l6"
COLLECTION = "quickstart"
QUERY = "decode a JSON string with escape sequences"
#: Packages of the interpreter's own standard library: real source code that is on every machine.
PACKAGES = ("json", "http", "html", "logging", "urllib", "concurrent")


@click.command()
@click.option("--keep", is_flag=True, help="Leave the fleet up. One that was up before is left up anyway.")
@data_dir
def quickstart(keep: bool) -> None:
    """See it work: start a fleet, embed real source code with two models, search it.

    Submits packages of the interpreter's own standard library, which is real code and on every machine. A
    second run finds what the first stored and skips it.

    \b
    Examples:
      v5 quickstart
      v5 quickstart --keep
    """
    settings = load_settings()
    library = Path(sysconfig.get_paths()["stdlib"])
    corpus = [str(library / name) for name in PACKAGES if (library / name).is_dir()]
    if not corpus:
        raise FleetError(f"this interpreter has no standard library sources in {library}")
    began = time.monotonic()
    click.secho(f"V5 quickstart in {settings.data_dir}", bold=True)
    click.echo(f"primary {PRIMARY} (onnxruntime), companion {COMPANION} (sentence-transformers)\n")
    # A fleet that was up before is the user's: it is used, and left as it was.
    keep = _is_up() or keep
    try:
        _run("up", "--primary", PRIMARY, "--companion", COMPANION)
        _run("submit", *corpus, "--collection", COLLECTION, "--exclude", "test/", shown=_short(corpus))
        _run("search", QUERY, "--collection", COLLECTION, "--limit", "3")
    except BaseException:
        if not keep:
            _run("down", check=False)
        raise
    if keep:
        click.echo("the fleet is still up; stop it with `v5 down`")
    else:
        _run("down")
    click.secho(f"\ndone in {time.monotonic() - began:.0f} s; next:", bold=True)
    if not keep:
        click.echo(f"  v5 up --primary {PRIMARY} --companion {COMPANION}")
    click.echo("  v5 submit PATH/TO/YOUR/CODE --collection mine")
    click.echo('  v5 search "what you are looking for" --collection mine')
    if keep:
        click.echo("  v5 down")


def _is_up() -> bool:
    """Whether a fleet runs here already."""
    seen = subprocess.run([sys.executable, "-m", "v5", "ps", "--json"], capture_output=True)
    return seen.returncode == 0 and bool(json.loads(seen.stdout)["supervisor"])


def _run(*arguments: str, check: bool = True, shown: str = "") -> None:
    """Run one `v5` command as a person would, showing it first. Raises FleetError if it fails."""
    click.secho("$ v5 " + (shown or shlex.join(arguments)), bold=True)
    code = subprocess.run([sys.executable, "-m", "v5", *arguments]).returncode
    if check and code:
        raise FleetError(f"`v5 {arguments[0]}` ended with exit code {code}; `v5 doctor` looks for the cause")
    click.echo()


def _short(corpus: list[str]) -> str:
    """The submission as shown: package names instead of long paths."""
    names = " ".join(f"…/{Path(path).name}" for path in corpus)
    return f"submit {names} --collection {COLLECTION} --exclude test/"
