"""`v5 models`: the registry; are the weights there; do they give the published numbers."""

from __future__ import annotations

import sys
from contextlib import closing
from dataclasses import asdict
from typing import Any

import click

from registry.console import as_json, data_dir, print_json
from registry.errors import FleetError, UsageError
from registry.models import MODELS, REMOVED, ModelSpec, model
from registry.settings import Settings, load_settings
from registry.spaces import space_of
from worker.inventory import Stock, hub_answer, take_stock, whereabouts

_COLOURS = {"ok": "green", "wrong": "red", "not checked": "yellow"}


@click.group(invoke_without_command=True)
@as_json
@click.pass_context
def models(ctx: click.Context, as_json: bool) -> None:
    """Show the V5 models: role, dimension, limits, outputs, licence, size, where their weights are.

    \b
    Examples:
      v5 models
      v5 models --json
      v5 models check bge-m3
      v5 models prove qdrant-minilm-onnx
    """
    if ctx.invoked_subcommand is not None:
        return
    settings = load_settings()
    rows = [_row(spec, settings) for spec in MODELS.values()]
    if as_json:
        print_json({"models": rows, "removed": REMOVED})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("model", "role", "dim", "tokens", "outputs", "Matryoshka", "licence", "use", "size"):
        numeric = heading in ("dim", "tokens")
        table.add_column(
            heading,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=numeric or heading == "model",
        )
    for spec in MODELS.values():
        table.add_row(
            spec.name,
            spec.role,
            str(spec.dimension),
            str(spec.max_tokens),
            ", ".join(output.kind for output in spec.outputs) or "scores",
            " ".join(str(width) for width in spec.matryoshka) or "–",
            spec.licence,
            "any" if spec.commercial_use else "non-commercial",
            f"{_count(spec.parameters)}, {_size(spec.disk_bytes)}",
        )
    Console().print(table)
    click.echo("\nweights:")
    for row in rows:
        click.echo(f"  {row['name']}: {row['weights']}")


def _row(spec: ModelSpec, settings: Settings) -> dict[str, object]:
    return {
        "name": spec.name,
        "role": spec.role,
        "purpose": spec.purpose,
        "dimension": spec.dimension,
        "max_tokens": spec.max_tokens,
        "outputs": [output.kind for output in spec.outputs],
        "matryoshka": list(spec.matryoshka),
        "tasks": [task for task in spec.prompts if task],
        "parameters": spec.parameters,
        "disk_bytes": spec.disk_bytes,
        "licence": spec.licence,
        "commercial_use": spec.commercial_use,
        "hub_id": spec.hub_id,
        "revision": spec.revision,
        "weights": whereabouts(spec, settings),
    }


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.0f} M"


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB"


@models.command()
@click.argument("names", metavar="[NAME]…", nargs=-1)
@as_json
@data_dir
def check(names: tuple[str, ...], as_json: bool) -> None:
    """Look whether models' weights are on this machine, whole, and what the registry says they are.

    Files, sizes, SHA-256 where it is known, and config.json are compared; nothing is downloaded, nothing
    loaded. Without NAME all models are looked at. Exit code 1 if one is missing or wrong.

    \b
    Examples:
      v5 models check
      v5 models check qdrant-minilm-onnx bge-m3 --json
    """
    specs = [model(name) for name in names] or list(MODELS.values())
    settings = load_settings()
    stocks = [take_stock(spec, settings) for spec in specs]
    bad = [stock for stock in stocks if not stock.good]
    first = next((spec for spec, stock in zip(specs, stocks, strict=True) if not stock.good), specs[0])
    hub = hub_answer(first)
    if as_json:
        print_json({"models": [asdict(stock) for stock in stocks], "hub": hub})
    else:
        for stock in stocks:
            _show(stock)
        click.echo(f"Hugging Face hub: {hub}")
        if bad:
            click.echo(f"missing or wrong: {', '.join(stock.model for stock in bad)}")
    sys.exit(1 if bad else 0)


