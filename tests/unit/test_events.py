"""The event, its wire format, and everything that can be wrong with one."""

from __future__ import annotations

import datetime
import decimal
import json
import time
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain_event_broker import DomainEvent
from domain_event_broker.errors import InvalidEvent, MalformedEvent
from domain_event_broker.events import decode, encode, is_too_deep, new_event_id

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def test_the_body_has_the_five_fields_of_the_older_library() -> None:
    event = DomainEvent("user.registered", {"id": 1}, "u-1", "e-1", 12.5)
    assert json.loads(event.to_json()) == {
        "routing_key": "user.registered",
        "data": {"id": 1},
        "domain_object_id": "u-1",
        "uuid_string": "e-1",
        "timestamp": 12.5,
    }


def test_identity_and_time_are_made_up_when_not_given() -> None:
    one, other = DomainEvent("a.b"), DomainEvent("a.b")
    assert one.uuid_string != other.uuid_string
    assert uuid.UUID(one.uuid_string).version == 7
    assert one.timestamp <= other.timestamp
    assert one.data == {}
    assert one.data is not other.data


def test_event_ids_grow_with_time() -> None:
    ids = [new_event_id() for _ in range(200)]
    assert len(set(ids)) == 200
    assert [each[:13] for each in ids] == sorted(each[:13] for each in ids)


def test_domain_and_event_type_are_the_parts_of_the_routing_key() -> None:
    event = DomainEvent("user.address.changed")
    assert (event.domain, event.event_type) == ("user", "address.changed")


@given(data=st.dictionaries(st.text(), JSON_VALUES), key=st.none() | st.text(min_size=1))
def test_an_event_survives_its_own_wire_format(data: dict[str, object], key: str | None) -> None:
    event = DomainEvent("a.b", data, key)
    assert DomainEvent.from_json(event.to_json()) == event
    assert decode(event.to_json().encode()) == event


def test_fields_of_a_newer_publisher_are_kept() -> None:
    body = '{"routing_key": "a.b", "data": {}, "uuid_string": "1", "timestamp": 1, "tenant": "x", "self": 1}'
    event = DomainEvent.from_json(body)
    assert event.extra == {"tenant": "x"}
    assert json.loads(event.to_json())["tenant"] == "x"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (
            {"at": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)},
            r"data\['at'\] is of type datetime",
        ),
        ({"items": [{"price": decimal.Decimal(1)}]}, r"data\['items'\]\[0\]\['price'\] is of type Decimal"),
        ({"share": float("nan")}, r"data\['share'\] is nan"),
        ({"share": float("inf")}, r"data\['share'\] is inf"),
        ({"tags": {"a"}}, r"data\['tags'\] is of type set"),
        ({(1, 2): "x"}, r"the key \(1, 2\) of data is of type tuple"),
        ({"raw": b"x"}, r"data\['raw'\] is of type bytes"),
    ],
)
def test_what_json_cannot_hold_is_refused_naming_the_place_and_the_type(
    data: dict[str, object], complaint: str
) -> None:
    with pytest.raises(InvalidEvent, match=complaint):
        encode(DomainEvent("a.b", data))


def test_data_that_contains_itself_is_refused() -> None:
    data: dict[str, object] = {}
    data["me"] = data
    with pytest.raises(InvalidEvent, match="contains itself"):
        encode(DomainEvent("a.b", data))


def test_data_nested_too_deeply_is_refused() -> None:
    data: dict[str, object] = {}
    for _ in range(100_000):
        data = {"in": data}
    with pytest.raises(InvalidEvent, match="nested too deeply"):
        encode(DomainEvent("a.b", data))


def test_a_lone_surrogate_and_a_nul_travel_in_ascii() -> None:
    message = encode(DomainEvent("a.b", {"text": "\ud800 \x00 ü"}))
    assert message.body.isascii()
    assert decode(message.body).data == {"text": "\ud800 \x00 ü"}


def test_a_body_over_the_limit_is_refused_with_both_sizes() -> None:
    with pytest.raises(InvalidEvent, match=r"is \d+ bytes long; at most 100 are allowed"):
        encode(DomainEvent("a.b", {"text": "x" * 100}), max_bytes=100)


@pytest.mark.parametrize(
    "wrong",
    [
        {"uuid_string": ""},
        {"uuid_string": "x" * 65},
        {"uuid_string": 7},
        {"uuid_string": "a\n"},
        {"domain_object_id": "a\x00"},
        {"domain_object_id": "\ud800"},
        {"domain_object_id": "x" * 256},
        {"domain_object_id": 1.5},
        {"timestamp": "now"},
        {"timestamp": True},
    ],
)
def test_an_identity_or_time_that_cannot_be_stored_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidEvent, match=next(iter(wrong))):
        encode(DomainEvent("a.b", {}, **wrong))  # type: ignore[arg-type]


