"""What the actions of the admin do to the tables, while relays work on the same rows.

Rows are taken oldest first, in batches, each in a transaction of its own in which they are locked,
written to their new home and deleted from the old one: killed at any moment, an event is in one
place, and what was done before stays done. A row that a relay has in hand, or that went
meanwhile, is left out; the number returned is that of the rows which were moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from django.db import Error, connections, transaction
from django.db.models import QuerySet
from django.utils import timezone

from domain_event_broker.django import wakeups
from domain_event_broker.django.database import unavailable
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, OutboxEvent, StoredEvent
from domain_event_broker.errors import OutboxUnavailable

#: Rows in one transaction.
BATCH = 500
#: Rows that one click acts on: what a web request can do before somebody's timeout ends it.
ACTION_LIMIT = 10_000

Event = TypeVar("Event", bound=StoredEvent)
#: Told about the rows of a batch, inside its transaction.
Witness = Callable[[Sequence[Any]], None]

_COPIED = ("event_id", "bucket", "ordering_key", "routing_key", "body", "headers", "timestamp")


def retry(chosen: QuerySet[HeldEvent], witness: Witness) -> int:
    """Put held events back into the hot table, to be sent next; return how many.

    Refused ones get their old place, ahead of later events of their key, and all their tries
    anew; scheduled ones have no place yet and go to the end.
    """

    def release(rows: Sequence[HeldEvent]) -> None:
        now = timezone.now()
        _delete(rows)
        _insert(
            chosen.db,
            [
                # Only what was to be sent before now is late: the age of the oldest waiting event is the lag.
                _waiting(row, now if row.outbox_id is None else row.created_at, row.outbox_id)
                for row in rows
            ],
        )

    return _in_batches(chosen, release, witness)


def discard(chosen: QuerySet[HeldEvent], witness: Witness) -> int:
    """Delete held events for good; return how many. Later events of their keys go on."""
    return _in_batches(chosen, _delete, witness)


def publish_again(chosen: QuerySet[ArchivedEvent], witness: Witness) -> int:
    """Put copies of sent events, with their identities, into the hot table; return how many."""

    def copy(rows: Sequence[ArchivedEvent]) -> None:
        now = timezone.now()
        _insert(chosen.db, [_waiting(row, now) for row in rows])

    return _in_batches(chosen, copy, witness)


def _in_batches(chosen: QuerySet[Event], move: Callable[[Sequence[Event]], None], witness: Witness) -> int:
    """Call ``move`` with the rows of ``chosen``, up to ``ACTION_LIMIT``, in one transaction per batch."""
    newest = chosen.order_by("-pk").values_list("pk", flat=True).first()
    # Without this end, an event that the relay parks again at once would be met again and again.
    oldest_first = chosen.defer(None).order_by("pk").filter(pk__lte=newest or 0)
    can_skip = connections[chosen.db].features.has_select_for_update_skip_locked
    done, last = 0, 0
    while done < ACTION_LIMIT:
        with _writing(chosen):
            batch = oldest_first.filter(pk__gt=last)[: min(BATCH, ACTION_LIMIT - done)]
            rows = list(batch.select_for_update(skip_locked=can_skip))
            if not rows:
                break
            move(rows)
            witness(rows)
        done, last = done + len(rows), rows[-1].pk
    return done


@contextmanager
def _writing(chosen: QuerySet[Any]) -> Iterator[None]:
    """Make what is done inside one transaction.

    SQLite gets its write lock at once: a transaction that began by reading could not wait for it
    (https://www.sqlite.org/lang_transaction.html).
    """
    try:
        with transaction.atomic(using=chosen.db):
            if connections[chosen.db].vendor == "sqlite":
                chosen.model._default_manager.using(chosen.db).filter(pk=-1).update(bucket=0)
            yield
    except Error as error:
        raise unavailable(chosen.db, error) from error


def _waiting(row: StoredEvent, created_at: Any, place: int | None = None) -> OutboxEvent:
    fields = {name: getattr(row, name) for name in _COPIED}
    return OutboxEvent(id=place, created_at=created_at, **fields)


def _insert(alias: str, rows: Sequence[OutboxEvent]) -> None:
    OutboxEvent._default_manager.using(alias).bulk_create(rows)
    transaction.on_commit(partial(wakeups.announce, alias), using=alias, robust=True)


def _delete(rows: Sequence[HeldEvent]) -> None:
    """Delete locked rows.

    :raises OutboxUnavailable: a database without row locks let somebody else take one of them
        meanwhile; the transaction is rolled back.
    """
    held = HeldEvent._default_manager.using(rows[0]._state.db)
    deleted, _ = held.filter(pk__in=[row.pk for row in rows]).delete()
    if deleted != len(rows):
        raise OutboxUnavailable(
            f"{len(rows) - deleted} of {len(rows)} events were taken by a relay meanwhile; "
            "nothing was changed, try again"
        )
