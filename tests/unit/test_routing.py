"""Routing keys and binding keys, by the rules of AMQP topic exchanges."""

from __future__ import annotations

import pytest

from domain_event_broker.errors import HandlerError, InvalidEvent
from domain_event_broker.routing import (
    check_binding_key,
    check_queue_name,
    check_routing_key,
    matches,
)


@pytest.mark.parametrize(
    ("binding_key", "routing_key", "expected"),
    [
        ("order.placed", "order.placed", True),
        ("order.placed", "order.placed.twice", False),
        ("order.*", "order.placed", True),
        ("order.*", "order", False),
        ("order.*", "order.placed.twice", False),
        ("*.placed", "order.placed", True),
        ("*", "order", True),
        ("*", "order.placed", False),
        ("#", "order", True),
        ("#", "a.b.c.d", True),
        ("order.#", "order", True),
        ("order.#", "order.a.b", True),
        ("order.#", "orders.a", False),
        ("#.placed", "placed", True),
        ("#.placed", "order.item.placed", True),
        ("#.placed", "order.placed.late", False),
        ("a.#.z", "a.z", True),
        ("a.#.z", "a.b.c.z", True),
        ("a.#.z", "a.b.c", False),
        ("*.#.*", "a", False),
        ("*.#.*", "a.b", True),
        ("a..b", "a..b", True),
        ("a.*.b", "a..b", True),
    ],
)
def test_binding_keys_match_words_as_a_topic_exchange_does(
    binding_key: str, routing_key: str, expected: bool
) -> None:
    assert matches(binding_key, routing_key) is expected


def test_many_hashes_are_matched_without_trying_every_split() -> None:
    assert matches(".".join(["#", "a"] * 20), ".".join(["a"] * 60))
    assert not matches(".".join(["#", "a"] * 20 + ["b"]), ".".join(["a"] * 60))


@pytest.mark.parametrize(
    ("routing_key", "complaint"),
    [
        ("", "is empty"),
        (None, "is of type NoneType"),
        (7, "is of type int"),
        ("a" * 256, "is 256 bytes long"),
        ("ü" * 128, "is 256 bytes long"),
        ("order.*", "holds a wildcard"),
        ("#", "holds a wildcard"),
        ("order\n", "holds a control character"),
        ("order\x00", "holds a control character"),
        ("order.\ud800", "holds a lone surrogate"),
    ],
)
def test_a_routing_key_that_cannot_travel_is_refused_with_its_reason(
    routing_key: object, complaint: str
) -> None:
    with pytest.raises(InvalidEvent, match=complaint):
        check_routing_key(routing_key)


@pytest.mark.parametrize("routing_key", ["a", "order.placed", "bestellung.übernommen", "a*b.c", "a" * 255])
def test_a_routing_key_that_can_travel_is_accepted(routing_key: str) -> None:
    assert check_routing_key(routing_key) == routing_key


@pytest.mark.parametrize("binding_key", ["order*", "order.#x", "", None, "a" * 300])
def test_a_malformed_binding_key_is_refused(binding_key: object) -> None:
    with pytest.raises(HandlerError, match="binding key"):
        check_binding_key(binding_key)


@pytest.mark.parametrize("name", ["", None, "amq.mine", "a" * 240])
def test_a_handler_name_that_cannot_name_queues_is_refused(name: object) -> None:
    with pytest.raises(HandlerError, match="handler name"):
        check_queue_name(name)
