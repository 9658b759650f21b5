"""Orders follows what the other apps do, and keeps the timeline that visitors see."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from domain_event_broker import DomainEvent, Reject, subscribe
from orders.models import Order, TimelineEntry

Sentence = Callable[[dict[str, Any]], str]

SENTENCES: dict[str, Sentence] = {
    "order.placed": lambda data: f"You ordered {data['quantity']} x {data['product']}.",
    "order.note_added": lambda data: f"You wrote: “{data['text']}”",
    "payment.charged": lambda data: f"The payment went through{_at_the_try(data['attempt'])}.",
    "payment.failed": lambda data: f"The payment was declined: {data['reason']}.",
    "shipment.sent": lambda data: f"Sent to {data['destination']} with {data['carrier']}.",
}

#: The status that an event leads to, and the ones it may follow. An event that comes again,
#: or late, never turns an order back.
STATUS = {
    "payment.charged": (Order.Status.PAID, [Order.Status.PLACED]),
    "payment.failed": (Order.Status.DECLINED, [Order.Status.PLACED]),
    "shipment.sent": (Order.Status.SHIPPED, [Order.Status.PLACED, Order.Status.PAID]),
}


@subscribe("order.*", "payment.*", "shipment.*", name="orders-timeline")
def keep_timeline(event: DomainEvent) -> None:
    """Enter the event into the timeline of its order, and let the order's status follow."""
    order = Order.objects.filter(pk=Order.id_of(event.domain_object_id)).first()
    if order is None:
        raise Reject(f"there is no order {event.domain_object_id!r} in this shop")
    TimelineEntry.objects.create(
        order=order,
        event_id=event.uuid_string,
        routing_key=event.routing_key,
        text=_in_words(event)[:255],
        happened_at=datetime.fromtimestamp(event.timestamp, timezone.utc),
    )
    if event.routing_key in STATUS:
        status, earlier = STATUS[event.routing_key]
        Order.objects.filter(pk=order.pk, status__in=earlier).update(status=status)


def _in_words(event: DomainEvent) -> str:
    sentence = SENTENCES.get(event.routing_key)
    return sentence(event.data) if sentence else event.routing_key


def _at_the_try(attempt: int) -> str:
    return "" if attempt < 2 else f" at try {attempt}"
