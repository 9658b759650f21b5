"""Typed events: from the class to the event, and back."""

from __future__ import annotations

import enum
import uuid
from datetime import date, datetime, timezone
from decimal import Decimal
from typing import Any, Generic, TypeVar

import pytest
from pydantic import Field, ValidationError

from domain_event_broker.errors import (
    ConfigurationError,
    InvalidEvent,
    InvalidEventData,
    MalformedEvent,
    NewerSchemaVersion,
)
from domain_event_broker.events import HEADER_SCHEMA_VERSION, DomainEvent, decode, encode
from domain_event_broker.typed import EventModel


class OrderPlaced(EventModel, routing_key="order.placed", object_id="order_id"):
    order_id: int
    total: Decimal


class OrderShipped(EventModel, routing_key="order.{country}.shipped", version=3, object_id="order_id"):
    order_id: uuid.UUID
    country: str
    parcels: list[str] = Field(default_factory=list)


@OrderShipped.upcast(from_version=1)
def _country_from_address(data: dict[str, Any]) -> dict[str, Any]:
    data["country"] = data.pop("address")["country"]
    return data


@OrderShipped.upcast(from_version=2)
def _one_parcel(data: dict[str, Any]) -> dict[str, Any]:
    return {**data, "parcels": [data["parcel"]]}


ORDER = uuid.UUID("01890000-0000-7000-8000-000000000001")


def _received(data: Any, version: Any = None, key: str = "order.de.shipped") -> DomainEvent:
    """An event as a handler gets it."""
    headers = {} if version is None else {HEADER_SCHEMA_VERSION: version}
    event: DomainEvent = DomainEvent(key, data)
    return decode(encode(event).body, event.uuid_string, headers=headers)


# --- out --------------------------------------------------------------------------------------


def test_a_typed_event_becomes_an_event_with_the_json_of_its_fields() -> None:
    event = OrderPlaced(order_id=7, total=Decimal("9.90")).to_event()
    assert (event.routing_key, event.domain_object_id) == ("order.placed", "7")
    assert event.data == {"order_id": 7, "total": "9.90"}


def test_the_version_travels_in_a_header_not_in_the_data() -> None:
    message = encode(OrderShipped(order_id=ORDER, country="de").to_event())
    assert message.headers == {HEADER_SCHEMA_VERSION: 3}
    assert b"version" not in message.body


def test_fields_that_do_not_fit_raise_at_once() -> None:
    with pytest.raises(ValidationError):
        OrderPlaced(order_id="seven", total=Decimal(1))  # type: ignore[arg-type]


def test_values_that_got_past_validation_are_refused_when_published() -> None:
    event = OrderPlaced.model_construct(order_id="seven", total=Decimal(1))
    with pytest.raises(InvalidEvent, match=r"(?s)OrderPlaced cannot be published.*int"):
        event.to_event()


def test_events_are_immutable() -> None:
    event = OrderPlaced(order_id=7, total=Decimal(1))
    with pytest.raises(ValidationError):
        event.total = Decimal(2)  # type: ignore[misc]


def test_a_routing_key_takes_words_from_fields() -> None:
    assert OrderShipped(order_id=ORDER, country="de").to_event().routing_key == "order.de.shipped"


class Region(enum.Enum):
    NORTH = "north"


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (7, "7"),
        (ORDER, str(ORDER)),
        (date(2026, 11, 21), "2026-11-21"),
        (Region.NORTH, "north"),
        ("Übersee", "Übersee"),
    ],
)
def test_words_are_made_of_values_that_have_one_spelling(value: Any, word: str) -> None:
    class Moved(EventModel, routing_key="stock.{place}.moved"):
        place: Any

    assert Moved(place=value).to_event().routing_key == f"stock.{word}.moved"


@pytest.mark.parametrize("value", ["", None, "d.e", "*", "#", "a b", "a\nb", "\x00", "a#b"])
def test_a_missing_or_unsafe_word_is_refused_and_not_escaped(value: Any) -> None:
    class Moved(EventModel, routing_key="stock.{place}.moved"):
        place: Any

    with pytest.raises(InvalidEvent, match="place"):
        Moved(place=value).to_event()


