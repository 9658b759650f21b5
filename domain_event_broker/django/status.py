"""The figures that ``broker_status`` and the admin show. Nothing here counts a big table to its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from django.db import Error
from django.db.models import Count
from django.utils import timezone

from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.database import unavailable
from domain_event_broker.django.known_queues import KnownQueues, Leftovers
from domain_event_broker.django.models import HeldEvent, OutboxEvent, RelayHeartbeat, RelayLease
from domain_event_broker.errors import DomainEventBrokerError
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import QueueStats, Transport
from domain_event_broker.subscriber import subscription_of
from domain_event_broker.transports import open_transport

#: Waiting rows are counted no further than this.
COUNT_LIMIT = 100_000
#: A relay that has not been seen for so many seconds is called silent.
SILENT_SECONDS = 30.0


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


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """The outbox of one database.

    :param pending: rows that wait to be sent; counted up to ``COUNT_LIMIT``.
    :param oldest_seconds: age of the oldest of them.
    """

    database: str
    pending: int
    oldest_seconds: float | None
    scheduled: int
    retrying: int
    parked: int
    relays: tuple[RelayStatus, ...]


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
    states = HeldEvent.objects.using(alias).values_list("state").annotate(n=Count("id")).order_by("state")
    held = dict(states)
    return OutboxStatus(
        database=alias,
        pending=waiting[:COUNT_LIMIT].count(),
        oldest_seconds=None if oldest is None else max(0.0, (timezone.now() - oldest).total_seconds()),
        scheduled=held.get(HeldEvent.State.SCHEDULED, 0),
        retrying=held.get(HeldEvent.State.RETRYING, 0),
        parked=held.get(HeldEvent.State.PARKED, 0),
        relays=tuple(_relays(alias)),
    )


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
