"""`v5 models`."""

from __future__ import annotations

import click

from registry.console import as_json, print_json
from registry.models import MODELS, REMOVED, ModelSpec


def _row(spec: ModelSpec) -> dict[str, object]:
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
        "licence": spec.licence,
        "commercial_use": spec.commercial_use,
        "hub_id": spec.hub_id,
        "revision": spec.revision,
    }


@click.command()
@as_json
def models(as_json: bool) -> None:
    """Show the V5 models: role, dimension, limits, outputs, licence.

    \b
    Examples:
      v5 models
      v5 models --json
    """
    if as_json:
        print_json({"models": [_row(spec) for spec in MODELS.values()], "removed": REMOVED})
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("model", "role", "dim", "tokens", "outputs", "Matryoshka", "licence"):
        table.add_column(
            heading, justify="right" if heading in ("dim", "tokens") else "left", overflow="fold"
        )
    for spec in MODELS.values():
        table.add_row(
            spec.name,
            spec.role,
            str(spec.dimension),
            str(spec.max_tokens),
            ", ".join(output.kind for output in spec.outputs) or "scores",
            " ".join(str(width) for width in spec.matryoshka) or "–",
            spec.licence + ("" if spec.commercial_use else " (no commercial use)"),
        )
    Console().print(table)
