"""A fake payment provider: it stands for a service elsewhere, and fails as those do.

Whether a charge fails depends on the order and on the seed in the settings alone, so that
each run of the shop shows the same troubles.
"""

from __future__ import annotations

import hashlib
import random

from django.conf import settings

from payments.models import ProviderSwitch


class ProviderUnavailable(Exception):
    """The provider does not answer just now; it may do so later."""


class CardDeclined(Exception):
    """The provider answered, and the answer is no. Asking again will not change it."""


def charge(order_number: str, amount_cents: int, idempotency_key: str, attempt: int) -> str:
    """Charge the customer, and return the provider's reference.

    :param idempotency_key: charging again under the same key is the same charge, with the
        same reference. A process may die after the provider was asked and before its answer
        is stored; the event then comes again, and only the provider can know that.
    :param attempt: how often this charge was asked for, from 1.
    :raises ProviderUnavailable: ask again later.
    :raises CardDeclined: do not ask again.
    """
    if ProviderSwitch.is_broken():
        raise ProviderUnavailable("the payment provider is down")
    if attempt <= troubles(order_number):
        raise ProviderUnavailable(f"the payment provider timed out at try {attempt}")
    if refuses(order_number):
        raise CardDeclined("the card has expired")
    return "ch_" + hashlib.sha256(f"{idempotency_key}:{amount_cents}".encode()).hexdigest()[:16]


def troubles(order_number: str) -> int:
    """Return how often charging this order fails before the provider has an answer: 0 to 2 times."""
    thrown = _dice(order_number, "line")
    return 2 if thrown < 0.08 else 1 if thrown < 0.25 else 0


def refuses(order_number: str) -> bool:
    """Tell whether the customer's card is declined, once the provider has an answer."""
    return _dice(order_number, "card") < 0.06


def _dice(order_number: str, what: str) -> float:
    return random.Random(f"{settings.PAYMENT_PROVIDER_SEED}:{what}:{order_number}").random()
