"""How long workers wait before they look again for a broker or a database that is away."""

from __future__ import annotations

import logging

import pytest

from domain_event_broker import relay, subscriber
from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.patience import Outage


@pytest.mark.parametrize("longest", [relay.AWAY_SECONDS, subscriber.RECONNECT_SECONDS])
def test_after_an_outage_of_any_length_the_next_try_is_at_most_five_seconds_away(longest: float) -> None:
    outage = Outage(logging.getLogger("test"), longest)
    waits = [outage.failed(BrokerUnavailable("away")) for _ in range(100)]
    assert max(waits) <= 5.0
    assert min(waits[10:]) >= 1.0, "and a broker that comes up is not stormed"
