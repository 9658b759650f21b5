"""Tests of the account: it balances when all is well, and shows what is not."""

from __future__ import annotations

from io import StringIO

from django.core.management import call_command
from django.test import TestCase, override_settings
from django.urls import reverse
from orders.catalogue import PRODUCTS
from orders.models import Order, TimelineEntry
from orders.services import place_order

from domain_event_broker import DomainEvent
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.inbox import DjangoInbox
from domain_event_broker.django.models import InboxEntry, OutboxEvent
from domain_event_broker.testing import CaptureEventsMixin
from shop.account import draw_up


class TheAccount(TestCase):
    """``manage.py account``."""

    def setUp(self) -> None:
        self.order = place_order(PRODUCTS["chess"], 1, "Dresden")
        call_command("declare_queues", stdout=StringIO())

    def test_balances_while_events_wait_in_the_outbox(self) -> None:
        account = draw_up()
        self.assertTrue(account.balances)
        self.assertEqual((account.events, account.waiting), (1, 3))

    def test_balances_when_they_are_handled(self) -> None:
        event = DomainEvent.from_json(OutboxEvent.objects.get().body)
        for handler in discover().select(["orders-timeline", "payments-charge", "shipping-pack"]):
            DjangoInbox().run(handler, event)
        account = draw_up()
        self.assertEqual(account.problems, ())
        self.assertEqual(sum(each.handled for each in account.handlers), 3)

    def test_finds_an_event_that_is_nowhere(self) -> None:
        OutboxEvent.objects.all().delete()
        account = draw_up()
        self.assertFalse(account.balances)
        self.assertIn(self.order.number, account.problems[0])

    def test_finds_an_event_without_its_order(self) -> None:
        Order.objects.all().delete()
        self.assertIn(self.order.number, draw_up().problems[0])

    def test_finds_an_effect_that_happened_twice_and_one_that_did_not(self) -> None:
        event = DomainEvent.from_json(OutboxEvent.objects.get().body)
        (handler,) = discover().select(["orders-timeline"])
        DjangoInbox().run(handler, event)
        entry = TimelineEntry.objects.get()
        entry.pk = None
        entry.save()
        self.assertIn("orders-timeline: 1 effects are missing or there twice", draw_up().problems)
        TimelineEntry.objects.all().delete()
        self.assertIn("orders-timeline: 1 effects are missing or there twice", draw_up().problems)

    def test_ends_the_command_with_its_exit_code(self) -> None:
        out = StringIO()
        call_command("account", "--wait", "0", stdout=out)
        self.assertIn("it balances", out.getvalue())
        InboxEntry.objects.create(
            consumer="shipping-pack",
            event_id=OutboxEvent.objects.get().event_id,
            handled_at=self.order.placed_at,
        )
        with self.assertRaises(SystemExit) as ended:
            call_command("account", "--wait", "0", stdout=out)
        self.assertEqual(ended.exception.code, 1)
        self.assertIn("does NOT balance", out.getvalue())


@override_settings(PAYMENT_PROVIDER_SEED=1)
class TheWholeWay(CaptureEventsMixin, TestCase):
    """From an order to its parcel, through all handlers, with the troubles that the dice bring."""

    def test_every_order_is_sent_or_declined_but_for_one_to_the_moon(self) -> None:
        orders = [place_order(PRODUCTS["chess"], 1, city) for city in ["Dresden", "Cork", "Evora"] * 5]
        to_the_moon = place_order(PRODUCTS["chess"], 1, "The Moon")
        report = self.captured_events.run_handlers(allow_dead_letters=True)
        report.assert_handled("orders-timeline", times=None)
        letters = {letter.queue for letter in report.dead_letters}
        self.assertEqual(letters, {"shipping-ship"})
        report.assert_dead_lettered("shipping-ship", "no carrier goes to The Moon")
        states = Order.objects.exclude(pk=to_the_moon.pk).values_list("status", flat=True)
        self.assertLessEqual(set(states), {"shipped", "declined"})
        self.assertEqual(len(states), len(orders))


class TheFeed(TestCase):
    """``/events.json``."""

    def test_counts_what_waits(self) -> None:
        place_order(PRODUCTS["chess"], 1, "Dresden", "hello")
        self.assertEqual(self.client.get(reverse("events")).json(), {"waiting": 2, "held": 0, "sent": []})

    def test_refuses_what_is_not_a_number(self) -> None:
        for after in ("x", "-1", "9" * 40):
            self.assertEqual(self.client.get(reverse("events"), {"after": after}).status_code, 400)
