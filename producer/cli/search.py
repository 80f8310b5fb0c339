"""`v5 search` and `v5 get`."""

from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import Any

import click

from producer.cli.options import collection
from producer.fleet import Fleet
from producer.search import CANDIDATES, TOP, Hit, Reranked, find, search_with_reranking
from registry.chunks import chunk_id
from registry.console import as_json, data_dir, print_json
from registry.errors import UsageError
from registry.settings import load_settings

#: Lines of a hit's text that are shown to people.
TEXT_LINES = 4
#: Results where nobody says how many.
LIMIT = 5
NOTHING = "nothing found; is the collection filled? `v5 jobs` tells"


@click.command()
@click.argument("query")
@collection
@click.option("--using", "using", multiple=True, metavar="NAME", help="A named vector; default: all, fused.")
@click.option("--limit", "-n", type=click.IntRange(1, 1000), help=f"Results; default: {LIMIT}.")
@click.option("--rerank", is_flag=True, help="Let a reranker order the best candidates.")
@click.option("--candidates", type=click.IntRange(1, 1000), help=f"What it orders; default: {CANDIDATES}.")
@click.option("--top", type=click.IntRange(1, 1000), help=f"What is shown of them; default: {TOP}.")
@click.option("--block", type=click.IntRange(1), help="Candidates of one pass; default: the model's own.")
@as_json
@data_dir
def search(
    query: str,
    collection: str,
    using: tuple[str, ...],
    limit: int | None,
    rerank: bool,
    candidates: int | None,
    top: int | None,
    block: int | None,
    as_json: bool,
) -> None:
    """Search a collection: by one named vector, or by several fused with reciprocal ranks.

    With --rerank, a reranker reads the query and the texts of the best candidates at once and orders them.
    Its scores depend on the candidates of one pass, so they can be compared only under the same label.

    \b
    Examples:
      v5 search "parse an ISO date" --collection code
      v5 search "parse an ISO date" -c code --using qdrant-minilm-onnx --limit 10 --json
      v5 search "parse an ISO date" -c code --rerank --candidates 50 --top 5
    """
    if not query.strip():
        raise UsageError("the query is empty; say what to look for")
    if rerank and limit is not None:
        raise UsageError("--limit is for a search without --rerank; with it, say --candidates and --top")
    if not rerank and any((candidates, top, block)):
        raise UsageError("--candidates, --top and --block are for --rerank")
    fleet = Fleet(load_settings())
    try:
        if rerank:
            initial = candidates or CANDIDATES
            found = search_with_reranking(
                fleet, collection, query, top or min(TOP, initial), initial, using=using, block=block or 0
            )
            _tell_reranked(found, as_json=as_json)
        else:
            _tell(find(fleet, collection, query, using, limit or LIMIT), as_json=as_json)
    finally:
        fleet.close()


def _tell(hits: list[Hit], *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(hit) for hit in hits])
        return
    if not hits:
        click.echo(NOTHING)
    for rank, hit in enumerate(hits, 1):
        _show(hit, rank, f"{hit.score:.4f}")


def _tell_reranked(found: Reranked, *, as_json: bool) -> None:
    order = found.order
    if as_json:
        about = asdict(order) if order else {}
        about.pop("ranking", None)
        hits = [
            {
                "rank": hit.rank,
                "relevance_score": hit.relevance_score,
                "first_rank": hit.first_rank,
                **asdict(hit.hit),
            }
            for hit in found.hits
        ]
        print_json({"candidates": found.candidates, "reranker": about, "hits": hits})
        return
    if order is None:
        click.echo(NOTHING)
        return
    passes = "1 pass" if len(order.blocks) == 1 else f"{len(order.blocks)} passes"
    click.echo(f"{found.candidates} candidates ordered by {order.label} in {passes}")
    if order.truncated:
        click.echo(f"{len(order.truncated)} of them were cut at the model's limit")
    if order.query_truncated:
        click.echo("the query was cut at the model's limit")
    for hit in found.hits:
        _show(hit.hit, hit.rank, f"{hit.relevance_score:+.4f}  (was {hit.first_rank}., {hit.hit.score:.4f})")


def _show(hit: Hit, rank: int, score: str) -> None:
    place = f"{hit.path or hit.id}" + (f":{hit.start_line}" if hit.start_line else "")
    click.secho(f"{rank}. {place}", bold=True, nl=False)
    click.echo(f"  {score}")
    lines = hit.text.splitlines()
    for line in lines[:TEXT_LINES]:
        click.echo(f"     {line[:110]}")
    if len(lines) > TEXT_LINES:
        click.echo(f"     … {len(lines) - TEXT_LINES} more lines")


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
