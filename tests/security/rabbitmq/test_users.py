"""Who may publish what, and what a publisher can do to subscribers: with real users and permissions.

The permissions are those of docs/how-to/rabbitmq.rst.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pika
import pytest

from domain_event_broker import DomainEvent, Retry
from domain_event_broker.codecs import PLAIN_BODIES
from domain_event_broker.config import parse
from domain_event_broker.errors import AccessRefused
from domain_event_broker.events import encode
from domain_event_broker.execution import DirectInbox
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import Action, Stored, Subscription
from domain_event_broker.subscriber import Consumer
from domain_event_broker.transports.rabbitmq.transport import RabbitMQTransport
from tests.docs.pages import DOCS, Page
from tests.harness.waiting import wait_until
from tests.integration.rabbitmq.conftest import Connect
from tests.integration.rabbitmq.tools import answer, browse, collect, message, publish
from tests.security.rabbitmq.conftest import Users

PAGE = Page(DOCS / "how-to/rabbitmq.rst")


def permissions(user: str) -> tuple[str, ...]:
    """Return the permissions that the page gives to a user: configure, write, read and topics."""
    given: dict[str, list[str]] = {}
    for block in PAGE.blocks("console"):
        for command, _ in block.commands:
            words = [word.strip("'") for word in command.split()]
            if words[0] == "rabbitmqctl" and user in words:
                given[words[1]] = words[words.index(user) + 1 :]
    topics = given.get("set_topic_permissions", ["", "", ""])
    return (*given["set_permissions"], *([topics[1]] if topics[0] else []))


@pytest.fixture(scope="module")
def orders(users: Users) -> str:
    """The user whose relay sends the events of orders."""
    return users.add("orders", *permissions("orders"))


@pytest.fixture(scope="module")
def billing(users: Users) -> str:
    """The user whose subscribers run the handlers of billing."""
    return users.add("billing", *permissions("billing"))


@pytest.fixture
def bills(fresh_name: Callable[[str], str]) -> Subscription:
    """A handler of billing."""
    return Subscription(fresh_name("billing"), ("order.*",))


def test_the_user_of_a_relay_publishes_its_own_events_and_no_others(
    orders: str, billing: str, bills: Subscription, connect: Connect
) -> None:
    receiver = connect(billing)
    receiver.subscribe(bills)
    sender = connect(orders)
    outcomes = sender.publish([message("order.placed"), message("payment.made"), message("order.paid")])
    assert [outcome.stored for outcome in outcomes] == [Stored.STORED, Stored.REFUSED, Stored.STORED]
    assert "access to topic 'payment.made' in exchange 'domain-events'" in outcomes[1].reason
    assert {each.routing_key for each in collect(receiver, 2)} == {"order.placed", "order.paid"}


def test_the_user_of_a_relay_reads_nothing_and_declares_nothing(
    orders: str, billing: str, bills: Subscription, connect: Connect
) -> None:
    connect(billing).declare(bills)
    for attempt in (
        lambda: connect(orders).declare(Subscription("spy", ("#",))),
        lambda: connect(orders).subscribe(bills),
        lambda: browse(connect(orders), bills.name),
        lambda: publish_to_queue(orders, bills.name),
    ):
        with pytest.raises((AccessRefused, pika.exceptions.ChannelClosedByBroker), match="ACCESS_REFUSED"):
            attempt()


def publish_to_queue(url: str, queue: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish("", queue, b"{}")


def test_the_user_of_subscribers_runs_its_handlers_with_retries_dead_letters_and_replay(
    orders: str, billing: str, bills: Subscription, connect: Connect
) -> None:
    receiver = connect(billing)
    receiver.subscribe(bills)
    publish(connect(orders), message("order.placed"))
    answer(receiver, collect(receiver, 1), Action.RETRY, delay=0.05)
    again = collect(receiver, 1, within=30)
    assert again[0].retries == 1
    answer(receiver, again, Action.DEAD)
    assert len(browse(connect(billing), bills.name)) == 1


def test_the_user_of_subscribers_publishes_no_events_and_takes_no_queue_of_others(
    users: Users, billing: str, connect: Connect
) -> None:
    owner = users.server.url(vhost=users.vhost)
    connect(owner).declare(Subscription("anybody", ("#",)))
    with pytest.raises(AccessRefused, match="ACCESS_REFUSED"):
        connect(billing).publish([message("order.placed")])
    with pytest.raises(AccessRefused, match="ACCESS_REFUSED"):
        connect(billing).declare(Subscription("shipping-send", ("order.*",)))
    with pytest.raises(AccessRefused, match="ACCESS_REFUSED"):
        browse(connect(billing), "anybody")


# --- what a publisher writes on the envelope -----------------------------------------------


FORGED: dict[str, Any] = {
    "event-attempt": 99,
    "event-not-before": (int(time.time()) + 10 * 365 * 86_400) * 1000,
    "event-replays": 7,
    "event-routing-key": "payment.made",
    "event-error-reason": "rejected",
}


def forge(
    url: str, headers: dict[str, Any], exchange: str = "domain-events", key: str = "order.placed"
) -> None:
    """Publish an event with headers that only subscribers write."""
    made = encode(DomainEvent("order.placed", {}))
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        properties = pika.BasicProperties(message_id=made.event_id, delivery_mode=2, headers=headers)
        channel.basic_publish(exchange, key, made.body, properties, mandatory=True)


def test_a_publisher_cannot_hide_an_event_wear_it_out_or_rename_it(
    orders: str, billing: str, bills: Subscription, connect: Connect
) -> None:
    receiver = connect(billing)
    receiver.subscribe(bills)
    forge(orders, FORGED)
    (delivery,) = collect(receiver, 1)
    assert (delivery.retries, delivery.routing_key) == (0, "order.placed")
    answer(receiver, [delivery], Action.DEAD)
    (letter,) = browse(connect(billing), bills.name)
    assert (letter.failure, letter.replays, letter.routing_key) == (None, 0, "order.placed")


def test_forged_failures_do_not_spend_the_retries_of_an_event(
    orders: str, billing: str, bills: Subscription, connect: Connect
) -> None:
    settings = parse(billing)
    assert settings is not None
    connect(billing).declare(bills)
    calls: list[int] = []

    def call(event: Any) -> None:
        calls.append(event.retries)
        if len(calls) < 3:
            raise Retry(0.05)
        consumer.stop()

    handler = Handler(call, bills.name, ("order.*",), max_retries=2)
    consumer = Consumer([handler], settings, DirectInbox())
    forge(orders, {"event-attempt": 2**31})
    consumer.run(timeout=60)
    assert calls == [0, 1, 2]


@pytest.mark.parametrize("not_before", [2**62, "soon", True])
def test_no_time_that_a_subscriber_writes_hides_an_event_for_ever(
    not_before: Any, billing: str, bills: Subscription, connect: Connect
) -> None:
    """Who may write to the default exchange may do more, but not this."""
    receiver = connect(billing)
    receiver.subscribe(bills)
    forge(billing, {"event-not-before": not_before}, exchange="", key=bills.name)
    forge(billing, {"event-not-before": FORGED["event-not-before"]}, exchange="", key=bills.name)
    assert len(collect(receiver, 2)) == 2


def test_a_record_of_the_broker_counts_more_than_what_a_publisher_says_of_a_failure(
    orders: str, billing: str, bills: Subscription, connect: Connect
) -> None:
    """An event that the broker itself dead-letters keeps the headers of its publisher."""
    receiver = connect(billing)
    receiver.subscribe(bills)
    forge(orders, FORGED)
    (delivery,) = collect(receiver, 1)
    # As the broker does after too many deliveries: rejected, without a copy of ours.
    delivery.token.consumer._channel.pika.basic_reject(delivery.token.tag, requeue=False)
    receiver.receive(0, 0.2)
    letters = _letters(connect(billing), bills.name)
    assert [(letter.failure and letter.failure.reason, letter.routing_key) for letter in letters] == [
        ("rejected", "order.placed")
    ]
    assert letters[0].failure is not None
    assert letters[0].failure.message == "dead-lettered by the broker, not by a handler"


def _letters(transport: RabbitMQTransport, queue: str) -> list[Any]:
    return wait_until(lambda: browse(transport, queue), 30)


def test_a_forged_event_is_another_event_unless_its_identity_was_known(
    orders: str, billing: str, bills: Subscription, connect: Connect
) -> None:
    """What SECURITY.rst says of the inbox: the identity in the body counts, not that on the envelope."""
    receiver = connect(billing)
    receiver.subscribe(bills)
    sent = message(
        "order.placed", json.dumps({"routing_key": "order.placed", "data": {}, "uuid_string": "a"}).encode()
    )
    publish(connect(orders), replace(sent, event_id="b"))
    (delivery,) = collect(receiver, 1)
    event = PLAIN_BODIES.decode(delivery.body, delivery.headers, delivery.event_id)
    assert event.uuid_string == "a"
