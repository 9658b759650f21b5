"""Events and deliveries for tests, as they are after their way over a broker."""

from __future__ import annotations

from typing import Any

from domain_event_broker.events import DomainEvent, TypedEvent, decode, encode
from domain_event_broker.ports import Delivery
from domain_event_broker.publisher import to_event

#: The routing key where it does not matter.
ROUTING_KEY = "thing.happened"


def make_event(
    routing_key: str | TypedEvent = ROUTING_KEY,
    data: Any = None,
    domain_object_id: Any = None,
    **fields: Any,
) -> DomainEvent:
    """Return an event as a handler gets it.

    It went to JSON and back, so data that cannot be published cannot be tested with, and a tuple
    has become a list.

    :param routing_key: or a typed event, which has its own key, data and object.
    :param data: default: ``{}``.
    :param fields: further arguments of :class:`~domain_event_broker.DomainEvent`, such as
        ``retries=2`` or ``uuid_string=...``.
    :raises InvalidEvent: it could not be published.
    """
    if isinstance(routing_key, str):
        event = DomainEvent(routing_key, {} if data is None else data, domain_object_id, **fields)
    else:
        event = to_event(routing_key)
        vars(event).update(fields)
    message = encode(event)
    return decode(message.body, message.event_id, event.retries, headers=message.headers)


def make_delivery(
    event: DomainEvent | TypedEvent | str = ROUTING_KEY,
    data: Any = None,
    *,
    queue: str = "handler",
    body: bytes | None = None,
    headers: dict[str, Any] | None = None,
    retries: int = 0,
    crashes: int = 0,
) -> Delivery:
    """Return a delivery, as a transport hands it out.

    :param event: the event in it, or the routing key of one.
    :param data: its data, where only a routing key is given.
    :param queue: name of the handler that it is for.
    :param body: other bytes than those of the event, such as ``b"no JSON"``.
    :param headers: further headers.
    :param retries: deliveries to this handler that failed before.
    :param crashes: how often the broker took it back from a process that died.
    :raises InvalidEvent: the event could not be published.
    """
    made = event if isinstance(event, DomainEvent) else make_event(event, data)
    message = encode(made)
    return Delivery(
        queue=queue,
        body=message.body if body is None else body,
        routing_key=message.routing_key,
        event_id=message.event_id,
        headers={**message.headers, **(headers or {})},
        retries=retries,
        crashes=crashes,
    )
