"""Doorbells: messages that say a step may be due. Nothing depends on their arrival."""

from __future__ import annotations

import logging

from celery import Celery

from ledger.server import Redis, connect, named_errors
from registry.celery_app import send
from registry.errors import LedgerUnavailable
from registry.messages import Ring
from registry.names import BROKER_PREFIX, QUEUE_AGGREGATE, TASK_AGGREGATE, TASK_EMBED
from registry.settings import Settings

log = logging.getLogger(__name__)


class Doorbell:
    """Rings steps and counts the rings that still wait."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._broker: Redis = connect(settings.broker_address.url)

    def ring(self, batch: str, step: str) -> bool:
        """Send a doorbell; False if the broker did not take it, which only costs a wait."""
        task = TASK_AGGREGATE if step == QUEUE_AGGREGATE else TASK_EMBED
        arguments = Ring(batch=batch, step=step).model_dump()
        try:
            send(
                self._app,
                task,
                kwargs=arguments,
                queue=step,
                argsrepr="",
                kwargsrepr=f"{batch} {step}",
            )
        except LedgerUnavailable as error:
            log.warning("could not ring %s for batch %s (%s); the reconciler will", step, batch, error)
            return False
        return True

    def waiting(self, queue: str) -> int:
        """Rings in a queue that no worker has received."""
        with named_errors("the broker"):
            return int(self._broker.llen(BROKER_PREFIX + queue))
