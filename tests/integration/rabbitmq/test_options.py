"""What publishers ask of RabbitMQ reaches it unchanged, and stays with the event where it should."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pika
import pytest

from domain_event_broker import DomainEvent, EventOptions, Publisher, RabbitMQOptions
from domain_event_broker.correlation import correlated
from domain_event_broker.errors import PublishFailed, UnsupportedOption
from domain_event_broker.events import decode
from domain_event_broker.ports import Action, Decision
from domain_event_broker.publisher import close_connections, publish_domain_event
from tests.harness.waiting import wait_until
from tests.integration.rabbitmq.tools import answer, browse, collect

#: Long past: what expires then has expired when the broker gets it.
PAST = datetime(2000, 1, 1, tzinfo=timezone.utc)


@pytest.fixture
def publish(rabbitmq_server) -> Iterator[Any]:
    """Return a function that publishes straight to the shared broker."""

    def send(routing_key: str, *options: EventOptions) -> DomainEvent:
        url = rabbitmq_server.url()
        return publish_domain_event(routing_key, {"n": 1}, connection_settings=url, options=options)

    yield send
    close_connections()


def _fetch(channel, queue: str) -> Any:
    """Take one message out of a queue, as another program would: its properties."""
    found: list[Any] = []

    def look() -> bool:
        _, properties, _ = channel.basic_get(queue, auto_ack=True)
        found.append(properties)
        return properties is not None

    wait_until(look, 30)
    return found[-1]


def _headers(properties: Any) -> dict[str, Any]:
    """Return what the publisher wrote, without what the broker added."""
    return {name: value for name, value in (properties.headers or {}).items() if name[:2] != "x-"}


def test_properties_arrive_as_they_were_asked_for(connect, handler, channel, publish) -> None:
    wanted = handler()
    connect().declare(wanted)
    asked = {
        "delivery_mode": 1,
        "priority": 4,
        "content_type": "application/vnd.shop+json",
        "content_encoding": "utf-8",
        "reply_to": "answers",
        "type": "OrderPlaced",
        "app_id": "shop",
    }
    moment = datetime(2026, 11, 21, tzinfo=timezone.utc)
    options = RabbitMQOptions(
        **asked,
        expiration=timedelta(minutes=5),
        timestamp=moment,
        user_id="guest",
        correlation_id="story",
        headers={"tenant": "acme", "vip": True, "n": -3},
    )
    event = publish(f"{wanted.name}.x", options)
    got = _fetch(channel, wanted.name)
    assert {name: getattr(got, name) for name in asked} == asked
    assert (got.message_id, got.correlation_id) == (event.uuid_string, "story")
    assert (got.expiration, got.user_id) == ("300000", "guest")
    assert got.timestamp == int(moment.timestamp())
    assert _headers(got) == {"tenant": "acme", "vip": True, "n": -3}


def test_without_options_an_event_is_persistent_json_and_its_own_story(
    connect, handler, channel, publish
) -> None:
    wanted = handler()
    connect().declare(wanted)
    event = publish(f"{wanted.name}.x")
    got = _fetch(channel, wanted.name)
    assert (got.delivery_mode, got.content_type, got.expiration) == (2, "application/json", None)
    assert (got.message_id, got.correlation_id) == (event.uuid_string, event.uuid_string)
    assert _headers(got) == {}


def test_a_moment_of_expiration_becomes_what_is_left_until_then(connect, handler, channel, publish) -> None:
    wanted = handler()
    connect().declare(wanted)
    publish(f"{wanted.name}.x", RabbitMQOptions(expiration=datetime.now(timezone.utc) + timedelta(hours=1)))
    left = int(_fetch(channel, wanted.name).expiration)
    assert 3_000_000 < left <= 3_600_000


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
@pytest.mark.parametrize("expiration", [0.05, PAST], ids=["period", "moment"])
def test_what_nobody_took_in_time_is_a_dead_letter_that_says_so(
    connect, handler, publish, queue_type, expiration
) -> None:
    wanted = handler(queue_type=queue_type)
    transport = connect()
    transport.declare(wanted)
    event = publish(f"{wanted.name}.x", RabbitMQOptions(expiration=expiration))
    wait_until(lambda: transport.dead_letters(wanted.name).count() == 1, 60)
    (letter,) = browse(transport, wanted.name)
    assert (letter.event_id, letter.failure.reason) == (event.uuid_string, "expired")


def test_what_expired_can_be_replayed_and_does_not_expire_again(connect, handler, publish) -> None:
    wanted = handler()
    transport = connect()
    transport.declare(wanted)
    event = publish(f"{wanted.name}.x", RabbitMQOptions(expiration=PAST))
    letters = transport.dead_letters(wanted.name)
    wait_until(lambda: letters.count() == 1, 60)
    letters.sift(lambda _: Decision.RETRY)
    transport.subscribe(wanted)
    (got,) = collect(transport, 1, 60)
    assert (got.event_id, got.token.properties.expiration) == (event.uuid_string, None)


def test_what_is_asked_for_stays_through_retry_dead_letter_and_replay(connect, handler, publish) -> None:
    wanted = handler(delays=(0.1,))
    transport = connect()
    transport.subscribe(wanted)
    options = RabbitMQOptions(
        priority=3,
        app_id="shop",
        type="Placed",
        reply_to="answers",
        content_type="text/json",
        correlation_id="story",
        headers={"tenant": "acme"},
        user_id="guest",
        expiration=600,
    )
    publish(f"{wanted.name}.x", options)
    first = collect(transport, 1, 60)
    answer(transport, first, Action.RETRY, 0.1)
    second = collect(transport, 1, 60)
    answer(transport, second, Action.DEAD)
    letters = transport.dead_letters(wanted.name)
    wait_until(lambda: letters.count() == 1, 60)
    letters.sift(lambda _: Decision.RETRY)
    third = collect(transport, 1, 60)
    for delivery in (*first, *second, *third):
        properties = delivery.token.properties
        kept = (properties.priority, properties.app_id, properties.type, properties.reply_to)
        assert kept == (3, "shop", "Placed", "answers")
        assert properties.content_type == "text/json"
        assert (delivery.headers["tenant"], _story_of(delivery)) == ("acme", "story")


def _story_of(delivery: Any) -> str:
    return decode(delivery.body, delivery.event_id, headers=delivery.headers).correlation_id


def test_a_user_that_is_somebody_else_is_refused_by_the_broker_and_told(connect, handler, publish) -> None:
    wanted = handler()
    connect().declare(wanted)
    with pytest.raises(PublishFailed, match="user_id"):
        publish(f"{wanted.name}.x", RabbitMQOptions(user_id="somebody-else"))


def test_options_of_another_broker_are_refused_before_anything_is_sent() -> None:
    with pytest.raises(UnsupportedOption, match="goes to memory2:"):
        publish_domain_event(
            "a.b", {}, connection_settings="memory2://x", options=RabbitMQOptions(priority=1)
        )


def test_a_publisher_sends_the_options_of_an_event(connect, handler, channel, rabbitmq_server) -> None:
    wanted = handler()
    connect().declare(wanted)
    event: DomainEvent = DomainEvent(f"{wanted.name}.x", {})
    event.options = (RabbitMQOptions(priority=2),)
    with Publisher(rabbitmq_server.url()) as publisher:
        publisher.publish(event)
    assert _fetch(channel, wanted.name).priority == 2


def test_the_story_of_a_program_that_knows_only_amqp_goes_on(connect, handler, channel) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    body = b'{"routing_key": "x", "data": {}, "uuid_string": "1"}'
    properties = pika.BasicProperties(message_id="1", correlation_id="foreign story")
    channel.basic_publish("domain-events", f"{wanted.name}.x", body, properties)
    (got,) = collect(transport, 1, 60)
    assert _story_of(got) == "foreign story"


def test_the_story_around_a_publisher_is_the_property_that_amqp_has_for_it(
    connect, handler, channel, publish
) -> None:
    wanted = handler()
    connect().declare(wanted)
    with correlated("around", "cause"):
        publish(f"{wanted.name}.x")
    got = _fetch(channel, wanted.name)
    assert got.correlation_id == "around"
    assert _headers(got) == {"event-causation-id": "cause"}