def test_a_number_or_uuid_as_domain_object_id_becomes_its_text() -> None:
    assert encode(DomainEvent("a.b", {}, 7)).ordering_key == "7"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"[]", "is a JSON list"),
        (b'"text"', "is a JSON str"),
        (b"null", "is a JSON NoneType"),
        (b"\xff\xfe", "is not UTF-8"),
        ('{"routing_key": "ü"}'.encode("latin-1"), "is not UTF-8"),
        (b"[" * 100_000, "nested too deeply: at most 200"),
        (b'{"data": {}, "uuid_string": "1"}', "lacks the field 'routing_key'"),
        (b'{"routing_key": "a.b", "uuid_string": "1"}', "lacks the field 'data'"),
        (b'{"routing_key": "a.b", "data": {}}', "lacks the field 'uuid_string'"),
        (b'{"routing_key": 7, "data": {}, "uuid_string": "1"}', "'routing_key' is a JSON int"),
        (b'{"routing_key": "a", "data": {}, "uuid_string": [1]}', "'uuid_string' is a JSON list"),
        (
            b'{"routing_key": "a", "data": {}, "uuid_string": "1", "timestamp": "x"}',
            "'timestamp' is a JSON str",
        ),
        (b'{"n": ' + b"9" * 5000 + b"}", "is not JSON"),
    ],
)
def test_a_delivered_body_that_is_no_event_is_malformed_for_a_reason(body: bytes, complaint: str) -> None:
    with pytest.raises(MalformedEvent, match=complaint):
        decode(body)


def test_the_identity_on_the_envelope_stands_in_for_one_missing_in_the_body() -> None:
    assert decode(b'{"routing_key": "a.b", "data": {}}', event_id="e-1").uuid_string == "e-1"


def test_retries_come_from_the_envelope_never_from_the_body() -> None:
    body = b'{"routing_key": "a.b", "data": {}, "uuid_string": "1", "retries": 99}'
    assert decode(body, retries=2).retries == 2


@given(body=st.binary())
def test_no_bytes_at_all_make_decoding_fail_in_another_way(body: bytes) -> None:
    with pytest.raises(MalformedEvent):
        decode(body)


@pytest.mark.parametrize("given", ["null", '""'])
def test_an_empty_identity_in_the_body_gives_way_to_the_one_on_the_envelope(given: str) -> None:
    body = f'{{"routing_key": "a.b", "data": {{}}, "uuid_string": {given}}}'.encode()
    assert decode(body, event_id="e-1").uuid_string == "e-1"
    with pytest.raises(MalformedEvent, match="lacks the field 'uuid_string'"):
        decode(body)


def test_an_empty_domain_object_id_is_none_at_all() -> None:
    assert encode(DomainEvent("a.b", {}, "")).ordering_key is None
    assert encode(DomainEvent("a.b", {}, "line\nbreak")).ordering_key == "line\nbreak"


def test_event_data_is_what_the_body_says() -> None:
    event = DomainEvent("a.b", {"n": 1}, "o-1")
    assert json.loads(event.to_json()) == event.event_data


@pytest.mark.parametrize(
    ("body", "depth"),
    [
        (b"5", 0),
        (b"[]", 1),
        (b'{"a": [{}]}', 3),
        (b"[[],[],[]]", 2),
        (b'"[[[["', 0),
        (rb'["\"[[[[", [1]]', 2),
        (rb'["\\", [[1]], "[[["]', 3),
        (b'["unclosed [[[[', 1),
        (b"\xff[[", 2),
    ],
)
def test_nesting_is_counted_outside_of_strings(body: bytes, depth: int) -> None:
    assert not is_too_deep(body, depth)
    assert depth == 0 or is_too_deep(body, depth - 1)


def test_an_event_may_be_nested_to_the_limit_and_no_deeper() -> None:
    data: Any = "bottom"
    for _ in range(8):
        data = {"in": data}
    message = encode(DomainEvent("a.b", data), max_depth=9)
    assert decode(message.body, max_depth=9).data == data
    with pytest.raises(InvalidEvent, match="nested too deeply: at most 8 levels"):
        encode(DomainEvent("a.b", data), max_depth=8)
    with pytest.raises(MalformedEvent, match="nested too deeply: at most 8 levels"):
        decode(message.body, max_depth=8)


def test_counting_the_nesting_of_a_hostile_body_takes_one_pass() -> None:
    """Each of these makes a careless scanner start anew at every character."""
    for body in (b'"' * 2**20 + b"[" * 2**20, b"\\" * 2**21, b'["' * 2**20, b'\\"[' * 2**20):
        started = time.process_time()
        is_too_deep(b"[" * 300 + body, 200)
        assert time.process_time() - started < 5
