"""What the tests of the outbox publish, send and read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from domain_event_broker import DomainEvent, publish_domain_event, publish_domain_events
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.ports import Held, Lease, OutboxRow, Sent


def publish(alias: str, number: int, key: str | None = None) -> DomainEvent:
    """Publish the event with this number."""
    return publish_domain_event("test.done", {"number": number}, domain_object_id=key, using=alias)


def publish_all(alias: str, numbers: Iterable[int], key: str | None = None) -> list[DomainEvent]:
    """Publish the events with these numbers at once."""
    events = [DomainEvent("test.done", {"number": n}, domain_object_id=key) for n in numbers]
    return publish_domain_events(events, using=alias)


def number(row: OutboxRow) -> int:
    """Return the number of the event in a row."""
    result: int = DomainEvent.from_json(row.message.body).data["number"]
    return result


def stored(alias: str) -> list[int]:
    """Return the numbers of the events that wait in the hot table, in order."""
    return [_number(row) for row in OutboxEvent.objects.using(alias).order_by("id")]


def archived(alias: str) -> list[int]:
    """Return the numbers of the events in the archive, in the order in which they came there."""
    return [_number(row) for row in ArchivedEvent.objects.using(alias).order_by("id")]


def held(alias: str) -> dict[int, str]:
    """Return the states of the held events by their numbers."""
    return {_number(row): row.state for row in HeldEvent.objects.using(alias)}


def send_all(relay: DjangoRelayOutbox, limit: int = 500) -> list[int]:
    """Send what can be sent now, without a broker; return the numbers in the order of sending."""
    sent: list[int] = []
    lease = relay.renew()
    while rows := relay.fetch(lease, limit):
        relay.settle(lease, [Sent(row) for row in rows], [])
        sent += map(number, rows)
    return sent


def refuse(
    relay: DjangoRelayOutbox,
    lease: Lease,
    rows: Sequence[OutboxRow],
    retry_in: float | None,
    block_key: bool = True,
) -> None:
    """Settle rows as a relay does whose broker refused them."""
    relay.settle(lease, [], [Held(row, "no such exchange", retry_in, block_key) for row in rows])


def _number(row: OutboxEvent | ArchivedEvent | HeldEvent) -> int:
    result: int = DomainEvent.from_json(row.body).data["number"]
    return result
