"""Options that the producer's commands share, and what they mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from producer.corpus import Corpus, open_corpus
from producer.readers.plain import CHUNK_CHARS
from registry.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

collection = click.option("--collection", "-c", required=True, metavar="NAME", help="The collection.")


def corpus_options(function: F) -> F:
    """PATH… and how it is read; equal options give equal chunks."""
    options = [
        click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path)),
        click.option(
            "--root", type=click.Path(path_type=Path), help="Paths in payloads and ids are relative to this."
        ),
        click.option("--include", multiple=True, metavar="GLOB", help="Only these files of a folder."),
        click.option("--exclude", multiple=True, metavar="GLOB", help="Not these files of a folder."),
        click.option("--min-tokens", type=int, help="V4 chunks: leave out those with a smaller token_count."),
        click.option(
            "--chunk-chars",
            type=int,
            default=CHUNK_CHARS,
            show_default=True,
            help="Capacity of a chunk cut from a plain file, in characters.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def read_corpus(
    settings: Settings,
    paths: tuple[Path, ...],
    root: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    min_tokens: int | None,
    chunk_chars: int,
) -> Corpus:
    """The corpus that the options describe. Raises CorpusError."""
    return open_corpus(
        paths,
        root=root,
        settings=settings,
        min_tokens=min_tokens,
        include=include,
        exclude=exclude,
        chunk_chars=chunk_chars,
    )
