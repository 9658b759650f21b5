"""Tests of payments: one charge for each order, whatever the provider does."""

from __future__ import annotations

from django.test import TestCase, override_settings
from django.urls import reverse

from domain_event_broker import DomainEvent
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.inbox import DjangoInbox
from domain_event_broker.django.models import OutboxEvent
from payments import provider
from payments.models import Payment, ProviderSwitch
from payments.subscribers import charge


def _placed(number: str, retries: int = 0) -> DomainEvent:
    return DomainEvent("order.placed", {"total_cents": 2900}, domain_object_id=number, retries=retries)


def _number(troubles: int, declined: bool = False) -> str:
    """Return an order whose charge goes like this."""
    numbers = (f"S-{pk:04d}" for pk in range(1, 2000))
    return next(
        number
        for number in numbers
        if provider.troubles(number) == troubles and (provider.refuses(number) is declined)
    )


@override_settings(PAYMENT_PROVIDER_SEED=1)
class Charging(TestCase):
    """The handler payments-charge."""

    def test_stores_the_payment_and_tells_of_it(self) -> None:
        number = _number(troubles=0)
        charge(_placed(number))
        self.assertEqual(Payment.objects.get().status, "charged")
        event = OutboxEvent.objects.get()
        self.assertEqual((event.routing_key, event.ordering_key), ("payment.charged", number))

    def test_tells_of_a_card_that_is_declined_and_does_not_try_again(self) -> None:
        charge(_placed(_number(troubles=0, declined=True)))
        self.assertEqual(Payment.objects.get().status, "declined")
        self.assertEqual(OutboxEvent.objects.get().routing_key, "payment.failed")

    def test_fails_as_long_as_the_provider_has_troubles(self) -> None:
        number = _number(troubles=2)
        for retries in (0, 1):
            with self.assertRaises(provider.ProviderUnavailable):
                charge(_placed(number, retries))
        charge(_placed(number, retries=2))
        self.assertEqual(Payment.objects.get().attempts, 3)

    def test_leaves_nothing_behind_while_the_provider_is_broken(self) -> None:
        ProviderSwitch.turn(broken=True)
        with self.assertRaises(provider.ProviderUnavailable):
            charge(_placed(_number(troubles=0)))
        self.assertFalse(Payment.objects.exists() or OutboxEvent.objects.exists())

    def test_happens_once_when_the_event_comes_twice(self) -> None:
        (handler,) = discover().select(["payments-charge"])
        event, inbox = _placed(_number(troubles=0)), DjangoInbox()
        self.assertEqual([inbox.run(handler, event), inbox.run(handler, event)], [True, False])
        self.assertEqual((Payment.objects.count(), OutboxEvent.objects.count()), (1, 1))

    def test_asks_the_provider_under_the_same_key_when_a_crash_made_it_forget(self) -> None:
        number = _number(troubles=0)
        references = {provider.charge(number, 2900, "the event's id", attempt=1) for _ in range(2)}
        self.assertEqual(len(references), 1)


class TheSwitch(TestCase):
    """The button that breaks and repairs the provider."""

    def test_breaks_and_repairs_the_provider(self) -> None:
        for value, broken in (("1", True), ("0", False)):
            self.client.post(reverse("turn-provider"), {"broken": value})
            self.assertEqual(ProviderSwitch.is_broken(), broken)
            self.assertContains(self.client.get(reverse("home")), "Repair it" if broken else "Break it")
