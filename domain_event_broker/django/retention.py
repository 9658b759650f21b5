"""Forgetting: what was sent or handled long ago goes, a little at a time.

Waiting, scheduled and parked events are no matter of age, and never deleted here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from django.db import Error, connections, router
from django.db.models import Manager

from domain_event_broker.django.database import to_field, unix_time
from domain_event_broker.django.models import ArchivedEvent, InboxEntry

logger = logging.getLogger("domain_event_broker.relay")

#: Seconds between two times that a relay purges, and the longest it may take from its work.
#: If that was not enough it goes on the next time that it renews its lease.
PURGE_SECONDS = 60.0
PURGE_SLICE_SECONDS = 0.1

#: Days after which everything is old: a hundred years. More would be a date before all dates.
MOST_DAYS = 36_500.0

#: Rows that one statement deletes: few enough that nobody waits for its locks.
BATCH = 1000


@dataclass(frozen=True, slots=True)
class Purged:
    """Rows that went, in one batch: of sent events, or of the memory of handlers."""

    table: str
    rows: int


def purge(
    alias: str, archive_days: float | None, inbox_days: float | None, batch: int = BATCH
) -> Iterator[Purged]:
    """Delete old rows in batches, each a transaction of its own, and tell after each.

    :param alias: the database; tables that routers keep out of it are left out.
    :param archive_days: age of sent events to delete; ``None``: leave them.
    :param inbox_days: age of handled events to forget; ``None``: leave them. An event that is
        delivered again after it was forgotten is handled again.
    :param batch: most rows of one statement.
    """
    for table, old in _old_rows(alias, archive_days, inbox_days):
        while rows := _delete(old, batch):
            yield Purged(table, rows)


def count_old(alias: str, archive_days: float | None, inbox_days: float | None) -> list[Purged]:
    """Return what :func:`purge` would delete now, changing nothing."""
    return [Purged(table, old.count()) for table, old in _old_rows(alias, archive_days, inbox_days)]


def _old_rows(alias: str, archive_days: float | None, inbox_days: float | None) -> list[tuple[str, Any]]:
    tables: list[tuple[str, Manager[Any], str, float | None]] = [
        ("archive", ArchivedEvent._default_manager, "published_at", archive_days),
        ("inbox", InboxEntry._default_manager, "handled_at", inbox_days),
    ]
    return [
        (name, manager.using(alias).filter(**{f"{column}__lt": _ago(alias, days)}).order_by(column))
        for name, manager, column, days in tables
        if days is not None and router.allow_migrate_model(alias, manager.model)
    ]


def _ago(alias: str, days: float) -> datetime:
    """Go by the clock of the database: one host with a wrong date must not make all forget."""
    now = datetime.fromtimestamp(unix_time(connections[alias]), timezone.utc)
    return to_field(now - timedelta(days=min(days, MOST_DAYS)))


def _delete(old: Any, batch: int) -> int:
    # In two statements: MySQL can't limit a subquery of DELETE.
    ids = list(old.values_list("pk", flat=True)[:batch])
    deleted: int = (
        old.model._default_manager.using(old.db).filter(pk__in=ids)._raw_delete(old.db) if ids else 0
    )
    return deleted


class Housekeeping:
    """What a relay forgets beside its work, so that nobody needs a cron job for it.

    :param due_at: reading of ``time.monotonic()`` from which on it purges again.
    """

    def __init__(self, alias: str, archive_days: float, inbox_days: float) -> None:
        self.due_at = 0.0
        self._alias = alias
        self._days = (archive_days, inbox_days)

    def run(self) -> None:
        """Purge for a moment if it is time to. Never raises: sending events is more important."""
        if time.monotonic() < self.due_at:
            return
        try:
            finished = self._purge_until(time.monotonic() + PURGE_SLICE_SECONDS)
        except Error as error:
            logger.warning("could not purge old rows, will try again: %s", " ".join(str(error).split()))
            finished = True
        except Exception:
            logger.exception("could not purge old rows, will try again")
            finished = True
        if finished:
            self.due_at = time.monotonic() + PURGE_SECONDS

    def _purge_until(self, end: float) -> bool:
        return all(time.monotonic() < end for _ in purge(self._alias, *self._days))
