"""Options that the producer's commands share, and what they mean."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from producer.corpus import Corpus, open_corpus, open_pipe
from producer.draft import PIPE_LABEL
from producer.readers.plain import CHUNK_CHARS
from producer.shard import Shard
from registry.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

#: Standard input, as a path.
PIPE = Path(PIPE_LABEL)

#: The names of the options that `read_corpus` takes.
CORPUS_FIELDS = ("paths", "root", "name", "include", "exclude", "min_tokens", "chunk_chars")

collection = click.option("--collection", "-c", required=True, metavar="NAME", help="The collection.")


def corpus_options(function: F) -> F:
    """PATH… (or `-` for standard input) and how it is read; equal options give equal chunks."""
    options = [
        click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path)),
        click.option(
            "--root", type=click.Path(path_type=Path), help="Paths in payloads and ids are relative to this."
        ),
        click.option(
            "--name",
            metavar="NAME",
            help="What JSON Lines from a pipe (`-`) are called in payloads and ids. Default: `-`.",
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


def _shard(_context: click.Context, _option: click.Parameter, written: str | None) -> Shard | None:
    return None if written is None else Shard.read(written)


shard_option = click.option(
    "--shard",
    callback=_shard,
    metavar="I/N",
    help="Only this part of N, by the chunks' ids: several producers share a corpus, each a job of its own.",
)


def read_corpus(
    settings: Settings,
    paths: tuple[Path, ...],
    root: Path | None,
    name: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    min_tokens: int | None,
    chunk_chars: int,
) -> Corpus:
    """The corpus that the options describe. Raises CorpusError, or a usage error."""
    if PIPE in paths:
        return _piped(settings, paths, name or PIPE_LABEL)
    if name is not None:
        raise click.UsageError("--name is for JSON Lines from a pipe: give `-` instead of a path")
    return open_corpus(
        paths,
        root=root,
        settings=settings,
        min_tokens=min_tokens,
        include=include,
        exclude=exclude,
        chunk_chars=chunk_chars,
    )


def _piped(settings: Settings, paths: tuple[Path, ...], name: str) -> Corpus:
    if len(paths) > 1:
        raise click.UsageError(
            "`-` (JSON Lines from standard input) stands alone; submit other paths by themselves"
        )
    if sys.stdin is None or sys.stdin.closed:
        raise click.UsageError("standard input is closed; pipe JSON Lines into the command, or name a file")
    if sys.stdin.isatty():
        raise click.UsageError(
            "standard input is a terminal; pipe JSON Lines into the command (`export | v5 submit - …`), "
            "or name a file"
        )
    return open_pipe(sys.stdin.buffer, name=name, settings=settings)
