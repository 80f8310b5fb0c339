"""`v5 worker` and `v5 aggregator`: one process of a fleet each."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import click

from registry.console import data_dir, start_logging
from registry.errors import FleetError
from registry.models import embedder
from registry.settings import load_settings
from registry.spaces import space_of


@contextlib.contextmanager
def _needing(extra: str) -> Iterator[None]:
    """Turn a missing package into what to install: a producer's installation cannot serve."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise FleetError(
            f"this installation cannot serve ({error}); install v5-embedding-fleet with the extra {extra}"
        ) from error


@click.command()
@click.argument("model")
@click.option("--device", help="cpu, cuda:0, …; default: the first CUDA device, else the CPU.")
@click.option("--task", default="", help="The model's task, which decides its prompts.")
@click.option("--name", default="", help="Name in `v5 ps`; default: worker-MODEL.")
@data_dir
def worker(model: str, device: str | None, task: str, name: str) -> None:
    """Run one worker in the foreground: load MODEL, prove it works, then serve its queues.

    SIGTERM lets it finish or give back what it is at.

    \b
    Examples:
      v5 worker qdrant-minilm-onnx
      v5 worker bge-m3 --device cuda:1
      v5 worker jina-code-embeddings-1.5b --task qa
    """
    settings = load_settings(device=device)
    spec = embedder(model)
    space_of(spec, "dense", task)
    start_logging(settings)
    with _needing("[cpu] or [gpu]"):
        from worker.embedder import EmbedWorker

    sys.exit(EmbedWorker(settings, spec.name, task, name).run())


@click.command()
@click.option("--name", default="aggregator", help="Name in `v5 ps`.")
@data_dir
def aggregator(name: str) -> None:
    """Run one aggregator in the foreground: merge parts, write to Qdrant, answer for the store.

    With the embedded store there is exactly one; with a Qdrant server, as many as pay.

    \b
    Example:
      v5 aggregator
    """
    settings = load_settings()
    start_logging(settings)
    with _needing("[embedded]"):
        from worker.aggregator import Aggregator

    sys.exit(Aggregator(settings, name).run())
