"""Flower, the web page of Celery, on this fleet: its broker, its words, its login.

Flower shows events, which may be lost, and keeps nothing. The truth about work is in the ledger.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NoReturn

from flower import urls
from flower.api.tasks import GetQueueLengths
from flower.app import Flower
from flower.options import options
from flower.utils import prepend_url
from flower.views.broker import BrokerView
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.web import RequestHandler

from ledger.alive import Process
from ledger.doorbell import Doorbell
from ledger.ledger import Ledger
from registry.celery_app import make_app
from registry.errors import FleetError, V5Error
from registry.settings import Settings
from worker.flower_page import Page, is_loopback
from worker.flower_queues import Queues
from worker.flower_secrets import masked
from worker.flower_tasks import COLUMNS, format_task

log = logging.getLogger(__name__)

#: Tasks kept in memory, about 5 KB each; the oldest go first.
MAX_TASKS = 10_000
#: A worker silent for this long leaves the page and the metrics. Seconds.
PURGE_OFFLINE = 300
#: How long Flower collects workers' answers; a question always takes this long. Milliseconds.
INSPECT_TIMEOUT = 2_000.0
#: How long signing off may take. Seconds.
FAREWELL = 2.0


class Refused(RequestHandler):
    """What a request without the login gets."""

    def check_xsrf_cookie(self) -> None:
        """Nothing to protect."""

    def prepare(self) -> None:
        """Answer every method alike."""
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="v5 flower"')
        self.finish("the user and password of Flower are needed\n")


class FleetFlower(Flower):  # type: ignore[misc]
    """Flower with one gate before every page and with the fleet's own queues."""

    #: Enough for a person's questions; more would be as many connections to Redis.
    max_workers: ClassVar[int] = 8

    def __init__(self, page: Page, queues: Queues, app: Any, loop: IOLoop) -> None:
        served = dict(urls.settings)
        if page.prefix:
            for name in ("login_url", "static_url_prefix"):
                served[name] = prepend_url(served[name], page.prefix)
        super().__init__(options=options, capp=app, io_loop=loop, **served)
        self._page = page

        class FleetQueues:
            def get_broker(self) -> Queues:
                return queues

        class Broker(FleetQueues, BrokerView):  # type: ignore[misc]
            """The page."""

        class Lengths(FleetQueues, GetQueueLengths):  # type: ignore[misc]
            """The same for programs."""

        self.add_handlers(
            ".*", [(rf"{page.path}/broker", Broker), (rf"{page.path}/api/queues/length", Lengths)]
        )

    def find_handler(self, request: HTTPServerRequest, **rest: Any) -> Any:
        """Refuse whoever has no login, whatever the path: Flower itself leaves `/metrics` open.

        Only the health check, which says OK and nothing else, stays open for probes.
        """
        login = self._page.login
        if login and request.path != f"{self._page.path}/healthcheck":
            headers = request.headers.get_list("Authorization")
            if len(headers) != 1 or not login.admits(headers[0]):
                return self.get_handler_delegate(request, Refused)
        return super().find_handler(request, **rest)

    @property
    def workers(self) -> dict[str, Any]:
        """What workers answered about themselves, without passwords."""
        # Flower asks for workers that did not answer, too.
        return defaultdict(dict, masked(dict(self.inspector.workers)))


def serve(settings: Settings, page: Page) -> NoReturn:
    """Serve the page until SIGTERM or SIGINT, then end the process with exit code 0.

    Raises LedgerUnavailable if Redis is away at the start, FleetError if the address cannot be served.
    """
    ledger = Ledger(settings)
    ledger.check()
    app = make_app(settings)
    configure(page)
    loop = IOLoop()
    flower = FleetFlower(page, Queues(ledger, Doorbell(app, settings)), app, loop)
    try:
        page = replace(page, port=flower.start_http_server())
    except OSError as error:
        raise FleetError(_why_not(page, error)) from error
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.asyncio_loop.add_signal_handler(number, loop.stop)
    process = Process(kind="flower", name="flower", condition="ready", note=page.url)
    announce = partial(loop.run_in_executor, None, _announce, ledger, process)
    loop.add_callback(announce)
    PeriodicCallback(announce, settings.alive_seconds / 3 * 1000).start()
    _say(page)
    flower.start()
    log.info("Flower ends")
    farewell = threading.Thread(target=_withdraw, args=(ledger, process), daemon=True)
    farewell.start()
    farewell.join(FAREWELL)
    logging.shutdown()
    # The pool's threads may still wait for a Redis that hangs, and the interpreter would wait for them.
    os._exit(0)


def configure(page: Page) -> None:
    """Set Flower's options; neither its command line nor its environment is read."""
    wanted: dict[str, Any] = {
        "address": page.address,
        "port": page.port,
        "url_prefix": page.prefix or None,
        # Beside the gate: with a login Flower opens its API and refuses requests from foreign pages.
        "basic_auth": [page.login.credentials] if page.login else [],
        "read_only": not page.control,
        "max_tasks": MAX_TASKS,
        "purge_offline_workers": PURGE_OFFLINE,
        "inspect_timeout": INSPECT_TIMEOUT,
        "persistent": False,
        # Workers of the fleet always send events; asking them every 5 s would be idle talk.
        "enable_events": False,
        "tasks_columns": COLUMNS,
        "format_task": format_task,
    }
    for name, value in wanted.items():
        setattr(options, name, value)


def _announce(ledger: Ledger, process: Process) -> None:
    try:
        ledger.alive.announce(process)
    except V5Error as error:
        log.warning("could not announce: %s", error)


def _withdraw(ledger: Ledger, process: Process) -> None:
    try:
        ledger.alive.withdraw(process)
    except V5Error as error:
        log.info("could not sign off: %s", error)


def _say(page: Page) -> None:
    who = f"user {page.login.user}, password in {page.login.where}" if page.login else "no login"
    what = "may control workers" if page.control else "read-only"
    log.info("Flower is at %s (%s; %s)", page.url, who, what)
    if page.login is None:
        log.warning("WITHOUT A LOGIN: every user and every program of this machine can read this page")
    elif not is_loopback(page.address):
        log.warning("the password crosses the network unencrypted; put a proxy with TLS before %s", page.url)


def _why_not(page: Page, error: OSError) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return f"Flower cannot serve at {page.address}: not an address of this machine; see V5_FLOWER_ADDRESS"
    why = "it is taken" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
    return (
        f"Flower cannot have port {page.port} at {page.address}: {why}; "
        "choose another with --port or V5_FLOWER_PORT"
    )
