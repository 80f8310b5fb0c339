"""`v5 search` and `v5 get`."""

from __future__ import annotations

import base64
import uuid
from typing import Any

import click

from producer.cli.options import collection
from producer.fleet import Fleet
from registry.chunks import chunk_id
from registry.console import as_json, data_dir, print_json
from registry.errors import PlanError, UsageError
from registry.plan import Plan
from registry.settings import load_settings

#: Lines of a hit's text that are shown to people.
TEXT_LINES = 4


@click.command()
@click.argument("query")
@collection
@click.option("--using", "using", multiple=True, metavar="NAME", help="A named vector; default: all, fused.")
@click.option("--limit", "-n", default=5, show_default=True, type=click.IntRange(1, 1000), help="Results.")
@as_json
@data_dir
def search(query: str, collection: str, using: tuple[str, ...], limit: int, as_json: bool) -> None:
    """Search a collection: by one named vector, or by several fused with reciprocal ranks.

    \b
    Examples:
      v5 search "parse an ISO date" --collection code
      v5 search "parse an ISO date" -c code --using qdrant-minilm-onnx --limit 10 --json
    """
    if not query.strip():
        raise UsageError("the query is empty; say what to look for")
    fleet = Fleet(load_settings())
    try:
        hits = find(fleet, collection, query, using, limit)
    finally:
        fleet.close()
    if as_json:
        print_json(hits)
        return
    if not hits:
        click.echo("nothing found; is the collection filled? `v5 jobs` tells")
    for rank, hit in enumerate(hits, 1):
        place = f"{hit['path'] or hit['id']}" + (f":{hit['start_line']}" if hit["start_line"] else "")
        click.secho(f"{rank}. {place}", bold=True, nl=False)
        click.echo(f"  {hit['score']:.4f}")
        lines = hit["text"].splitlines()
        for line in lines[:TEXT_LINES]:
            click.echo(f"     {line[:110]}")
        if len(lines) > TEXT_LINES:
            click.echo(f"     … {len(lines) - TEXT_LINES} more lines")


def find(
    fleet: Fleet, collection: str, query: str, using: tuple[str, ...], limit: int
) -> list[dict[str, Any]]:
    """Hits as `{id, score, path, start_line, text}`, best first."""
    plan = fleet.describe(collection).plan
    names = list(using) or default_names(plan)
    for name in names:
        plan.vector(name)
    blobs = fleet.embed_query(plan, plan.models_for(names), query)
    parts = {model: base64.b64encode(blob).decode() for model, blob in blobs.items()}
    return [
        {
            "id": hit["id"],
            "score": hit["score"],
            "path": hit["payload"].get("path"),
            "start_line": hit["payload"].get("start_line"),
            "text": hit["payload"].get("text", ""),
        }
        for hit in fleet.search(collection, names, parts, limit)
    ]


def default_names(plan: Plan) -> list[str]:
    """Every vector that says something of its own: no prefixes of another, no per-token vectors (these are
    for rescoring), and the ensemble in place of nothing."""
    names = [v.name for v in plan.vectors() if v.derived != "matryoshka" and v.kind != "multi"]
    if not names:
        names = [v.name for v in plan.vectors()]
    if not names:
        raise PlanError("the collection's plan has no vectors")
    return names


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@collection
@click.option("--vectors", is_flag=True, help="Show the vectors too.")
@as_json
@data_dir
def get(ids: tuple[str, ...], collection: str, vectors: bool, as_json: bool) -> None:
    """Show points as they stand: payload, and vectors on request. ID is a point's, or the corpus' own.

    \b
    Examples:
      v5 get 0b0e3a52-58d4-5a5c-9d0e-1c2a50f2a1c3 --collection code
      v5 get my-chunk-17 -c notes --vectors --json
    """
    fleet = Fleet(load_settings())
    try:
        points = fleet.points(collection, [_point_id(identity) for identity in ids], vectors)
    finally:
        fleet.close()
    if len(points) < len(set(ids)):
        found = {point["id"] for point in points}
        missing = [identity for identity in ids if _point_id(identity) not in found]
        raise UsageError(f"not in collection {collection!r}: {', '.join(missing)}")
    if as_json:
        print_json(points[0] if len(ids) == 1 else points)
        return
    for point in points:
        click.secho(point["id"], bold=True)
        for key, value in point["payload"].items():
            click.echo(f"  {key}: {value}")
        for name, vector in point["vectors"].items():
            click.echo(f"  vector {name}: {_brief(vector)}")


def _point_id(given: str) -> str:
    try:
        return str(uuid.UUID(given))
    except ValueError:
        return chunk_id(given)


def _brief(vector: Any) -> str:
    if isinstance(vector, dict):
        return f"{len(vector['indices'])} weights"
    if vector and isinstance(vector[0], list):
        return f"{len(vector)} rows of {len(vector[0])}"
    return f"{len(vector)} values, " + ", ".join(f"{value:.4f}" for value in vector[:4]) + ", …"
