"""Tests of payments: one charge for each order, whatever the provider does."""

from __future__ import annotations

from django.test import TestCase, override_settings
from django.urls import reverse

from domain_event_broker import DomainEvent, publish_domain_event
from domain_event_broker.testing import CaptureEventsMixin, make_event, run_handlers
from payments import provider
from payments.models import Payment, ProviderSwitch
from payments.subscribers import charge


def _placed(number: str) -> DomainEvent:
    return make_event("order.placed", {"total_cents": 2900}, domain_object_id=number)


def _number(troubles: int, declined: bool = False) -> str:
    """Return an order whose charge goes like this."""
    numbers = (f"S-{pk:04d}" for pk in range(1, 2000))
    return next(
        number
        for number in numbers
        if provider.troubles(number) == troubles and (provider.refuses(number) is declined)
    )


@override_settings(PAYMENT_PROVIDER_SEED=1)
class Charging(CaptureEventsMixin, TestCase):
    """The handler payments-charge."""

    def test_stores_the_payment_and_tells_of_it(self) -> None:
        number = _number(troubles=0)
        charge(_placed(number))
        self.assertEqual(Payment.objects.get().status, "charged")
        self.captured_events.assert_published("payment.charged", domain_object_id=number)

    def test_tells_of_a_card_that_is_declined_and_does_not_try_again(self) -> None:
        charge(_placed(_number(troubles=0, declined=True)))
        self.assertEqual(Payment.objects.get().status, "declined")
        self.captured_events.assert_published("payment.failed", including={"reason": "the card has expired"})

    def test_tries_again_as_long_as_the_provider_has_troubles(self) -> None:
        report = run_handlers(_placed(_number(troubles=2)), handlers=["payments-charge"])
        report.assert_retried("payments-charge", times=2)
        self.assertEqual(Payment.objects.get().attempts, 3)
        self.captured_events.assert_published("payment.charged", including={"attempt": 3})

    def test_leaves_nothing_behind_while_the_provider_is_broken_and_goes_on_when_it_is_repaired(self) -> None:
        ProviderSwitch.turn(broken=True)
        publish_domain_event("order.placed", {"total_cents": 2900}, _number(troubles=0))
        report = self.captured_events.run_handlers(["payments-charge"], allow_dead_letters=True)
        report.assert_dead_lettered("payments-charge", provider.ProviderUnavailable)
        self.captured_events.assert_not_published("payment.*")
        self.assertFalse(Payment.objects.exists())
        ProviderSwitch.turn(broken=False)
        self.captured_events.replay_dead_letters("payments-charge").assert_handled("payments-charge")
        self.captured_events.assert_published("payment.charged")

    def test_happens_once_when_the_event_comes_twice(self) -> None:
        event = _placed(_number(troubles=0))
        run_handlers(event, event, handlers=["payments-charge"])
        self.assertEqual(Payment.objects.count(), 1)
        self.captured_events.assert_published("payment.charged", times=1)

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
