"""Tests of shipping: packed first, sent when paid, never to the moon."""

from __future__ import annotations

from django.test import TestCase

from domain_event_broker import DomainEvent, Reject, Retry
from domain_event_broker.testing import CaptureEventsMixin, make_event, run_handlers
from shipping.models import Parcel, Shipment
from shipping.subscribers import pack, ship


def _pack(destination: str) -> None:
    data = {"quantity": 1, "product": "Globe", "destination": destination}
    pack(DomainEvent("order.placed", data, domain_object_id="S-0001"))


def _paid() -> DomainEvent:
    return make_event("payment.charged", domain_object_id="S-0001")


class Shipping(CaptureEventsMixin, TestCase):
    """The handlers shipping-pack and shipping-ship."""

    def test_sends_what_is_packed_and_paid_and_tells_of_it(self) -> None:
        _pack("Evora")
        ship(_paid())
        self.assertEqual(Shipment.objects.get().carrier, "Alentejo Mail")
        self.captured_events.assert_published("shipment.sent", including={"carrier": "Alentejo Mail"})

    def test_waits_for_a_parcel_that_is_not_packed_yet(self) -> None:
        with self.assertRaises(Retry):
            ship(_paid())
        _pack("Cork")
        ship(_paid())
        self.assertEqual(Shipment.objects.get().parcel, Parcel.objects.get())

    def test_rejects_what_nobody_can_carry(self) -> None:
        _pack("The Moon")
        with self.assertRaisesMessage(Reject, "no carrier goes to The Moon"):
            ship(_paid())
        self.assertFalse(Shipment.objects.exists())
        self.captured_events.assert_not_published()

    def test_sends_once_when_the_event_comes_twice(self) -> None:
        _pack("Bergen")
        event = _paid()
        run_handlers(event, event, handlers=["shipping-ship"])
        self.assertEqual(Shipment.objects.count(), 1)
