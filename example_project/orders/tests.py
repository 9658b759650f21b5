"""Tests of orders: what visitors do, and how the timeline follows the other apps."""

from __future__ import annotations

from django.db import transaction
from django.test import TestCase
from django.urls import reverse

from domain_event_broker import DomainEvent, Reject
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.inbox import DjangoInbox
from domain_event_broker.django.models import OutboxEvent
from domain_event_broker.errors import InvalidEvent
from domain_event_broker.testing import CaptureEventsMixin
from orders.catalogue import PRODUCTS
from orders.models import Order
from orders.services import add_note, place_order
from orders.subscribers import keep_timeline


def _order() -> Order:
    return place_order(PRODUCTS["kite"], 2, "Bergen")


def _charged(order: Order) -> DomainEvent:
    return DomainEvent("payment.charged", {"attempt": 2, "reference": "ch_1"}, domain_object_id=order.number)


class PlacingAnOrder(CaptureEventsMixin, TestCase):
    """What is written when a visitor orders."""

    def test_writes_the_order_and_its_event_together(self) -> None:
        order = _order()
        self.captured_events.assert_published(
            "order.placed", including={"total_cents": 6900}, domain_object_id=order.number
        )

    def test_leaves_neither_when_the_transaction_fails(self) -> None:
        with self.assertRaises(ZeroDivisionError), transaction.atomic():
            _order()
            raise ZeroDivisionError
        self.assertFalse(Order.objects.exists())
        self.captured_events.assert_not_published()

    def test_leaves_neither_when_the_event_cannot_be_published(self) -> None:
        tight = {"URL": "database:", "MAX_PAYLOAD_BYTES": 64}
        with self.settings(DOMAIN_EVENT_BROKER=tight), self.assertRaises(InvalidEvent):
            _order()
        self.assertFalse(Order.objects.exists())
        self.captured_events.assert_not_published()

    def test_publishes_a_note_after_the_order_under_the_same_key(self) -> None:
        add_note(_order(), "hello")
        events = OutboxEvent.objects.order_by("id").values_list("routing_key", "ordering_key", "bucket")
        (first, key, bucket), (second, its_key, its_bucket) = events
        self.assertEqual((first, second), ("order.placed", "order.note_added"))
        self.assertEqual((key, bucket), (its_key, its_bucket))


class TheTimeline(TestCase):
    """What the handler orders-timeline makes of events."""

    def test_follows_a_payment(self) -> None:
        order = _order()
        keep_timeline(_charged(order))
        order.refresh_from_db()
        self.assertEqual(order.status, Order.Status.PAID)
        self.assertEqual(order.timeline.get().text, "The payment went through at try 2.")

    def test_enters_an_event_that_comes_twice_once(self) -> None:
        order = _order()
        event, inbox = _charged(order), DjangoInbox()
        (handler,) = discover().select(["orders-timeline"])
        self.assertEqual([inbox.run(handler, event), inbox.run(handler, event)], [True, False])
        self.assertEqual(order.timeline.count(), 1)

    def test_never_turns_an_order_back(self) -> None:
        order = _order()
        data = {"destination": "Bergen", "carrier": "Fjord Post"}
        keep_timeline(DomainEvent("shipment.sent", data, domain_object_id=order.number))
        keep_timeline(_charged(order))
        order.refresh_from_db()
        self.assertEqual(order.status, Order.Status.SHIPPED)

    def test_rejects_the_events_of_an_order_it_does_not_know(self) -> None:
        for number in ("S-9999", "another shop's", None):
            with self.subTest(number), self.assertRaises(Reject):
                keep_timeline(DomainEvent("payment.charged", {"attempt": 1}, domain_object_id=number))

    def test_enters_events_that_it_has_no_words_for(self) -> None:
        order = _order()
        keep_timeline(DomainEvent("order.gift_wrapped", {}, domain_object_id=order.number))
        self.assertEqual(order.timeline.get().text, "order.gift_wrapped")


class ThePages(TestCase):
    """What visitors see."""

    def test_take_an_order_and_lead_to_its_page(self) -> None:
        form = {"product": "globe", "quantity": "1", "destination": "Cork", "note": "Ring twice."}
        answer = self.client.post(reverse("home"), form, follow=True)
        self.assertContains(answer, "Globe")
        self.assertEqual(Order.objects.get().notes.get().text, "Ring twice.")

    def test_refuse_what_is_not_for_sale(self) -> None:
        answer = self.client.post(
            reverse("home"), {"product": "moon", "quantity": "0", "destination": "Cork"}
        )
        self.assertEqual(answer.status_code, 400)
        self.assertContains(answer, "errorlist", status_code=400)
        self.assertFalse(Order.objects.exists())

    def test_tell_the_timeline_as_json(self) -> None:
        order = _order()
        keep_timeline(_charged(order))
        state = self.client.get(reverse("timeline", args=[order.number])).json()
        self.assertEqual(state["status"], "paid")
        self.assertEqual([event["key"] for event in state["events"]], ["payment.charged"])

    def test_know_no_other_orders(self) -> None:
        self.assertEqual(self.client.get(reverse("order", args=["S-0007"])).status_code, 404)