@pytest.mark.parametrize("value", [True, 1.5, ["de"], datetime(2026, 1, 1, tzinfo=timezone.utc)])
def test_values_with_several_spellings_make_no_word(value: Any) -> None:
    class Moved(EventModel, routing_key="stock.{place}.moved"):
        place: Any

    with pytest.raises(InvalidEvent, match="place"):
        Moved(place=value).to_event()


def test_the_object_may_be_unknown() -> None:
    class Noted(EventModel, routing_key="note.taken", object_id="about"):
        about: str | None = None

    assert Noted().to_event().domain_object_id is None
    assert Noted(about="x").to_event().domain_object_id == "x"


def test_aliases_are_what_is_written_and_read() -> None:
    class Aliased(EventModel, routing_key="a.b"):
        order: int = Field(alias="orderId")

    event = Aliased(orderId=3).to_event()
    assert event.data == {"orderId": 3}
    assert Aliased.from_event(_received(event.data)).order == 3


def test_a_class_without_a_routing_key_is_a_base_and_cannot_be_published() -> None:
    class Shop(EventModel, object_id="shop"):
        shop: int

    class Opened(Shop, routing_key="shop.opened"):
        pass

    assert Opened(shop=1).to_event().domain_object_id == "1"
    with pytest.raises(InvalidEvent, match="Shop has no routing key"):
        Shop(shop=1).to_event()
    with pytest.raises(ConfigurationError, match="Shop has no routing key"):
        Shop.binding_key()


Item = TypeVar("Item")


class Changed(EventModel, Generic[Item], routing_key="thing.changed"):
    item: Item


def test_generic_events_keep_what_their_class_declares() -> None:
    event = Changed[int](item=3).to_event()
    assert event.routing_key == "thing.changed"
    assert Changed[int].from_event(_received(event.data)).item == 3


# --- declarations -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"routing_key": "order.{country}.placed"}, "no field 'country'"),
        ({"routing_key": "order.x{place}.placed"}, r"x\{place\}"),
        ({"routing_key": "order.{place!r}.placed"}, r"place!r"),
        ({"routing_key": "order.*.placed"}, r"'\*'"),
        ({"routing_key": "a.b", "object_id": "number"}, "no field 'number'"),
        ({"routing_key": "a.b", "version": 0}, "version=0"),
        ({"routing_key": "a.b", "version": True}, "version=True"),
        ({"routing_key": "a.b", "unversioned": "1"}, "unversioned='1'"),
        ({"routing_key": "a.b", "verson": 2}, "verson"),
    ],
)
def test_a_declaration_that_cannot_be_served_is_refused_with_the_class(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigurationError, TypeError), match=message):

        class Wrong(EventModel, **arguments):
            place: str


def test_a_handler_is_bound_with_a_star_for_each_field() -> None:
    assert OrderShipped.binding_key() == "order.*.shipped"
    assert OrderPlaced.binding_key() == "order.placed"


def test_one_version_is_lifted_by_one_function() -> None:
    with pytest.raises(ConfigurationError, match="two upcasts from version 1"):
        OrderShipped.upcast(from_version=1)(lambda data: data)


@pytest.mark.parametrize("version", [0, 3, 4])
def test_there_is_nothing_to_lift_from_other_versions(version: int) -> None:
    with pytest.raises(ConfigurationError, match="from 1 to 2"):
        OrderShipped.upcast(from_version=version)


# --- in ---------------------------------------------------------------------------------------


def test_what_was_published_is_read_back() -> None:
    sent = OrderShipped(order_id=ORDER, country="de", parcels=["a", "b"])
    assert OrderShipped.from_event(_received(sent.to_event().data, 3)) == sent


def test_strict_fields_and_keys_that_are_no_text_survive_the_way() -> None:
    class Strict(EventModel, routing_key="a.b", strict=True):
        at: datetime
        raw: bytes
        counts: dict[int, tuple[int, ...]]

    sent = Strict(at=datetime(2026, 1, 1, tzinfo=timezone.utc), raw=b"x", counts={1: (2, 3)})
    assert Strict.from_event(_received(sent.to_event().data)) == sent


def test_old_versions_are_lifted_one_by_one() -> None:
    data = {"order_id": str(ORDER), "address": {"country": "fr"}, "parcel": "a"}
    event = _received(data, 1)
    assert OrderShipped.from_event(event) == OrderShipped(order_id=ORDER, country="fr", parcels=["a"])
    assert event.data == data


