"""What every command does the same way: common options, JSON on request, logging to stderr."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from registry.index import PROFILES
from registry.plan import Ensemble, Plan, Transport, make_plan
from registry.serving import TRUNCATIONS
from registry.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def data_dir(function: F) -> F:
    """`--data-dir`: like V5_DATA_DIR; processes started by the command see it too."""

    def remember(_ctx: click.Context, _param: click.Parameter, value: Path | None) -> None:
        if value is not None:
            os.environ["V5_DATA_DIR"] = str(value)

    return click.option(
        "--data-dir",
        type=click.Path(path_type=Path, file_okay=False),
        expose_value=False,
        callback=remember,
        help="Where the local fleet keeps everything (V5_DATA_DIR).",
    )(function)


def plan_options(function: F) -> F:
    """The options that describe a plan."""
    options = [
        click.option("--primary", metavar="MODEL", help="The primary model."),
        click.option("--companion", "companions", metavar="MODEL", multiple=True, help="A further model."),
        click.option(
            "--output",
            "outputs",
            metavar="MODEL=KIND,…",
            multiple=True,
            help="Outputs of a model: dense, sparse, multi. Default: dense.",
        ),
        click.option(
            "--matryoshka",
            metavar="MODEL=N,…",
            multiple=True,
            help="Prefix lengths as further named vectors.",
        ),
        click.option(
            "--ensemble",
            type=click.Choice(["weighted_average", "max_pooling", "concat"]),
            help="Fuse all the plan's models into one further vector.",
        ),
        click.option("--task", "tasks", metavar="MODEL=TASK", multiple=True, help="A model's task."),
        click.option(
            "--variant",
            "variants",
            metavar="MODEL=NAME",
            multiple=True,
            help="Another build of a model's weights: int8 (qdrant-minilm-onnx).",
        ),
        click.option(
            "--truncate",
            type=click.Choice(TRUNCATIONS),
            help="A text over a model's limit is cut (default), refused, or embedded in windows and pooled.",
        ),
        click.option(
            "--transport",
            type=click.Choice(get_args(Transport)),
            help="How vectors travel through Redis: float32 (default), or float16 in half the bytes.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def read_plan(
    settings: Settings,
    primary: str | None,
    companions: tuple[str, ...],
    outputs: tuple[str, ...],
    matryoshka: tuple[str, ...],
    ensemble: str | None,
    tasks: tuple[str, ...],
    variants: tuple[str, ...] = (),
    truncate: str | None = None,
    transport: str | None = None,
) -> Plan | None:
    """The plan that the options describe; None if they say nothing. Raises PlanError or a usage error."""
    if primary is None:
        if any((companions, outputs, matryoshka, ensemble, tasks, variants, truncate, transport)):
            raise click.UsageError("a plan needs --primary MODEL; `v5 models` lists the models")
        return None
    fields: dict[str, Any] = {
        "primary": primary,
        "companions": companions,
        "outputs": {model: tuple(text.split(",")) for model, text in _pairs("--output", outputs)},
        "tasks": dict(_pairs("--task", tasks)),
        "variants": dict(_pairs("--variant", variants)),
        "truncate": truncate or "cut",
        "transport": transport or "float32",
        "fake": settings.made_up,
    }
    try:
        fields["matryoshka"] = {
            model: tuple(int(n) for n in text.split(","))
            for model, text in _pairs("--matryoshka", matryoshka)
        }
    except ValueError:
        raise click.UsageError("--matryoshka wants MODEL=N,N,… with whole numbers") from None
    if ensemble:
        fields["ensemble"] = Ensemble(members=(primary, *companions), method=ensemble)  # type: ignore[arg-type]
    return make_plan(**fields)


def warn_of(plan: Plan) -> None:
    """Say on stderr what the plan costs, before any work."""
    for warning in plan.warnings():
        click.echo(f"warning: {warning}", err=True)


def index_option(function: F) -> F:
    """How a new collection stores and indexes its vectors; see `with_index`."""
    return click.option(
        "--index",
        metavar="PROFILE|FILE",
        help=f"How a new collection stores and indexes vectors: {', '.join(PROFILES)}, or a JSON file.",
    )(function)


def with_index(plan: Plan, given: str | None) -> Plan:
    """The plan with the index of a profile's name or of a JSON file. Raises PlanError or a usage error."""
    if given is None:
        return plan
    index: Any = PROFILES.get(given)
    if index is None:
        try:
            index = json.loads(Path(given).read_text())
        except OSError:
            raise click.UsageError(
                f"--index {given!r} is neither a profile ({', '.join(PROFILES)}) nor a file that can be read"
            ) from None
        except ValueError as error:
            raise click.UsageError(f"--index {given}: not JSON: {error}") from None
    return make_plan(**{**dict(plan), "index": index})


def _pairs(option: str, texts: tuple[str, ...]) -> list[tuple[str, str]]:
    found = []
    for text in texts:
        model, equals, value = text.partition("=")
        if not equals or not model or not value:
            raise click.UsageError(f"{option} wants MODEL=VALUE, not {text!r}")
        found.append((model, value))
    return found


def print_json(value: Any) -> None:
    """One JSON document on one line."""
    click.echo(json.dumps(value, ensure_ascii=False, default=str))


def start_logging(settings: Settings) -> None:
    """Log to stderr with time, level and place; libraries from WARNING up."""
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s", force=True
    )
    for room in ("worker", "ledger", "store", "producer"):
        logging.getLogger(room).setLevel(settings.log_level.upper())
