"""The figures that ``broker_status`` and the admin show, and what is wrong with them, in words.

Nothing here counts a big table to its end.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from django.db import Error
from django.db.models import Count
from django.utils import timezone

from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.database import unavailable
from domain_event_broker.django.known_queues import KnownQueues, Leftovers
from domain_event_broker.django.models import (
    ArchivedEvent,
    HeldEvent,
    OutboxEvent,
    RelayHeartbeat,
    RelayLease,
)
from domain_event_broker.errors import DomainEventBrokerError
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import QueueStats, Transport
from domain_event_broker.subscriber import subscription_of
from domain_event_broker.transports import open_transport

#: Waiting rows are counted no further than this.
COUNT_LIMIT = 100_000
#: A relay that has not been seen for so many seconds is called silent.
SILENT_SECONDS = 30.0
#: An event that waits for so many seconds is late, unless the caller says otherwise.
LAG_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class RelayStatus:
    """One relay: where it runs, its buckets, and how long ago it was seen, in seconds."""

    name: str
    buckets: int
    seen_seconds_ago: float

    @property
    def silent(self) -> bool:
        """Whether it has not been seen for too long."""
        return self.seen_seconds_ago > SILENT_SECONDS

    @property
    def seen_in_words(self) -> str:
        """How long ago it was seen, as a person says it."""
        return in_words(self.seen_seconds_ago)


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """The outbox of one database.

    Rows are counted up to ``COUNT_LIMIT``.

    :param pending: rows that wait to be sent.
    :param oldest_seconds: age of the oldest of them.
    :param sent_seconds_ago: age of the newest event in the archive; ``None``: it is empty.
    """

    database: str
    pending: int
    oldest_seconds: float | None
    scheduled: int
    retrying: int
    parked: int
    relays: tuple[RelayStatus, ...]
    sent_seconds_ago: float | None = None


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """The queues of the handlers; with the reason in words where the broker cannot be asked.

    :param abandoned: queues whose handlers have left the code, and that hold events or go on
        getting some.
    :param surplus_keys: binding keys that handlers no longer ask for, and are still bound with.
    """

    url: str
    queues: dict[str, QueueStats] = field(default_factory=dict)
    problem: str = ""
    abandoned: dict[str, QueueStats] = field(default_factory=dict)
    surplus_keys: dict[str, tuple[str, ...]] = field(default_factory=dict)


def outbox_status(alias: str) -> OutboxStatus:
    """Return the state of the outbox in the database ``alias``.

    :raises OutboxNotMigrated: its tables do not exist.
    :raises OutboxUnavailable: the database is away.
    """
    try:
        return _outbox_status(alias)
    except Error as error:
        raise unavailable(alias, error) from error


def _outbox_status(alias: str) -> OutboxStatus:
    waiting = OutboxEvent.objects.using(alias).order_by("id")
    oldest = waiting.values_list("created_at", flat=True).first()
    sent = ArchivedEvent.objects.using(alias).order_by("-published_at")
    held = HeldEvent.objects.using(alias).order_by("id")
    counts = {state: held.filter(state=state)[:COUNT_LIMIT].count() for state in HeldEvent.State}
    return OutboxStatus(
        database=alias,
        pending=waiting[:COUNT_LIMIT].count(),
        oldest_seconds=_ago(oldest),
        scheduled=counts[HeldEvent.State.SCHEDULED],
        retrying=counts[HeldEvent.State.RETRYING],
        parked=counts[HeldEvent.State.PARKED],
        relays=tuple(_relays(alias)),
        sent_seconds_ago=_ago(sent.values_list("published_at", flat=True).first()),
    )


def _ago(moment: datetime | None) -> float | None:
    return None if moment is None else max(0.0, (timezone.now() - moment).total_seconds())


def broker_status(settings: BrokerSettings, handlers: Sequence[Handler]) -> BrokerStatus:
    """Return the depths of the queues of ``handlers``, which are all that there are.

    Never raises for a broker that is away.
    """
    try:
        transport = open_transport(settings)
    except DomainEventBrokerError as error:
        return BrokerStatus(settings.masked_url, problem=str(error))
    try:
        return _broker_status(transport, settings, handlers)
    except DomainEventBrokerError as error:
        return BrokerStatus(settings.masked_url, problem=str(error))
    finally:
        transport.close()


def _broker_status(
    transport: Transport, settings: BrokerSettings, handlers: Sequence[Handler]
) -> BrokerStatus:
    left = leftovers(settings, handlers)
    names = [handler.name for handler in handlers]
    stats = transport.stats([*names, *left.handlers])
    return BrokerStatus(
        settings.masked_url,
        {name: stats[name] for name in names},
        abandoned={
            name: stats[name]
            for name, keys in left.handlers.items()
            if stats[name].exists and (keys or _holds_events(stats[name]))
        },
        surplus_keys={name: keys for name, keys in left.keys.items() if stats[name].exists},
    )


def leftovers(settings: BrokerSettings, handlers: Sequence[Handler]) -> Leftovers:
    """Return what is bound and none of ``handlers`` asks for; nothing where no database knows."""
    try:
        subscriptions = [subscription_of(handler, settings.subscriber) for handler in handlers]
        return KnownQueues(settings).leftovers(subscriptions)
    except Error:
        return Leftovers({}, {})


def _holds_events(stats: QueueStats) -> bool:
    return any((stats.ready, stats.in_flight, stats.delayed, stats.dead))


def as_json(outbox: OutboxStatus, broker: BrokerStatus) -> dict[str, Any]:
    """Return both as what ``json.dumps`` takes."""
    return {"outbox": asdict(outbox), "broker": asdict(broker)}


def _relays(alias: str) -> list[RelayStatus]:
    owners = RelayLease.objects.using(alias).filter(lease_until__gt=time.time()).values_list("owner")
    buckets = dict(owners.annotate(n=Count("bucket")).order_by())
    heartbeats = RelayHeartbeat.objects.using(alias).order_by("host", "pid")
    now = time.time()
    return [
        RelayStatus(str(beat), buckets.get(beat.relay, 0), max(0.0, now - beat.seen_at))
        for beat in heartbeats
    ]


# --- what is wrong ----------------------------------------------------------------------


class Level(str, enum.Enum):
    """How bad it is. The order is that of :func:`alerts`: the worst first."""

    #: Events do not reach their handlers, and will not until something is done.
    CRITICAL = "critical"
    #: Events go on, but some are late or need somebody's decision.
    WARNING = "warning"
    #: Good to know; nothing is late because of it.
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Alert:
    """One thing that is wrong, in words.

    :param text: what it is, with the figures.
    :param remedy: what to do about it.
    :param kind: a name for programs, which stays: ``"broker-away"``, ``"no-relay"``,
        ``"relay-silent"``, ``"lag"``, ``"parked"``, ``"retrying"``, ``"no-queue"``,
        ``"no-consumer"``, ``"dead-letters"``, ``"abandoned-queue"``, ``"surplus-keys"``.
    :param subject: the handler or the relay that it is about.
    :param count: events concerned; of two alerts of one level, the one with more comes first.
    """

    level: Level
    text: str
    remedy: str
    kind: str = ""
    subject: str = ""
    count: int = 0


def alerts(outbox: OutboxStatus | None, broker: BrokerStatus | None, lag: float = LAG_SECONDS) -> list[Alert]:
    """Return what is wrong, worst first; an empty list: all is well.

    :param outbox: ``None``: not known, nothing is said about it. So is ``broker``.
    :param lag: age in seconds from which on a waiting event is late.
    """
    found: list[Alert] = []
    if outbox is not None:
        found += [*_relay_alerts(outbox, lag), *_outbox_alerts(outbox, lag)]
    if broker is not None:
        found += _broker_alerts(broker, outbox)
    levels = list(Level)
    return sorted(found, key=lambda each: (levels.index(each.level), -each.count))


def _relay_alerts(outbox: OutboxStatus, lag: float) -> Iterator[Alert]:
    silent = [relay for relay in outbox.relays if relay.silent]
    if len(silent) == len(outbox.relays):
        yield _no_relay(outbox, lag)
    else:
        for relay in silent:
            text = f"Relay {relay.name} has been silent for {in_words(relay.seen_seconds_ago)}."
            remedy = (
                "The others have its buckets by now. See in its log whether it died, hangs, or cannot "
                "reach the database; if it was stopped for good, this goes by itself within minutes."
            )
            yield Alert(Level.WARNING, text, remedy, "relay-silent", relay.name)


def _no_relay(outbox: OutboxStatus, lag: float) -> Alert:
    """Tell that nobody sends. With nothing late it may be meant so: tasks start a relay when needed."""
    last = min(outbox.relays, key=lambda relay: relay.seen_seconds_ago, default=None)
    seen = f" (the last one, {last.name}, was seen {in_words(last.seen_seconds_ago)} ago)" if last else ""
    waiting = outbox.pending
    level = Level.NOTE
    if waiting:
        is_late = last is not None or (outbox.oldest_seconds or 0.0) > lag
        level = Level.CRITICAL if is_late else Level.WARNING
    what = f"{_events(waiting, 'waits', 'wait')} to be sent" if waiting else "nothing waits to be sent"
    remedy = "Start one with 'manage.py run_relay'."
    return Alert(level, f"No relay is running{seen}: {what}.", remedy, "no-relay", count=waiting)


def _outbox_alerts(outbox: OutboxStatus, lag: float) -> Iterator[Alert]:
    oldest = outbox.oldest_seconds or 0.0
    if oldest > lag:
        waiting = _events(outbox.pending, "waits", "wait")
        text = f"{waiting} in the outbox, the oldest for {in_words(oldest)}."
        remedy = (
            "See in the log of the relays whether the broker takes events; if it does, start another relay. "
            "Events whose key is blocked by a parked one wait for the decision over that."
        )
        yield Alert(Level.WARNING, text, remedy, "lag", count=outbox.pending)
    if outbox.parked:
        text = f"{_events(outbox.parked, 'is', 'are')} parked, refused by the broker for good."
        remedy = "Read the reason in the admin under held events and mend it; there, retry or discard them."
        yield Alert(Level.WARNING, text, remedy, "parked", count=outbox.parked)
    if outbox.retrying:
        text = f"{_events(outbox.retrying, 'was', 'were')} refused by the broker, and will be tried again."
        remedy = "The reason is in the admin under held events."
        yield Alert(Level.NOTE, text, remedy, "retrying", count=outbox.retrying)


def _broker_alerts(broker: BrokerStatus, outbox: OutboxStatus | None) -> Iterator[Alert]:
    if broker.problem:
        since = outbox.sent_seconds_ago if outbox else None
        last = "" if since is None else f" The last event was sent {in_words(since)} ago."
        text = f"The broker cannot be asked: {broker.problem.rstrip('.')}.{last}"
        remedy = (
            "Events wait in the outbox meanwhile and none is lost. See that the broker runs and that the "
            "address is right; relays and subscribers come back by themselves."
        )
        yield Alert(Level.CRITICAL, text, remedy, "broker-away")
    for name, stats in broker.queues.items():
        yield from _queue_alerts(name, stats)
    yield from _leftover_alerts(broker)


def _queue_alerts(name: str, stats: QueueStats) -> Iterator[Alert]:
    if not stats.exists:
        text = f"{name} has no queue yet: events published now will not reach it."
        remedy = "Run 'manage.py declare_queues', or start its subscriber with 'manage.py run_subscriber'."
        yield Alert(Level.WARNING, text, remedy, "no-queue", name)
        return
    if stats.consumers == 0:
        waiting = _events(stats.ready, "waits", "wait") if stats.ready else "nothing waits yet"
        text = f"Nobody consumes {name}: {waiting}."
        level = Level.CRITICAL if stats.ready else Level.WARNING
        remedy = "Start 'manage.py run_subscriber', or see in its log why it does not serve this handler."
        yield Alert(level, text, remedy, "no-consumer", name, stats.ready)
    if stats.dead:
        text = f"{stats.dead:,} dead letter{'s' if stats.dead > 1 else ''} in {name}."
        remedy = (
            f"See why in the admin, or with 'manage.py replay_dlq {name} --dry-run'; mend it, replay them."
        )
        yield Alert(Level.WARNING, text, remedy, "dead-letters", name, stats.dead)


def _leftover_alerts(broker: BrokerStatus) -> Iterator[Alert]:
    for name, stats in broker.abandoned.items():
        left = stats.ready + (stats.in_flight or 0) + stats.delayed
        text = (
            f"{name} has left the code, and its queue holds {_events(left)} and {stats.dead:,} dead letters."
        )
        remedy = (
            "Let no more come in with 'manage.py declare_queues --prune'; bring the handler back to have "
            "them handled, or delete the queue in the broker."
        )
        yield Alert(Level.WARNING, text, remedy, "abandoned-queue", name, left + stats.dead)
    for name, keys in broker.surplus_keys.items():
        text = f"{name} still gets {', '.join(map(repr, keys))}, which it no longer asks for."
        remedy = "Take the bindings away with 'manage.py declare_queues --prune'."
        yield Alert(Level.NOTE, text, remedy, "surplus-keys", name)


def in_words(seconds: float) -> str:
    """Return a span of time as a person says it: ``"40 s"``, ``"5 minutes"``, ``"2 hours"``, ``"3 days"``."""
    for size, unit in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}s"
    return f"{seconds:.0f} s"


def _events(count: int, one: str = "", many: str = "") -> str:
    """Return ``count`` events as words, with the verb that follows for one or for many."""
    noun = "event" if count == 1 else "or more events" if count >= COUNT_LIMIT else "events"
    return f"{count:,} {noun} {one if count == 1 else many}".rstrip()
