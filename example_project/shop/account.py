"""The account: what became of every event, for every handler that is bound to it.

``published = handled + waiting + parked + dead-lettered``

It is drawn up from the database and the broker as they are now. What was published is held
against the business rows (an order without its ``order.placed`` would show), what was handled
against what handlers wrote (an effect that happened twice would show).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from django.apps import apps

from domain_event_broker import config
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, InboxEntry, OutboxEvent
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import QueueStats
from domain_event_broker.replay import LetterFilter, browse, event_id_of
from domain_event_broker.routing import matches
from domain_event_broker.transports import open_transport

#: For each routing key: the rows that are written together with such an event, a filter on
#: them, and where they keep the order's number.
BUSINESS_ROWS: dict[str, tuple[str, dict[str, str], str]] = {
    "order.placed": ("orders.Order", {}, "number"),
    "order.note_added": ("orders.Note", {}, "order.number"),
    "payment.charged": ("payments.Payment", {"status": "charged"}, "order_number"),
    "payment.failed": ("payments.Payment", {"status": "declined"}, "order_number"),
    "shipment.sent": ("shipping.Shipment", {}, "order_number"),
}

#: For each handler: the rows it writes, one for each event.
EFFECTS = {
    "orders-timeline": "orders.TimelineEntry",
    "payments-charge": "payments.Payment",
    "shipping-pack": "shipping.Parcel",
    "shipping-ship": "shipping.Shipment",
}

#: Seconds between two looks of :func:`settled_account`.
LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Published:
    """The events this database published, by event id."""

    routing_keys: dict[str, str]
    orders: dict[str, str]
    waiting: frozenset[str]
    parked: frozenset[str]


@dataclass(frozen=True, slots=True)
class HandlerAccount:
    """The events of one handler.

    :param lost: in no place at all. There must be none.
    :param twice: effects that happened more often than once. There must be none.
    :param reasons: why events are dead letters, and how many each.
    """

    handler: str
    published: int
    handled: int
    waiting: int
    parked: int
    dead: int
    lost: int
    twice: int
    reasons: tuple[tuple[str, int], ...] = ()

    @property
    def balances(self) -> bool:
        """Whether each event is where it should be, once."""
        there = self.handled + self.waiting + self.parked + self.dead
        return self.published == there and not self.lost and not self.twice


@dataclass(frozen=True, slots=True)
class Account:
    """The accounts of all handlers, and what business rows say against the events."""

    events: int
    handlers: tuple[HandlerAccount, ...]
    problems: tuple[str, ...]

    @property
    def balances(self) -> bool:
        """Whether nothing is lost, and nothing happened twice."""
        return not self.problems and all(each.balances for each in self.handlers)

    @property
    def waiting(self) -> int:
        """Events that still have to reach a handler."""
        return sum(each.waiting for each in self.handlers)

    def as_json(self) -> dict[str, Any]:
        """Return what ``json.dumps`` takes."""
        return {**asdict(self), "balances": self.balances, "waiting": self.waiting}


def settled_account(patience: float) -> Account:
    """Return the account when nothing waits any more, or what it is after ``patience`` seconds.

    While events move, one may be seen in two places or in none: the account is drawn up from
    several looks, and only holds when nothing moves.
    """
    deadline = time.monotonic() + patience
    while True:
        account = draw_up()
        if (account.balances and not account.waiting) or time.monotonic() >= deadline:
            return account
        time.sleep(LOOK_SECONDS)


def draw_up() -> Account:
    """Return the account as it is now."""
    handlers = discover().all()
    dead, stats = _ask_broker(handlers)
    published = _published()
    accounts = [
        _handler_account(handler, published, dead[handler.name], stats[handler.name]) for handler in handlers
    ]
    return Account(len(published.routing_keys), tuple(accounts), tuple(_problems(published, accounts)))


def _published() -> Published:
    # An event moves from the outbox to the archive, so that is the order to look in: one that
    # moves meanwhile is seen twice, which the dictionary forgives, and not missed.
    columns = ("event_id", "routing_key", "ordering_key")
    waiting = list(OutboxEvent.objects.values_list(*columns))
    held = list(HeldEvent.objects.exclude(state=HeldEvent.State.PARKED).values_list(*columns))
    parked = list(HeldEvent.objects.filter(state=HeldEvent.State.PARKED).values_list(*columns))
    sent = list(ArchivedEvent.objects.values_list(*columns))
    rows = [*waiting, *held, *parked, *sent]
    return Published(
        routing_keys={event_id: routing_key for event_id, routing_key, _ in rows},
        orders={event_id: order or "" for event_id, _, order in rows},
        waiting=frozenset(event_id for event_id, _, _ in [*waiting, *held]),
        parked=frozenset(event_id for event_id, _, _ in parked),
    )


def _ask_broker(handlers: Sequence[Handler]) -> tuple[dict[str, dict[str, str]], dict[str, QueueStats]]:
    """Return the dead letters by event id, each with its reason, and the depths of the queues."""
    settings = config.current()
    assert settings is not None, "the shop cannot do without a broker"  # noqa: S101
    transport = open_transport(settings)
    try:
        dead = {
            handler.name: {
                event_id_of(letter): letter.failure.message if letter.failure else "no reason is known"
                for letter in browse(transport.dead_letters(handler.name), LetterFilter())
            }
            for handler in handlers
        }
        return dead, transport.stats([handler.name for handler in handlers])
    finally:
        transport.close()


def _handler_account(
    handler: Handler, published: Published, dead: dict[str, str], stats: QueueStats
) -> HandlerAccount:
    mine = {
        event_id
        for event_id, key in published.routing_keys.items()
        if any(matches(binding, key) for binding in handler.binding_keys)
    }
    entries = InboxEntry.objects.filter(consumer=handler.name)
    handled = mine & set(entries.values_list("event_id", flat=True))
    left = mine - handled
    parked = left & published.parked
    in_outbox = (left & published.waiting) - parked
    buried = (left & dead.keys()) - parked - in_outbox
    # The rest must be in the handler's queue, which a broker only tells the length of.
    elsewhere = len(left - parked - in_outbox - buried)
    queued = min(elsewhere, stats.ready + (stats.in_flight or 0) + stats.delayed)
    return HandlerAccount(
        handler=handler.name,
        published=len(mine),
        handled=len(handled),
        waiting=len(in_outbox) + queued,
        parked=len(parked),
        dead=len(buried),
        lost=elsewhere - queued,
        twice=_effects_too_many(handler.name, handled),
        reasons=tuple(Counter(dead[event_id] for event_id in buried).most_common()),
    )


def _effects_too_many(handler: str, handled: Collection[str]) -> int:
    """Return by how many the effects of a handler differ from one for each event it handled."""
    if handler not in EFFECTS:
        return 0
    effects = Counter(apps.get_model(EFFECTS[handler]).objects.values_list("event_id", flat=True))
    return sum(abs(effects.get(event_id, 0) - 1) for event_id in handled)


def _problems(published: Published, accounts: Sequence[HandlerAccount]) -> list[str]:
    problems = []
    for key, (model, conditions, attribute) in BUSINESS_ROWS.items():
        rows = Counter(
            _attribute(row, attribute)
            for row in apps.get_model(model).objects.filter(**conditions).iterator()
        )
        events = Counter(
            published.orders[each] for each, its_key in published.routing_keys.items() if its_key == key
        )
        if rows != events:
            numbers = ", ".join(sorted((rows - events) | (events - rows))[:10])
            problems.append(
                f"{rows.total()} rows of {model} do not agree with {events.total()} events {key!r}: {numbers}"
            )
    problems += [f"{each.handler}: {each.lost} events are nowhere" for each in accounts if each.lost]
    problems += [
        f"{each.handler}: {each.twice} effects are missing or there twice" for each in accounts if each.twice
    ]
    return problems


def _attribute(row: Any, path: str) -> str:
    for name in path.split("."):
        row = getattr(row, name)
    return str(row)
