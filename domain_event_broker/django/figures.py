"""What metrics and health probes ask database and broker for."""

# ruff: noqa: S608 - statements are put together from names of ours and integers

from __future__ import annotations

from collections.abc import Mapping, Sequence

from django.db import Error, connections
from django.utils import timezone

from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.database import reads_only, unavailable
from domain_event_broker.django.models import HeldEvent, OutboxEvent
from domain_event_broker.django.rows import HELD, OUTBOX
from domain_event_broker.django.status import outbox_status
from domain_event_broker.monitoring.metrics import OutboxFigures
from domain_event_broker.ports import QueueStats
from domain_event_broker.transports import open_transport

#: So many of the oldest rows are looked at for one that waits for no parked one.
LOOK_AT = 10_000

_FIRST_FREE = (
    f"SELECT o.id FROM (SELECT id, ordering_key FROM {OUTBOX} ORDER BY id LIMIT {LOOK_AT}) o "
    f"WHERE NOT EXISTS (SELECT 1 FROM {HELD} h WHERE h.blocks_key AND h.ordering_key = o.ordering_key "
    f"AND h.state = '{HeldEvent.State.PARKED.value}') ORDER BY o.id LIMIT 1"
)


def lag_seconds(alias: str) -> float:
    """Return the age of the oldest waiting event that a relay could have sent; 0: there is none.

    Those that wait for a parked one are somebody's to decide over, and no sign that relays are late.

    :raises OutboxNotMigrated: the tables do not exist.
    :raises OutboxUnavailable: the database is away.
    """
    try:
        with connections[alias].cursor() as cursor:
            cursor.execute(_FIRST_FREE)
            first = cursor.fetchone()
        created_at = first and OutboxEvent.objects.using(alias).values_list("created_at").filter(id=first[0])
        found = created_at and created_at.first()
    except Error as error:
        raise unavailable(alias, error) from error
    # Found and gone: it was sent meanwhile.
    return max(0.0, (timezone.now() - found[0]).total_seconds()) if found else 0.0


def is_read_only(alias: str) -> bool:
    """Tell whether the database of an outbox is known to refuse new events, as a standby does.

    :raises OutboxUnavailable: the database is away.
    """
    try:
        return reads_only(connections[alias])
    except Error as error:
        raise unavailable(alias, error) from error


def outbox_figures(alias: str) -> OutboxFigures:
    """Return the figures of an outbox, asked over a connection of this thread that is closed then.

    :raises OutboxUnavailable: the database is away.
    """
    try:
        status = outbox_status(alias)
        lag = lag_seconds(alias)
    finally:
        connections[alias].close()
    held = {"scheduled": status.scheduled, "retrying": status.retrying, "parked": status.parked}
    return OutboxFigures(status.pending, status.oldest_seconds or 0.0, held, lag)


def queue_figures(settings: BrokerSettings, handlers: Sequence[str]) -> Mapping[str, QueueStats]:
    """Return the depths of the queues of handlers, asked over a connection of their own.

    :raises BrokerUnavailable: the broker is away.
    """
    transport = open_transport(settings)
    try:
        return transport.stats(handlers)
    finally:
        transport.close()
        # The queues may be tables of a database.
        connections.close_all()