def _show(stock: Stock) -> None:
    click.secho("ok      " if stock.good else "wrong   ", fg="green" if stock.good else "red", nl=False)
    if not stock.good:
        click.echo(
            stock.problem if stock.problem.startswith(stock.model) else f"{stock.model}: {stock.problem}"
        )
        return
    revision = f"revision {stock.revision[:12]}" if stock.revision else "revision not said by its directory"
    digest = f"SHA-256 {stock.sha256[:12]}… as it must be" if stock.sha256 else "no SHA-256 known to compare"
    click.echo(f"{stock.model}: {stock.path} ({stock.source}), {revision}, {digest}")


@models.command()
@click.argument("name")
@click.option("--task", default="", help="The model's task, which decides its prompts and adapter.")
@click.option("--device", help="cpu, cuda:0, …; default: the first CUDA device, else the CPU.")
@as_json
@data_dir
def prove(name: str, task: str, device: str | None, as_json: bool) -> None:
    """Load a model's real weights and hold them against the numbers that are known of it.

    Every similarity that upstream's card shows, the golden vectors that come with this program, the same
    text alone and in a batch, prefixes, prompts; each with its tolerance, and what could not be checked. If
    nothing is wrong, the model's golden vectors are recorded in the fleet, if one runs: its workers must
    give them. Exit code 1 if a number is wrong.

    \b
    Examples:
      v5 models prove qdrant-minilm-onnx
      v5 models prove jina-embeddings-v4 --task code --device cuda:0 --json
    """
    spec = model(name)
    settings = load_settings(device=device)
    if spec.reranker and task:
        raise UsageError(f"{spec.name} is a reranker and knows no tasks; leave --task out")
    if not spec.reranker:
        space_of(spec, "dense", task)
    if settings.fake_encoders:
        raise UsageError("V5_FAKE_ENCODERS is set: made-up vectors prove nothing about a model; unset it")
    proof = _prove(spec, task, settings)
    if as_json:
        print_json(proof)
    else:
        _tell(proof)
    sys.exit(0 if proof["proved"] else 1)


def _prove(spec: ModelSpec, task: str, settings: Settings) -> dict[str, Any]:
    try:
        from worker.licence import notice
        from worker.prove import prove as prove_embedder
        from worker.prove_record import record
        from worker.prove_reranker import prove_reranker
    except ModuleNotFoundError as error:
        raise FleetError(
            f"this installation serves no model ({error}); install v5-embedding-fleet with [cpu] or [gpu]"
        ) from error
    if said := notice(spec, settings):
        click.secho(said, fg="yellow", err=True)
    loaded, proof = prove_reranker(spec, settings) if spec.reranker else prove_embedder(spec, task, settings)
    with closing(loaded):
        findings = list(proof.findings)
        if proof.good and proof.goldens:
            findings += record(proof, settings)
        numerics = loaded.numerics
        return {
            "model": spec.name,
            "task": task or spec.default_task,
            "device": numerics.device,
            "dtype": numerics.dtype,
            "versions": numerics.versions,
            "weights": whereabouts(spec, settings),
            "made_up": settings.fake_weights,
            "proved": all(finding.verdict != "wrong" for finding in findings),
            "numbers": proof.numbers,
            "findings": [asdict(finding) for finding in findings],
        }


def _tell(proof: dict[str, Any]) -> None:
    task = f", task {proof['task']}" if proof["task"] else ""
    click.echo(
        f"{proof['model']}{task} on {proof['device']} in {proof['dtype']}; weights: {proof['weights']}"
    )
    for finding in proof["findings"]:
        click.secho(f"{finding['verdict']:12}", fg=_COLOURS[finding["verdict"]], nl=False)
        number = "" if finding["value"] is None else f" {finding['value']:.6g}"
        if finding["expected"] is not None:
            number += f", expected {finding['expected']:.6g} ± {finding['tolerance']:.2g}"
        said = f" ({finding['said']})" if finding["said"] else ""
        click.echo(f"{finding['what']}:{number}{said}")
    wrong = sum(finding["verdict"] == "wrong" for finding in proof["findings"])
    left = sum(finding["verdict"] == "not checked" for finding in proof["findings"])
    if wrong:
        click.echo(
            f"not proved: {wrong} wrong. These are not the weights of the registry, or they run wrongly"
        )
    elif proof["numbers"]:
        click.echo(f"proved: {proof['numbers']} known numbers are given; {left} things could not be checked")
    else:
        click.echo(
            f"consistent, but no number is known to hold it against; {left} things could not be checked"
        )
