"""A doorbell that cannot be sent ends nothing."""

from __future__ import annotations

from ledger.doorbell import Doorbell
from ledger.ledger import Ledger
from registry.celery_app import make_app
from registry.names import QUEUE_AGGREGATE
from registry.settings import Settings

BATCH = "261123-000000-aaaaaa.0"


def test_a_connection_that_is_lost_in_the_middle_of_a_ring_costs_that_ring(
    ledger: Ledger, settings: Settings
) -> None:
    app = make_app(settings)
    doorbell = Doorbell(app, settings)
    assert doorbell.ring(BATCH, QUEUE_AGGREGATE)
    with app.producer_or_acquire() as producer:
        channel = producer.channel
    # As kombu leaves a channel that it closed while another of its calls was under way.
    channel.connection = None
    channel._disconnect_pools()
    assert not doorbell.ring(BATCH, QUEUE_AGGREGATE)
    assert doorbell.ring(BATCH, QUEUE_AGGREGATE)
    assert doorbell.waiting(QUEUE_AGGREGATE) == 2
