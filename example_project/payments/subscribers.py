"""Payments waits for orders, and charges them."""

from __future__ import annotations

from domain_event_broker import Backoff, DomainEvent, publish_domain_event, subscribe
from payments import provider
from payments.models import Payment


@subscribe(
    "order.placed",
    name="payments-charge",
    retry_on=provider.ProviderUnavailable,
    max_retries=3,
    backoff=Backoff.exponential(0.5, factor=2, jitter=0.1),
    concurrency=4,
)
def charge(event: DomainEvent) -> None:
    """Charge an order once, and tell how it went.

    The payment, the event that tells of it and the entry in the inbox are written in one
    transaction: when the same event comes again, nothing happens again. After three retries
    the event is a dead letter, and waits for the provider to be repaired and for somebody
    to call ``manage.py replay_dlq payments-charge``.
    """
    number, amount, attempt = str(event.domain_object_id), event.data["total_cents"], event.retries + 1
    payment = Payment(order_number=number, event_id=event.uuid_string, amount_cents=amount, attempts=attempt)
    try:
        payment.reference = provider.charge(number, amount, event.uuid_string, attempt)
    except provider.CardDeclined as declined:
        # No failure of ours: the customer has to know, and trying again would not help.
        payment.status = Payment.Status.DECLINED
        key, data = "payment.failed", {"reason": str(declined)}
    else:
        payment.status = Payment.Status.CHARGED
        key, data = "payment.charged", {"reference": payment.reference}
    payment.save()
    publish_domain_event(key, {**data, "amount_cents": amount, "attempt": attempt}, domain_object_id=number)
