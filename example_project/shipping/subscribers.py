"""Shipping packs what was ordered, and sends it when it is paid."""

from __future__ import annotations

from domain_event_broker import DomainEvent, Reject, Retry, publish_domain_event, subscribe
from shipping.carriers import carrier_to
from shipping.models import Parcel, Shipment


@subscribe("order.placed", name="shipping-pack")
def pack(event: DomainEvent) -> None:
    """Make a parcel ready."""
    Parcel.objects.create(
        order_number=str(event.domain_object_id),
        event_id=event.uuid_string,
        contents=f"{event.data['quantity']} x {event.data['product']}",
        destination=event.data["destination"],
    )


@subscribe("payment.charged", name="shipping-ship", max_retries=20)
def ship(event: DomainEvent) -> None:
    """Send the parcel of an order that is paid."""
    parcel = Parcel.objects.filter(order_number=event.domain_object_id).first()
    if parcel is None:
        # Packing is another handler with another queue: it may be behind this one, and far
        # behind when its process was killed. 0.5, 1, 2, 4, 8, 8, ... seconds: over two minutes in all.
        raise Retry(min(0.5 * 2**event.retries, 8.0))
    carrier = carrier_to(parcel.destination)
    if carrier is None:
        # No retry will help, a human might: the event goes to the dead letters at once.
        raise Reject(f"no carrier goes to {parcel.destination}")
    Shipment.objects.create(
        parcel=parcel, order_number=parcel.order_number, event_id=event.uuid_string, carrier=carrier
    )
    publish_domain_event(
        "shipment.sent",
        {"destination": parcel.destination, "carrier": carrier},
        domain_object_id=parcel.order_number,
    )
