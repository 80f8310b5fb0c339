"""`v5 worker` and `v5 aggregator`: one process of a fleet each."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import click

from registry.console import data_dir, start_logging
from registry.errors import FleetError, UsageError
from registry.models import model as known_model
from registry.serving import TRUNCATIONS, served
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
@click.option("--variant", default="", help="Another build of the model's weights, such as int8.")
@click.option(
    "--truncate",
    type=click.Choice(TRUNCATIONS),
    default="cut",
    show_default=True,
    help="What is done with a text over the model's limit; must be as the plan says.",
)
@click.option("--name", default="", help="Name in `v5 ps`; default: worker-MODEL.")
@data_dir
def worker(model: str, device: str | None, task: str, variant: str, truncate: str, name: str) -> None:
    """Run one worker in the foreground: load MODEL, prove it works, then serve its queues.

    MODEL embeds, or it is the reranker, which answers `v5 search --rerank`. SIGTERM lets it finish or give
    back what it is at.

    \b
    Examples:
      v5 worker qdrant-minilm-onnx
      v5 worker bge-m3 --device cuda:1
      v5 worker jina-code-embeddings-1.5b --task qa
      v5 worker qdrant-minilm-onnx --variant int8 --truncate split-and-pool
      v5 worker jina-reranker-v3 --device cuda:0
    """
    settings = load_settings(device=device)
    spec = known_model(model)
    if not spec.reranker:
        space_of(served(spec, variant, truncate), "dense", task)
    elif task or variant or truncate != "cut":
        raise UsageError(
            f"{spec.name} is a reranker and knows no tasks, variants or truncation; leave these options out"
        )
    start_logging(settings)
    with _needing("[cpu] or [gpu]"):
        from worker.embedder import EmbedWorker
        from worker.reranker import RerankWorker

    if spec.reranker:
        sys.exit(RerankWorker(settings, spec.name, name).run())
    sys.exit(EmbedWorker(settings, spec.name, task, name, variant=variant, truncation=truncate).run())


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
