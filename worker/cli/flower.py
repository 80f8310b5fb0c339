"""`v5 flower`: the fleet's web page."""

from __future__ import annotations

import os

import click

from registry.console import data_dir, start_logging
from registry.errors import FleetError
from registry.settings import load_settings
from worker.flower_page import make_page


@click.command()
@click.option("--address", help="Address to serve at (V5_FLOWER_ADDRESS; default: 127.0.0.1).")
@click.option("--port", type=click.IntRange(0, 65535), help="Port (V5_FLOWER_PORT; default: 5555; 0: any).")
@click.option("--url-prefix", help="Path under which a proxy serves the page (V5_FLOWER_URL_PREFIX).")
@click.option("--allow-control", is_flag=True, help="Let the page shut down workers and revoke tasks.")
@click.option(
    "--no-auth", is_flag=True, help="No login; refused unless only this machine can reach the page."
)
@data_dir
def flower(
    address: str | None, port: int | None, url_prefix: str | None, allow_control: bool, no_auth: bool
) -> None:
    """Serve Flower for this fleet in the foreground: tasks, workers, queues and /metrics in a browser.

    The login is V5_FLOWER_USER and V5_FLOWER_PASSWORD; without a password there, one is made and kept in the
    data directory's file flower.password. SIGTERM or Ctrl-C ends it. It shows what it heard since it started;
    `v5 jobs` has the truth.

    \b
    Examples:
      v5 flower
      v5 flower --port 8080 --url-prefix flower
    """
    settings = load_settings(flower_address=address, flower_port=port, flower_url_prefix=url_prefix)
    start_logging(settings)
    try:
        from worker.flower import serve
    except ModuleNotFoundError as error:
        raise FleetError(
            f"Flower is not installed ({error}); install v5-embedding-fleet with the extra [flower]"
        ) from error
    # Flower reads this by itself and would open its API to every web page.
    os.environ.pop("FLOWER_UNAUTHENTICATED_API", None)
    serve(settings, make_page(settings, auth=not no_auth, control=allow_control))
