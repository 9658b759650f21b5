"""Headers of the broker's, written by a publisher: nobody is misled by them."""

from __future__ import annotations

import pika
import pytest

from domain_event_broker.ports import Action
from tests.harness.waiting import wait_until
from tests.integration.rabbitmq.tools import answer, browse, collect

#: As the broker would write them.
DEATH = {"queue": "", "exchange": "x", "reason": "expired", "count": 7, "routing-keys": ["forged.key"]}


def forge(channel, wanted, headers, **properties) -> None:
    """Publish as any program could."""
    forged = pika.BasicProperties(message_id="forged", headers=headers, **properties)
    channel.confirm_delivery()
    channel.basic_publish("domain-events", f"{wanted.name}.x", b"{}", forged, mandatory=True)


def deaths(wanted) -> dict[str, object]:
    return {"x-death": [{**DEATH, "queue": wanted.name}], "x-first-death-reason": "expired"}


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_a_record_of_deaths_does_not_change_the_routing_key(connect, handler, channel, queue_type) -> None:
    wanted = handler(queue_type=queue_type)
    transport = connect()
    transport.subscribe(wanted)
    forge(channel, wanted, deaths(wanted))
    (delivery,) = collect(transport, 1)
    assert delivery.routing_key == f"{wanted.name}.x"
    answer(transport, [delivery], Action.RETRY, 0.01)
    (again,) = collect(transport, 1)
    assert (again.routing_key, again.retries) == (f"{wanted.name}.x", 1)
    answer(transport, [again], Action.DEAD)
    wait_until(lambda: transport.dead_letters(wanted.name).count() == 1)
    (letter,) = browse(transport, wanted.name)
    assert letter.routing_key == f"{wanted.name}.x"


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_a_count_of_deliveries_is_the_broker_s_or_none(connect, handler, channel, queue_type) -> None:
    wanted = handler(queue_type=queue_type)
    transport = connect()
    transport.subscribe(wanted)
    forge(channel, wanted, {"x-delivery-count": 20})
    (delivery,) = collect(transport, 1)
    assert delivery.crashes == 0
    transport.close()
    other = connect()
    other.subscribe(wanted)
    (back,) = collect(other, 1)
    assert back.crashes == (1 if queue_type == "quorum" else 0)
    answer(other, [back], Action.ACK)
