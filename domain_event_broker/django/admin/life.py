"""The life of one event, as far as the tables know it: from its publisher to the handlers it reached.

Every look goes by an index, or ends after the newest rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from datetime import timezone as timezones

from django.db import Error, router

from domain_event_broker import config
from domain_event_broker.django.admin import display
from domain_event_broker.django.admin.links import Links
from domain_event_broker.django.admin.paging import newest
from domain_event_broker.django.database import to_field
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, InboxEntry, OutboxEvent, StoredEvent
from domain_event_broker.django.outbox import outbox_alias
from domain_event_broker.django.status import leftovers
from domain_event_broker.errors import DomainEventBrokerError
from domain_event_broker.handlers import Handler
from domain_event_broker.routing import matches

#: Copies of one event, and handlers that have left the code, that are looked at.
_MOST = 50
#: Seconds by which the clocks of publisher and database may differ without a word.
_JITTER = 1.0


@dataclass(frozen=True, slots=True)
class Moment:
    """Something that happened to an event.

    :param tone: ``"done"``, ``"waits"`` or ``"bad"``, for its colour.
    :param detail: what others wrote about it, such as a reason; it may have many lines.
    """

    at: datetime
    text: str
    tone: str = "done"
    detail: str = ""
    url: str = ""


@dataclass(frozen=True, slots=True)
class Served:
    """What a handler made of the event.

    :param state: in words.
    :param url: where to look further.
    """

    handler: str
    state: str
    url: str = ""


@dataclass(frozen=True, slots=True)
class Life:
    """What is known: moments, oldest first, and the handlers that are concerned."""

    moments: list[Moment]
    handlers: list[Served]


def life_of(event: StoredEvent, links: Links) -> Life:
    """Return what is known of an event, in the homes that the user may see."""
    rows = copies_of(event, links)
    was_sent = any(isinstance(each, ArchivedEvent) for each in rows)
    handlers, former = _handlers(event) if was_sent else ([], [])
    handled = _handled_at(event, [*(each.name for each in handlers), *former])
    found = [*_beginning(event, rows), *(moment for row in rows for moment in _moments(row, links, event))]
    found += [Moment(at, f"Handled by {name}.") for name, at in handled.items()]
    served = [_served(each, event, handled.get(each.name), links) for each in handlers]
    return Life(sorted(found, key=lambda moment: moment.at), served)


def copies_of(event: StoredEvent, links: Links) -> list[StoredEvent]:
    """Return the rows that hold this event now: more than one if it was published again, or is just moved."""
    alias = outbox_alias()
    same = {"event_id": event.event_id}
    looks = (
        newest(OutboxEvent.objects.using(alias).filter(**same)),
        # Of these two only the story has an index.
        HeldEvent.objects.using(alias).filter(correlation_id=event.correlation_id, **same),
        ArchivedEvent.objects.using(alias).filter(**same),
    )
    found = {_key(event): event}
    for rows in looks:
        if links.may_view(rows.model):
            found.update((_key(row), row) for row in rows.defer("body", "headers")[:_MOST])
    return list(found.values())


def _key(row: StoredEvent) -> tuple[type[StoredEvent], int]:
    return type(row), row.pk


def _beginning(event: StoredEvent, rows: list[StoredEvent]) -> Iterator[Moment]:
    """Tell when the event was made, and when it came into the outbox, if that was much later."""
    stored = min(row.created_at for row in rows)
    # The clock of the publisher may be ahead; what is in the outbox was published before.
    made = min(_made_at(event) or stored, stored)
    yield Moment(made, "Published.")
    if (stored - made).total_seconds() > _JITTER:
        yield Moment(stored, "Put into the outbox, due to be sent.")


def _made_at(event: StoredEvent) -> datetime | None:
    """Return the time that the event itself carries; it may have been written by anybody."""
    try:
        moment = datetime.fromtimestamp(event.timestamp, timezones.utc)
    except (ValueError, OverflowError, OSError):
        return None
    return to_field(moment) if moment.year > 1970 else None


def _moments(row: StoredEvent, links: Links, event: StoredEvent) -> Iterator[Moment]:
    url = "" if _key(row) == _key(event) else links.event(row)
    if isinstance(row, HeldEvent):
        yield _held(row, url)
    elif isinstance(row, ArchivedEvent):
        took = display.seconds((row.published_at - row.created_at).total_seconds())
        text, tone = f"Sent: the broker had it after {took}.", "done"
        if row.unroutable:
            text, tone = "Sent, but no queue was bound for it: nobody subscribed to it at that time.", "bad"
        yield Moment(row.published_at, text, tone, url=url)
    elif isinstance(row, OutboxEvent):
        yield from _waiting(row, links, url)


def _held(row: HeldEvent, url: str) -> Moment:
    due = display.moment(row.due_at)
    refused = "Refused once" if row.attempts == 1 else f"Refused {row.attempts} times"
    text = {
        HeldEvent.State.SCHEDULED.value: f"Scheduled: it is sent from {due} on.",
        HeldEvent.State.RETRYING.value: f"{refused} by the broker; the next try is at {due}.",
        HeldEvent.State.PARKED.value: f"{refused} by the broker, and parked until somebody decides.",
    }.get(row.state, row.state)
    tone = "waits" if row.state == HeldEvent.State.SCHEDULED else "bad"
    return Moment(row.held_at, text, tone, display.bounded(display.printable(row.reason), 2_000), url)


def _waiting(row: OutboxEvent, links: Links, url: str) -> Iterator[Moment]:
    tries = f" The broker refused it {row.attempts} times before." if row.attempts else ""
    now = to_field(datetime.now(timezones.utc))
    yield Moment(now, f"Waits to be sent, for {display.age(row.created_at)} now.{tries}", "waits", url=url)
    blocking = HeldEvent.objects.using(outbox_alias()).filter(blocks_key=True, ordering_key=row.ordering_key)
    first = blocking.first() if row.ordering_key is not None else None
    if first is not None:
        named = f": {first.routing_key}" if links.may_view(HeldEvent) else ""
        text = f"It waits for an earlier event of {row.ordering_key!r}, which is held{named}."
        yield Moment(now, text, "bad", url=links.event(first))


def _handlers(event: StoredEvent) -> tuple[list[Handler], list[str]]:
    """Return the handlers that subscribe to the event, and the names of those that have left the code."""
    try:
        handlers = discover().all()
        settings = config.current()
    except Exception:  # the overview tells what is wrong with a module of the project
        return [], []
    former = leftovers(settings, handlers).handlers if settings else {}
    concerned = [
        each for each in handlers if any(matches(key, event.routing_key) for key in each.binding_keys)
    ]
    return concerned, list(former)[:_MOST]


def _handled_at(event: StoredEvent, handlers: list[str]) -> dict[str, datetime]:
    """Return when handlers took effect for the event, as the inbox remembers it."""
    if not handlers:
        return {}
    entries = InboxEntry.objects.using(router.db_for_read(InboxEntry))
    try:
        found = entries.filter(consumer__in=handlers, event_id=event.event_id)
        return dict(found.values_list("consumer", "handled_at"))
    except (Error, DomainEventBrokerError):
        return {}  # a database of its own that is away hides no event


def _served(handler: Handler, event: StoredEvent, at: datetime | None, links: Links) -> Served:
    letters = links.letters(handler.name, text=event.event_id)
    if at is not None:
        return Served(handler.name, f"handled {display.age(at)} ago")
    if not handler.idempotent:
        return Served(handler.name, "unknown: it keeps no memory of what it handled", letters)
    return Served(handler.name, "not yet, or too long ago to be remembered", letters)
