"""The table of commands: each room brings its own, and is imported only when one of them is used."""

from __future__ import annotations

import importlib

import click

#: Command → where it lives, and its line in `v5 --help` (here, so that the help imports no room).
COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("producer.cli.quickstart:quickstart", "See it work: embed real source code, search it."),
    "up": ("worker.cli.fleet:up", "Start a local fleet for a plan and wait until it is ready."),
    "down": ("worker.cli.fleet:down", "Stop the local fleet."),
    "ps": ("worker.cli.fleet:ps", "Show the fleet's processes and queues."),
    "health": ("worker.cli.health:health", "Say whether one process of this machine is ready."),
    "worker": ("worker.cli.processes:worker", "Run one worker: one model on one device."),
    "aggregator": ("worker.cli.processes:aggregator", "Run one aggregator: merge parts, write to Qdrant."),
    "submit": ("producer.cli.submit:submit", "Submit a corpus to a collection, with progress."),
    "jobs": ("producer.cli.jobs:jobs", "List jobs."),
    "watch": ("producer.cli.jobs:watch", "Follow a job to its end."),
    "cancel": ("producer.cli.jobs:cancel", "End a job; what is stored stays."),
    "dead": ("producer.cli.jobs:dead", "List a job's dead letters with their reasons."),
    "retry": ("producer.cli.retry:retry", "Try a job's dead letters again."),
    "verify": ("producer.cli.verify:verify", "Compare a corpus with a collection."),
    "repair": ("producer.cli.repair:repair", "Embed exactly what verify finds missing or stale."),
    "gc": ("producer.cli.gc:gc", "Remove what crashes left in Redis."),
    "optimise": ("producer.cli.optimise:optimise", "Wait until a collection's indexes are built."),
    "search": ("producer.cli.search:search", "Search a collection."),
    "get": ("producer.cli.search:get", "Show points as they stand."),
    "models": ("worker.cli.models:models", "Show the V5 models; check and prove their weights."),
    "flower": ("worker.cli.flower:flower", "Serve Flower, the web page of Celery, for this fleet."),
    "metrics": ("worker.cli.metrics:metrics", "Print or serve the fleet's numbers for Prometheus."),
    "doctor": ("worker.cli.doctor:doctor", "Check what is configured, reachable and wrong."),
}


class FrontDoor(click.Group):
    """Finds commands by name and imports them on use."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """All commands, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, _ctx: click.Context, name: str) -> click.Command | None:
        """Import and return one command."""
        if name not in COMMANDS:
            return None
        module, attribute = COMMANDS[name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])
