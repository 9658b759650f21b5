"""The checklist of bus libraries, rows 1 to 13: events and how they are published."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any

import pika
import pytest
from pydantic import Field

from domain_event_broker import (
    DomainEvent,
    EventModel,
    KafkaOptions,
    Publisher,
    RabbitMQOptions,
    RoutingKeySegment,
    config,
    correlated,
    publish_domain_event,
    publish_domain_events,
    publisher,
)
from domain_event_broker.background import BackgroundPublisher
from domain_event_broker.errors import BatchPublishError, InvalidEvent, PublishFailed, UnsupportedOption
from domain_event_broker.events import Message
from domain_event_broker.handlers import Handler
from domain_event_broker.testing import CapturedEvents
from tests.checklist.conftest import declared
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.subscriber.conftest import Bench


class Placed(EventModel, routing_key="order.{country}.placed", version=2, object_id="number"):
    """A typed event."""

    country: str
    number: int
    total: int = Field(gt=0)


@pytest.fixture(autouse=True)
def _no_outbox() -> Any:
    """Events go straight to the broker of the row."""
    outbox = publisher.installed_outbox()
    publisher.install_outbox(None)
    yield
    publisher.close_connections()
    publisher.install_outbox(outbox)


def take(bench: Bench, handler: Handler, count: int) -> list[DomainEvent]:
    """Receive so many events with a handler that was declared, and return them."""
    seen: list[DomainEvent] = []
    collecting = Handler(call=seen.append, name=handler.name, binding_keys=handler.binding_keys)
    with bench.consuming(collecting):
        wait_until(lambda: len(seen) >= count, 30, lambda: f"{count} of {seen}")
    return seen


def test_row_01_event_classes_are_models_whose_wrong_fields_are_refused_before_sending(
    captured_events: CapturedEvents,
) -> None:
    publish_domain_event(Placed(country="nl", number=7, total=25))
    captured_events.assert_published("order.nl.placed", domain_object_id=7)
    with pytest.raises(ValueError, match="greater than 0"):
        publish_domain_event(Placed(country="nl", number=8, total=0))
    assert len(captured_events) == 1


def test_row_02_a_handler_gets_a_typed_body_or_a_dict(bench: Bench) -> None:
    seen: list[Any] = []

    def typed(event: DomainEvent[Placed]) -> None:
        seen.append(event.data)

    def plain(data: dict[str, Any]) -> None:
        seen.append(data)

    country = bench.fresh_name("c")
    handlers = [declared(bench, call, f"order.{country}.placed") for call in (typed, plain)]
    event = Placed(country=country, number=7, total=25)
    publish_domain_event(event, connection_settings=bench.settings.url[0])
    with bench.consuming(*handlers):
        wait_until(lambda: len(seen) == 2, 30)
    assert event in seen
    assert {"country": country, "number": 7, "total": 25} in seen


def test_row_03_a_body_that_breaks_the_schema_goes_to_the_dead_letters(bench: Bench) -> None:
    def handle(event: Placed) -> None: ...

    handler = declared(bench, handle, bench.fresh_name("order"))
    bench.publish(handler, "no number")
    bench.send([Message(handler.binding_keys[0], b"{no JSON", "id-1")])
    with bench.consuming(handler):
        letters = bench.dead_letters(handler, 2)
    reasons = sorted(letter.failure.reason for letter in letters if letter.failure)
    assert reasons == ["invalid-data", "malformed"], reasons


def test_row_04_an_unknown_event_is_neither_lost_in_silence_nor_a_flood_of_dead_letters(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    handler = declared(bench, lambda event: None)
    with Publisher(bench.settings.url[0]) as direct, caplog.at_level("INFO", "domain_event_broker"):
        direct.publish(DomainEvent(bench.fresh_name("nobody-knows"), {}))
    assert direct.stats.publish_returns == 1
    assert "no queue is bound for" in caplog.text
    with bench.consuming(handler):
        bench.publish(handler, 1)
        bench.wait_until_empty(handler)
    assert bench.stats(handler).dead == 0


def test_row_05_an_event_carries_identity_time_correlation_cause_tenant_actor_and_version(
    bench: Bench,
) -> None:
    country = bench.fresh_name("c")
    handler = declared(bench, lambda event: None, f"order.{country}.placed")
    event = Placed(country=country, number=7, total=25).to_event()
    event.extra = {"tenant_id": "blue", "actor_id": "u-1"}
    with correlated("story", "cause"):
        publish_domain_event(event, connection_settings=bench.settings.url[0])
    received = next(each for each in take(bench, handler, 1) if each.uuid_string == event.uuid_string)
    assert (received.timestamp, received.extra) == (event.timestamp, {"tenant_id": "blue", "actor_id": "u-1"})
    assert (received.correlation_id, received.causation_id) == ("story", "cause")
    assert int(received.headers["event-schema-version"]) == 2


def test_row_06_a_list_is_handed_over_in_its_order(bench: Bench) -> None:
    handler = declared(bench, lambda event: None)
    events = [DomainEvent(handler.name, {"number": number}) for number in range(200)]
    publish_domain_events(events, bench.settings.url[0])
    assert [event.data["number"] for event in take(bench, handler, 200)] == list(range(200))


def test_row_07_background_publishing_returns_early_is_bounded_and_is_drained_by_the_end(
    fresh_name: Callable[[str], str],
) -> None:
    with PrivateRabbitMQ() as server:
        settings = config.parse(server.url())
        assert settings is not None
        handler = declared(Bench(settings, fresh_name), lambda event: None)
        background = BackgroundPublisher(server.url(), timeout=120)
        background.publish(DomainEvent(handler.name, {}))
        assert background.flush(30)
        server.freeze()
        began = time.monotonic()
        for _ in range(1000):
            background.publish(DomainEvent(handler.name, {}))
        assert time.monotonic() - began < 30, "nobody answered meanwhile"
        with pytest.raises(PublishFailed, match="1000 events wait"):
            background.publish(DomainEvent(handler.name, {}), wait=0.1)
        server.thaw()
        account = background.close(timeout=60)
        assert (account.total, account.published, account.failed) == (1001, 1001, 0)
        assert background.stats.as_dict()["background_tasks_completed"] == 1001


def test_row_08_a_batch_has_an_account_and_an_error_that_holds_it(bench: Bench) -> None:
    handler = declared(bench, lambda event: None)
    events = [DomainEvent(handler.name, {"number": number}, domain_object_id="one") for number in range(25)]
    with Publisher(bench.settings.url[0]) as direct:
        account = direct.publish_batch(events, preserve_order=False, chunk_size=10)
        assert (account.total, account.published, account.failed, account.chunks) == (25, 25, 0, 3)
        account.check()
        direct.publish_batch(events, preserve_order=True).check()
    assert len(take(bench, handler, 50)) == 50
    assert issubclass(BatchPublishError, Exception)
    assert direct.stats.as_dict()["batch_events_published"] == 50


def test_row_10_options_can_be_given_on_the_class_the_instance_and_the_call(on_rabbitmq: Bench) -> None:
    class Priced(
        EventModel, routing_key="{word}", options=RabbitMQOptions(priority=3, headers={"level": "class"})
    ):
        word: str

    handler = declared(on_rabbitmq, lambda event: None)
    url = on_rabbitmq.settings.url[0]
    event = Priced(word=handler.name)
    publish_domain_event(event, connection_settings=url)
    publish_domain_event(event.with_options(RabbitMQOptions(priority=5)), connection_settings=url)
    publish_domain_event(
        event.with_options(RabbitMQOptions(priority=5)),
        connection_settings=url,
        options=RabbitMQOptions(priority=9, expiration=60, app_id="till"),
    )
    found = []
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for _ in range(3):
            _, properties, _ = channel.basic_get(handler.name, auto_ack=True)
            found.append((properties.priority, properties.expiration, properties.headers["level"]))
    assert [priority for priority, _, _ in found] == [3, 5, 9]
    assert [level for _, _, level in found] == ["class"] * 3
    assert found[2][1] == "60000"


def test_row_11_options_of_another_broker_are_an_error_unless_they_are_optional(on_rabbitmq: Bench) -> None:
    handler = declared(on_rabbitmq, lambda event: None)
    event, url = DomainEvent(handler.name, {}), on_rabbitmq.settings.url[0]
    with pytest.raises(UnsupportedOption, match="kafka"):
        publish_domain_event(event, connection_settings=url, options=KafkaOptions(partition=1))
    publish_domain_event(event, connection_settings=url, options=KafkaOptions(partition=1, optional=True))
    assert [each.uuid_string for each in take(on_rabbitmq, handler, 1)] == [event.uuid_string]


def test_row_12_the_topic_is_made_of_fields_and_a_field_that_does_not_fit_is_an_error(
    captured_events: CapturedEvents,
) -> None:
    publish_domain_event(Placed(country="nl", number=7, total=25))
    assert captured_events.routing_keys == ["order.nl.placed"]
    for unsafe in ("", "n.l", "n l" + "x" * 300, "*"):
        with pytest.raises(InvalidEvent):
            publish_domain_event(Placed(country=unsafe, number=7, total=25))
    with pytest.raises(Exception, match="region"):

        class Missing(EventModel, routing_key="order.{region}.placed"):
            country: str


def test_row_13_a_word_of_the_topic_is_injected_converted_constrained_and_renamed(bench: Bench) -> None:
    seen: list[Any] = []
    domain = bench.fresh_name("user")

    def handle(
        user: Annotated[int, RoutingKeySegment(1), Field(ge=10)],
        what: Annotated[str, RoutingKeySegment(-1)],
    ) -> None:
        seen.append((user, what))

    handler = declared(bench, handle, f"{domain}.*.*")
    for key in (f"{domain}.42.left", f"{domain}.7.left", f"{domain}.x.left"):
        publish_domain_event(key, {}, connection_settings=bench.settings.url[0])
    with bench.consuming(handler):
        letters = bench.dead_letters(handler, 2)
    assert seen == [(42, "left")]
    assert {letter.routing_key.split(".")[1] for letter in letters} == {"7", "x"}