def test_an_event_in_the_middle_skips_the_first_steps() -> None:
    data = {"order_id": str(ORDER), "country": "fr", "parcel": "a"}
    assert OrderShipped.from_event(_received(data, 2)).parcels == ["a"]


def test_an_event_without_a_version_counts_as_the_first() -> None:
    data = {"order_id": str(ORDER), "address": {"country": "fr"}, "parcel": "a"}
    assert OrderShipped.from_event(_received(data)).country == "fr"


def test_a_class_may_say_which_version_an_event_without_one_has() -> None:
    class Paid(EventModel, routing_key="order.paid", version=2, unversioned=2):
        amount: int

    assert Paid.from_event(_received({"amount": 3})).amount == 3


def test_a_newer_version_is_refused_with_what_to_do() -> None:
    with pytest.raises(NewerSchemaVersion, match=r"version 4 of OrderShipped.*knows 3") as caught:
        OrderShipped.from_event(_received({"order_id": str(ORDER), "country": "fr"}, 4))
    assert caught.value.reason == "newer-version"


def test_a_newer_version_is_read_by_a_class_that_asks_for_it() -> None:
    class Tolerant(EventModel, routing_key="a.b", version=2, accept_newer=True):
        number: int

    assert Tolerant.from_event(_received({"number": 1, "added": True}, 5)).number == 1


def test_data_that_do_not_fit_are_told_field_by_field_without_their_values() -> None:
    with pytest.raises(InvalidEventData) as caught:
        OrderShipped.from_event(_received({"order_id": "secret", "parcels": [1]}, 3))
    text = str(caught.value)
    assert all(each in text for each in ("order_id: ", "country: Field required", "parcels.0: "))
    assert "secret" not in text
    assert caught.value.reason == "invalid-data"


def test_no_more_problems_are_told_than_anybody_reads() -> None:
    with pytest.raises(InvalidEventData, match="and 90 more"):
        OrderShipped.from_event(_received({"order_id": str(ORDER), "country": "x", "parcels": [1] * 100}, 3))


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_data_that_are_no_object_are_no_typed_event(data: Any) -> None:
    with pytest.raises(InvalidEventData, match="is an object, not a"):
        OrderShipped.from_event(_received(data, 3))


@pytest.mark.parametrize("version", ["x", 0, -1, None, [1]])
def test_a_version_that_is_no_number_is_malformed(version: Any) -> None:
    event = _received({}, 1)
    event.headers = {HEADER_SCHEMA_VERSION: version}
    with pytest.raises(MalformedEvent, match="no version"):
        OrderShipped.from_event(event)


def test_a_version_may_be_written_as_text() -> None:
    data = {"order_id": str(ORDER), "country": "fr"}
    assert OrderShipped.from_event(_received(data, "3")).country == "fr"


def test_a_version_that_nothing_lifts_names_the_function_that_is_missing() -> None:
    class Paid(EventModel, routing_key="order.paid", version=2):
        amount: int

    with pytest.raises(InvalidEventData, match=r"@Paid.upcast\(from_version=1\)"):
        Paid.from_event(_received({"amount": 3}, 1))


def test_an_upcast_that_fails_is_named_with_its_error() -> None:
    with pytest.raises(InvalidEventData, match=r"_country_from_address cannot lift version 1.*KeyError"):
        OrderShipped.from_event(_received({"order_id": str(ORDER)}, 1))


def test_an_upcast_that_forgets_to_return_is_told_so() -> None:
    class Paid(EventModel, routing_key="order.paid", version=2):
        amount: int

    Paid.upcast(from_version=1)(lambda data: data.clear())  # type: ignore[arg-type]
    with pytest.raises(InvalidEventData, match="must return the dict"):
        Paid.from_event(_received({"amount": 3}, 1))


def test_an_upcast_that_makes_what_json_has_not_is_told_so() -> None:
    class Paid(EventModel, routing_key="order.paid", version=2):
        on: date

    Paid.upcast(from_version=1)(lambda data: {"on": date(2026, 11, 21)})
    with pytest.raises(InvalidEventData, match=r"an upcast made data of .*Paid that JSON has not"):
        Paid.from_event(_received({}, 1))
