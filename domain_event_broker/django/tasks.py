"""Celery tasks for teams that run no relay process: Celery finds them by itself in Django projects.

Both may overlap with themselves, with each other and with ``manage.py run_relay``: leases share the
outbox among whoever sends, and a row is deleted once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, cast

from celery import shared_task

import domain_event_broker.celery  # noqa: F401 - tasks of this worker carry the story of their events
from domain_event_broker import config
from domain_event_broker.django import conf
from domain_event_broker.django.conf import known_alias, outbox_alias
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.django.retention import purge
from domain_event_broker.relay import Relay

#: Seconds after which a task ends though there is more to do; the next one goes on.
MAX_SECONDS = 30.0


def _task(name: str) -> Callable[[Callable[..., Any]], Any]:
    """Return the decorator of a task without a result, which Celery does not annotate."""
    return cast(Callable[[Callable[..., Any]], Any], shared_task(name=name, ignore_result=True))


@_task("domain_event_broker.relay_outbox")
def relay_outbox(database: str | None = None, max_seconds: float = MAX_SECONDS) -> dict[str, int]:
    """Send the events that wait in the outbox.

    :param database: alias of the database with the outbox; default: that of the settings.
    :param max_seconds: it ends soon after so many seconds, with the batch at hand.
    :return: events sent, unroutable, refused and parked.
    :raises BrokerUnavailable: the broker is away; nothing is lost.
    :raises OutboxUnavailable: the database is away.
    """
    settings = config.current()
    if settings is None:
        return {}
    outbox = replace(settings.outbox, database=database or settings.outbox.database)
    relay = Relay(DjangoRelayOutbox(outbox.database, outbox), replace(settings, outbox=outbox))
    end = threading.Timer(max_seconds, relay.stop)
    end.daemon = True
    end.start()
    try:
        return asdict(relay.drain())
    finally:
        end.cancel()


@_task("domain_event_broker.purge_outbox")
def purge_outbox(
    archive_days: float | None = None,
    inbox_days: float | None = None,
    database: str | None = None,
    max_seconds: float = MAX_SECONDS,
) -> dict[str, int]:
    """Delete sent events, and the memory of handled ones, that are older than so many days.

    :param archive_days: default: setting ``OUTBOX.ARCHIVE_DAYS``.
    :param inbox_days: default: setting ``SUBSCRIBER.INBOX_DAYS``.
    :param database: alias of the database with the outbox; default: that of the settings.
    :param max_seconds: it ends soon after so many seconds; the next one goes on.
    :return: rows deleted from each table.
    :raises django.db.Error: the database is away.
    """
    alias = known_alias(database or outbox_alias())
    archive = conf.outbox_settings().archive_days if archive_days is None else archive_days
    inbox = conf.subscriber_settings().inbox_days if inbox_days is None else inbox_days
    deleted: dict[str, Any] = {"archive": 0, "inbox": 0}
    end = time.monotonic() + max_seconds
    for each in purge(alias, archive, inbox):
        deleted[each.table] += each.rows
        if time.monotonic() >= end:
            break
    return deleted
