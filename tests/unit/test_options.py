"""Options of events: what is accepted, how layers add up, and where they are written."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from domain_event_broker import EventOptions, KafkaOptions, RabbitMQOptions, RedisOptions
from domain_event_broker.correlation import correlated
from domain_event_broker.errors import InvalidEvent, UnsupportedOption
from domain_event_broker.events import HEADER_OPTIONS, DomainEvent, decode, encode
from domain_event_broker.options import BackendOptions, apply, read
from domain_event_broker.typed import EventModel

MOMENT = datetime(2026, 11, 21, tzinfo=timezone.utc)


def _event(*options: Any) -> DomainEvent:
    event: DomainEvent = DomainEvent("a.b", {})
    event.options = options
    return event


def _applied(*given: Any, scheme: str | None = "amqp", own: tuple[Any, ...] = ()) -> DomainEvent:
    event = _event(*own)
    apply(event, given, scheme)
    return event


# --- what is accepted -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expiration", "stored"),
    [
        (5, {"expires_in": 5000}),
        (5.0, {"expires_in": 5000}),
        (0.25, {"expires_in": 250}),
        (0, {"expires_in": 0}),
        (timedelta(minutes=2), {"expires_in": 120_000}),
        (MOMENT, {"expires_at": 1795219200000}),
        (MOMENT.astimezone(timezone(timedelta(hours=5))), {"expires_at": 1795219200000}),
    ],
)
def test_an_expiration_is_seconds_whatever_kind_of_number_or_a_moment(
    expiration: Any, stored: dict[str, int]
) -> None:
    event = _applied(RabbitMQOptions(expiration=expiration))
    assert read(event.headers, "rabbitmq") == stored


def test_all_properties_of_rabbitmq_are_kept() -> None:
    asked = {
        "delivery_mode": 1,
        "priority": 9,
        "content_type": "application/vnd.shop+json",
        "content_encoding": "utf-8",
        "reply_to": "answers",
        "type": "OrderPlaced",
        "app_id": "shop",
        "user_id": "relay",
    }
    event = _applied(RabbitMQOptions(timestamp=MOMENT, **asked))  # type: ignore[arg-type]
    assert read(event.headers, "rabbitmq") == {**asked, "timestamp": 1795219200}


def test_options_of_kafka_are_kept() -> None:
    event = _applied(KafkaOptions(partition_key="7", partition=0, timestamp=1.5), scheme="kafka")
    assert read(event.headers, "kafka") == {"partition_key": "7", "partition": 0, "timestamp": 1500}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        (RabbitMQOptions, {"delivery_mode": 3}),
        (RabbitMQOptions, {"priority": 256}),
        (RabbitMQOptions, {"priority": -1}),
        (RabbitMQOptions, {"priority": True}),
        (RabbitMQOptions, {"priority": 1.5}),
        (RabbitMQOptions, {"expiration": -1}),
        (RabbitMQOptions, {"expiration": float("nan")}),
        (RabbitMQOptions, {"expiration": float("inf")}),
        (RabbitMQOptions, {"expiration": True}),
        (RabbitMQOptions, {"expiration": "5"}),
        (RabbitMQOptions, {"expiration": timedelta(seconds=-1)}),
        (RabbitMQOptions, {"expiration": 2**32}),
        (RabbitMQOptions, {"expiration": datetime(2026, 1, 1)}),  # noqa: DTZ001 - what is refused
        (RabbitMQOptions, {"timestamp": "now"}),
        (RabbitMQOptions, {"timestamp": -1}),
        (RabbitMQOptions, {"content_type": ""}),
        (RabbitMQOptions, {"reply_to": "x" * 256}),
        (RabbitMQOptions, {"reply_to": "ü" * 128}),
        (RabbitMQOptions, {"app_id": "a\x00b"}),
        (RabbitMQOptions, {"user_id": 5}),
        (KafkaOptions, {"partition": -1}),
        (KafkaOptions, {"partition_key": 7}),
        (EventOptions, {"correlation_id": ""}),
        (EventOptions, {"correlation_id": "a\nb"}),
        (EventOptions, {"headers": ["a"]}),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(kind: type[EventOptions], wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidEvent, match=rf"{kind.__name__}: {name}"):
        kind(**wrong)


def test_a_message_id_is_refused_with_what_to_give_instead() -> None:
    with pytest.raises(InvalidEvent, match="uuid_string"):
        RabbitMQOptions(message_id="mine")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("event-attempt", 1),
        ("x-death", "none"),
        ("CC", "a"),
        ("", "a"),
        ("n" * 256, "a"),
        ("a\nb", "a"),
        (5, "a"),
        ("a", 1.5),
        ("a", None),
        ("a", ["b"]),
        ("a", "\x00"),
        ("a", "\ud800"),
        ("a", 2**63),
    ],
)
def test_a_header_that_not_every_broker_can_carry_is_refused(name: Any, value: Any) -> None:
    with pytest.raises(InvalidEvent, match="header"):
        EventOptions(headers={name: value})


def test_headers_that_would_not_fit_beside_a_traceback_are_refused() -> None:
    with pytest.raises(InvalidEvent, match="at most 32768"):
        EventOptions(headers={f"h{number}": "x" * 1000 for number in range(40)})


# --- layers -----------------------------------------------------------------------------------


class Priced(EventModel, routing_key="price.set", options=RabbitMQOptions(priority=1, app_id="shop")):
    price: int


def test_call_wins_over_instance_and_instance_over_class() -> None:
    typed = Priced(price=1).with_options(RabbitMQOptions(priority=2, type="instance"))
    event = typed.to_event()
    apply(event, [RabbitMQOptions(priority=3)], "amqp")
    assert read(event.headers, "rabbitmq") == {"priority": 3, "type": "instance", "app_id": "shop"}


def test_an_event_may_have_one_set_of_options_or_several() -> None:
    event = _event()
    event.options = RabbitMQOptions(priority=1)  # type: ignore[assignment]
    apply(event, (), "amqp")
    assert read(event.headers, "rabbitmq") == {"priority": 1}


def test_headers_of_all_layers_add_up() -> None:
    own = (EventOptions(headers={"a": 1, "b": 1}),)
    event = _applied(EventOptions(headers={"b": 2}), RabbitMQOptions(headers={"c": 3}), own=own)
    assert dict(event.headers) == {"a": 1, "b": 2, "c": 3}


def test_a_period_replaces_a_moment_and_the_reverse() -> None:
    later, sooner = RabbitMQOptions(expiration=MOMENT), RabbitMQOptions(expiration=1)
    assert read(_applied(later, sooner).headers, "rabbitmq") == {"expires_in": 1000}
    assert read(_applied(sooner, later).headers, "rabbitmq") == {"expires_at": 1795219200000}


def test_options_on_an_instance_leave_the_one_they_were_given_on() -> None:
    plain = Priced(price=1)
    urgent = plain.with_options(RabbitMQOptions(priority=9))
    assert len(plain.to_event().options) == 1
    assert len(urgent.to_event().options) == 2
    assert urgent.price == 1


def test_a_subclass_has_the_options_of_its_base_unless_it_says_others() -> None:
    class Marked(Priced, routing_key="price.marked"):
        pass

    class Cut(Priced, routing_key="price.cut", options=()):
        pass

    assert len(Marked(price=1).to_event().options) == 1
    assert Cut(price=1).to_event().options == ()


def test_the_correlation_of_the_options_wins_over_that_around() -> None:
    event = _applied(EventOptions(correlation_id="mine"))
    with correlated("around", "cause"):
        encode(event)
    assert (event.correlation_id, event.causation_id) == ("mine", "cause")


@pytest.mark.parametrize("wrong", ["priority", {"priority": 3}, 5, None])
def test_what_is_no_options_is_refused(wrong: Any) -> None:
    with pytest.raises(InvalidEvent, match="is none of EventOptions"):
        apply(_event(), wrong, "amqp")


# --- which broker -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["kafka", "redis", "database", "nats"])
def test_options_of_another_broker_are_an_error_that_names_both(scheme: str) -> None:
    with pytest.raises(UnsupportedOption, match=f"RabbitMQOptions are for amqp:, amqps:.*goes to {scheme}:"):
        _applied(RabbitMQOptions(priority=1), scheme=scheme)


@pytest.mark.parametrize(
    ("options", "scheme"),
    [
        (RabbitMQOptions(), "amqp"),
        (RabbitMQOptions(), "amqps"),
        (KafkaOptions(), "kafka"),
        (RedisOptions(), "redis"),
        (RedisOptions(), "rediss"),
        (EventOptions(), "nats"),
        (KafkaOptions(), "memory"),
        (RabbitMQOptions(), "memory"),
        (KafkaOptions(), None),
    ],
)
def test_options_of_the_broker_at_hand_and_of_any_are_taken(
    options: EventOptions, scheme: str | None
) -> None:
    _applied(options, scheme=scheme)


def test_optional_ones_are_kept_for_their_broker_and_their_headers_left_out() -> None:
    event = _applied(
        RabbitMQOptions(priority=1, headers={"a": 1}, correlation_id="x", optional=True),
        KafkaOptions(partition=3, headers={"b": 2}),
        scheme="kafka",
    )
    assert read(event.headers, "rabbitmq") == {"priority": 1}
    assert read(event.headers, "kafka") == {"partition": 3}
    assert (event.headers.get("a"), event.headers.get("b")) == (None, 2)
    assert event.correlation_id == event.uuid_string


def test_a_transport_of_somebody_else_can_have_options_of_its_own() -> None:
    class PigeonOptions(BackendOptions):
        backend = "pigeon"
        schemes = ("pigeon",)

        def for_backend(self) -> dict[str, Any]:
            return {"loft": "north"}

    assert read(_applied(PigeonOptions(), scheme="pigeon").headers, "pigeon") == {"loft": "north"}


# --- how they are written ---------------------------------------------------------------------


def test_options_travel_in_one_header_of_the_message() -> None:
    message = encode(_applied(RabbitMQOptions(priority=1)))
    assert json.loads(str(message.headers[HEADER_OPTIONS])) == {"rabbitmq": {"priority": 1}}


def test_without_options_nothing_is_written() -> None:
    assert encode(_applied()).headers == {}
    assert encode(_applied(RabbitMQOptions())).headers == {}


@pytest.mark.parametrize("written", ["", "no json", "[]", '{"kafka": {}}', '{"rabbitmq": 5}', 7, None])
def test_a_header_that_somebody_else_wrote_counts_as_no_options(written: Any) -> None:
    assert read({HEADER_OPTIONS: written}, "rabbitmq") == {}


@pytest.mark.parametrize("forged", ['{"rabbitmq":{"expires_at":"x"}}', "[" * 5000])
def test_options_that_came_with_an_event_do_not_act_when_it_is_published_again(forged: str) -> None:
    body = DomainEvent("user.registered", {}).to_json().encode()
    received = decode(body, headers={HEADER_OPTIONS: forged, "tenant": "a"})
    assert dict(encode(received).headers) == {"tenant": "a"}
    assert read({HEADER_OPTIONS: "[" * 5000}, "rabbitmq") == {}


def test_a_moment_of_expiration_lies_within_what_the_broker_can_count() -> None:
    now = datetime.now(timezone.utc)
    assert RabbitMQOptions(expiration=now + timedelta(days=49)).for_backend()["expires_at"]
    with pytest.raises(InvalidEvent, match="a moment within 49 days"):
        RabbitMQOptions(expiration=now + timedelta(days=50))


def test_headers_of_all_layers_together_fit_into_a_frame() -> None:
    event = _event()
    layers = [EventOptions(headers={f"h{number}": "x" * 20_000}) for number in range(2)]
    with pytest.raises(InvalidEvent, match="all options of an event together"):
        apply(event, layers, "memory")
    with pytest.raises(InvalidEvent, match="the headers take"):
        EventOptions(headers={"h": "😀" * 10_000})
