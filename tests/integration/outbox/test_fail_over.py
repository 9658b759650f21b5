"""A relay whose connection was lost trusts nothing that it knew of the server at its other end."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import connections

from domain_event_broker.django.models import OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.errors import OutboxUnavailable
from domain_event_broker.ports import Sent
from tests.harness.waiting import wait_until
from tests.integration.outbox.content import archived, number, publish, publish_all, stored

MakeRelay = Callable[..., DjangoRelayOutbox]


def test_an_answer_from_before_takes_no_other_event_out_that_has_the_same_id(
    postgresql: str, make_relay: MakeRelay
) -> None:
    """A replica that took over without the last rows gives their ids once more."""
    publish_all(postgresql, [1, 2])
    relay = make_relay(postgresql)
    lease = relay.renew()
    rows = relay.fetch(lease, 10)
    _lose_connection(relay)
    OutboxEvent.objects.using(postgresql).filter(id=rows[1].id).update(event_id="another")
    relay.settle(lease, [Sent(row) for row in rows], [])
    left = OutboxEvent.objects.using(postgresql).values_list("id", "event_id")
    assert list(left) == [(rows[1].id, "another")]
    assert archived(postgresql) == [1]
    assert [row.message.event_id for row in relay.fetch(relay.renew(), 10)] == ["another"]


def test_ids_below_those_seen_before_are_found_at_once(postgresql: str, make_relay: MakeRelay) -> None:
    relay = make_relay(postgresql)
    lease = relay.renew()
    relay._bound._low = 1_000_000  # as after a million events
    _lose_connection(relay)
    publish(postgresql, 7)
    assert [number(row) for row in relay.fetch(lease, 10)] == [7]
    assert stored(postgresql) == [7]


def _lose_connection(relay: DjangoRelayOutbox) -> None:
    """Let the server end the session of the relay, and the relay find out."""
    connection = connections[relay.alias]
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        session = cursor.fetchone()[0]
    other = connection.copy()
    with other.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s)", [session])
    other.close()
    with pytest.raises(OutboxUnavailable, match="cannot be used now"):
        wait_until(lambda: relay.pending() < 0)  # until it raises
