"""What happens to orders, and the events that tell it."""

from __future__ import annotations

from django.db import transaction

from domain_event_broker import publish_domain_event
from orders.catalogue import Product
from orders.models import Note, Order


def place_order(product: Product, quantity: int, destination: str, note: str = "") -> Order:
    """Place an order.

    The order and its events are rows of one transaction: there is no order without its
    events, and no event without its order, whatever happens to this process.
    """
    with transaction.atomic():
        order = Order.objects.create(
            product=product.name,
            quantity=quantity,
            total_cents=quantity * product.price_cents,
            destination=destination,
        )
        publish_domain_event(
            "order.placed",
            {
                "product": order.product,
                "quantity": order.quantity,
                "total_cents": order.total_cents,
                "destination": order.destination,
            },
            domain_object_id=order.number,
        )
        if note:
            add_note(order, note)
    return order


def add_note(order: Order, text: str) -> Note:
    """Add a note to an order, now or later.

    Its event has the same ``domain_object_id`` as the others of the order, and leaves the
    outbox after those that were published before.
    """
    with transaction.atomic():
        note = Note.objects.create(order=order, text=text)
        publish_domain_event("order.note_added", {"text": text}, domain_object_id=order.number)
    return note
