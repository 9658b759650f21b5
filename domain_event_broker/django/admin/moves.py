"""What the actions of the admin do to the tables, while relays work on the same rows.

Rows are taken oldest first, in batches, each in a transaction of its own that locks them: killed at
any moment, a batch is done or not, and those before stay done. A row that a relay has in hand, or
that went meanwhile, is left out; the number returned is that of the rows it was done to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from django.db import Error, connections, transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from domain_event_broker.django import wakeups
from domain_event_broker.django.database import is_passing, unavailable
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, OutboxEvent, StoredEvent
from domain_event_broker.django.rows import EVENT_COLUMNS
from domain_event_broker.errors import OutboxUnavailable

#: Rows in one transaction.
BATCH = 500
#: Rows that one click acts on: what a web request can do before somebody's timeout ends it.
ACTION_LIMIT = 10_000

#: Tries of a batch that loses against the statements of others.
MAX_TRIES = 10

Event = TypeVar("Event", bound=StoredEvent)
#: Told about the rows of a batch, inside its transaction.
Witness = Callable[[Sequence[Any]], None]

_COPIED = tuple(EVENT_COLUMNS.split(", "))


def retry(chosen: QuerySet[HeldEvent], witness: Witness) -> int:
    """Make held events due, with all their tries anew; return how many.

    The relay that owns their bucket puts them back into the hot table a moment later: refused ones
    in their old places, ahead of later events of their keys, scheduled ones at the end. Nobody else
    may, since only that relay knows then that it has to look at old ids once more; until it does, a
    blocked key stays blocked.
    """

    def make_due(rows: Sequence[HeldEvent]) -> None:
        held = HeldEvent._default_manager.using(chosen.db).filter(pk__in=[row.pk for row in rows])
        # That time is past by every clock, also by that of the database, which relays go by.
        held.update(due_at=F("held_at"), attempts=0)
        held.filter(state=HeldEvent.State.PARKED).update(state=HeldEvent.State.RETRYING)
        _announce(chosen.db)

    return _in_batches(chosen, make_due, witness)


def discard(chosen: QuerySet[HeldEvent], witness: Witness) -> int:
    """Delete held events for good; return how many. Later events of their keys go on."""
    return _in_batches(chosen, _delete, witness)


def publish_again(chosen: QuerySet[ArchivedEvent], witness: Witness) -> int:
    """Put copies of sent events, with their identities, into the hot table; return how many."""

    def copy(rows: Sequence[ArchivedEvent]) -> None:
        now = timezone.now()
        copies = [
            OutboxEvent(created_at=now, **{name: getattr(row, name) for name in _COPIED}) for row in rows
        ]
        OutboxEvent._default_manager.using(chosen.db).bulk_create(copies)
        _announce(chosen.db)

    return _in_batches(chosen, copy, witness)


def _in_batches(chosen: QuerySet[Event], move: Callable[[Sequence[Event]], None], witness: Witness) -> int:
    """Call ``move`` with the rows of ``chosen``, up to ``ACTION_LIMIT``, in one transaction per batch."""
    table = chosen.model._default_manager.using(chosen.db)
    newest = table.order_by("-pk").values_list("pk", flat=True).first()
    # Without this end, an event that the relay parks again at once would be met again and again.
    oldest_first = chosen.defer(None).order_by("pk").filter(pk__lte=newest or 0)
    done, last = 0, 0
    while done < ACTION_LIMIT:
        batch = oldest_first.filter(pk__gt=last)[: min(BATCH, ACTION_LIMIT - done)]
        rows = _unless_in_conflict(chosen.db, partial(_move, batch, move, witness))
        if not rows:
            break
        done, last = done + len(rows), rows[-1].pk
    return done


def _move(
    batch: QuerySet[Event], move: Callable[[Sequence[Event]], None], witness: Witness
) -> Sequence[Event]:
    """Lock the rows of a batch, move them, and return them."""
    can_skip = connections[batch.db].features.has_select_for_update_skip_locked
    with _writing(batch.db):
        rows = list(batch.select_for_update(skip_locked=can_skip))
        if rows:
            move(rows)
            witness(rows)
    return rows


def _unless_in_conflict(alias: str, call: Callable[[], Sequence[Event]]) -> Sequence[Event]:
    """Call until it gets past the deadlocks that MySQL makes of deletes side by side.

    :raises OutboxUnavailable: any other trouble, or too much of that. Nothing is left of the batch.
    """
    tries = 0
    while True:
        try:
            return call()
        except Error as error:
            tries += 1
            # In a transaction of somebody else there is nothing to try again: it has failed.
            lost = connections[alias].in_atomic_block or tries >= MAX_TRIES
            if lost or not is_passing(error):
                raise unavailable(alias, error) from error


@contextmanager
def _writing(alias: str) -> Iterator[None]:
    """Make what is done inside one transaction.

    SQLite gets its write lock at once: a transaction that began by reading could not wait for it
    (https://www.sqlite.org/lang_transaction.html).
    """
    with transaction.atomic(using=alias):
        if connections[alias].vendor == "sqlite":
            HeldEvent._default_manager.using(alias).filter(pk=-1).update(bucket=0)
        yield


def _announce(alias: str) -> None:
    """Wake relays when the transaction has committed."""
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
