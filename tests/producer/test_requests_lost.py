"""A request that cannot be sent is an outage like others, which whoever asked may wait for."""

from __future__ import annotations

import pytest

from producer.fleet import Fleet
from registry.errors import LedgerUnavailable
from registry.names import QUEUE_STORE, TASK_STORE
from registry.settings import Settings


@pytest.mark.usefixtures("ledger")
def test_a_connection_that_is_lost_in_the_middle_of_a_request_is_named(settings: Settings) -> None:
    fleet = Fleet(settings)
    fleet.ask(f"{TASK_STORE}.compare", QUEUE_STORE, {})
    with fleet.app.producer_or_acquire() as producer:
        channel = producer.channel
    # As kombu leaves a channel that it closed while another of its calls was under way.
    channel.connection = None
    channel._disconnect_pools()
    with pytest.raises(LedgerUnavailable, match="the broker took no request"):
        fleet.ask(f"{TASK_STORE}.compare", QUEUE_STORE, {})
    fleet.ask(f"{TASK_STORE}.compare", QUEUE_STORE, {})
    fleet.close()
