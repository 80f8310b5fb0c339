"""`v5 metrics`: the fleet's numbers for Prometheus."""

from __future__ import annotations

import logging
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import click

from ledger.ledger import Ledger
from ledger.metrics import metrics as scraped
from registry.console import data_dir
from registry.errors import FleetError, V5Error
from registry.settings import load_settings

log = logging.getLogger(__name__)

#: What Prometheus is told it reads.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@click.command()
@click.option("--serve", "port", type=click.IntRange(0, 65535), help="Serve them at /metrics (0: any port).")
@click.option("--address", default="127.0.0.1", show_default=True, help="Address to serve at.")
@data_dir
def metrics(port: int | None, address: str) -> None:
    """Print the fleet's numbers in Prometheus' text format, or serve them: per worker how long its device was
    busy and how long it had work, tokens and padding, chunks; what waits in each queue; how far jobs are.

    They are read from the ledger, so one such process is enough for a fleet. It asks for no login: serve it
    where only Prometheus comes.

    \b
    Examples:
      v5 metrics
      v5 metrics --serve 9105
    """
    ledger = Ledger(load_settings())
    ledger.check()
    if port is None:
        click.echo(scraped(ledger), nl=False)
        return
    try:
        server = page(ledger, address, port)
    except OSError as error:
        raise FleetError(f"cannot serve at {address}:{port}: {error}; choose another port") from error
    click.echo(f"metrics at http://{address}:{server.server_port}/metrics", err=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def page(ledger: Ledger, address: str, port: int) -> ThreadingHTTPServer:
    """A server of `/metrics`; 503 while the ledger is away."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404)
                return
            try:
                body = scraped(ledger).encode()
            except V5Error as error:
                log.warning("nothing to tell: %s", error)
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Scrapes are no news."""

    return ThreadingHTTPServer((address, port), Page)
