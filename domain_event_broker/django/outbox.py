"""The outbox as publishers see it: a row beside the business rows, in the same transaction."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timezone
from functools import cache
from typing import Any, TypeVar

from asgiref.sync import sync_to_async
from django.db import DEFAULT_DB_ALIAS, Error, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from domain_event_broker.batches import chunks
from domain_event_broker.django import conf, wakeups
from domain_event_broker.django.conf import outbox_alias
from domain_event_broker.django.database import is_missing_table, not_migrated, to_field, unavailable
from domain_event_broker.django.fate import Fate
from domain_event_broker.django.kick import kicker
from domain_event_broker.django.models import HeldEvent, OutboxEvent
from domain_event_broker.django.rows import EVENT_COLUMNS, OUTBOX, event_values
from domain_event_broker.errors import InvalidEvent
from domain_event_broker.events import Message

__all__ = ["DjangoOutbox", "outbox_alias"]

logger = logging.getLogger("domain_event_broker.outbox")

Result = TypeVar("Result")

#: Rows of one INSERT statement; SQLite allows fewer, for the number of their parameters.
ROWS_PER_INSERT = 1000
#: So many rows, or more, go to PostgreSQL as one JSON text: fewer, and it is faster to send their values.
JSON_FROM = 10

_INSERT = f"INSERT INTO {OUTBOX} ({EVENT_COLUMNS}, attempts, created_at) VALUES "  # noqa: S608 - constants
_PLACES = "(%s, %s, %s, %s, %s, %s, %s, %s, 0, %s)"
_PARAMETERS_PER_ROW = _PLACES.count("%s")

_NAMES = EVENT_COLUMNS.split(", ")
_TYPES = ("text", "smallint", "text", "text", "text", "text", "float8", "text")
_JSON_COLUMNS = ", ".join(f"{name} {kind}" for name, kind in zip(_NAMES, _TYPES, strict=True))
# Sorted, so that ids are given in the order of the rows by more than luck.
_INSERT_JSON = (
    f"INSERT INTO {OUTBOX} ({EVENT_COLUMNS}, attempts, created_at) SELECT {EVENT_COLUMNS}, 0, %s "  # noqa: S608 - constants
    f"FROM ROWS FROM (json_to_recordset(%s::json) AS ({_JSON_COLUMNS})) WITH ORDINALITY ORDER BY ordinality"
)


class DjangoOutbox:
    """Stores events in the database of the transaction that they belong to."""

    def store(
        self,
        messages: Sequence[Message],
        *,
        using: str | None = None,
        deliver_at: datetime | None = None,
    ) -> None:
        """Write messages, in order, in the caller's transaction: they live and die with it.

        Without a transaction they are one of their own. If the outbox lives in another
        database than the transaction, they are written right after that has committed: there
        is no transaction over two databases, so a crash in between loses them.

        :param using: alias of the database of the transaction; by default that of the outbox,
            or whichever has a transaction open.
        :param deliver_at: not sent before this time; an aware datetime. Past: sent now.
        :raises InvalidEvent: ``deliver_at`` has no time zone.
        :raises OutboxNotMigrated: the tables do not exist.
        :raises OutboxUnavailable: they could not be written, outside of a transaction.
        :raises django.db.Error: the same inside of one, as it is: deadlocks and serialization
            failures are for the caller to see. The transaction cannot be committed any more.
        """
        if not messages:
            return
        due = _future(deliver_at)
        home, business = _aliases(using)
        if home == business:
            _write(home, messages, due)
        else:
            _write_after(business, home, messages, due)

    def in_async(self, call: Callable[..., Result]) -> Callable[..., Awaitable[Result]]:
        """Return ``call`` for use in a coroutine: run in the thread that has Django's connections."""
        return sync_to_async(call, thread_sensitive=True)

    def fate(self, using: str | None = None) -> Callable[[], bool]:
        """Return what tells, from now on, whether events stored now with ``using`` are there.

        They are not any more when their transaction, or the savepoint, has been rolled back. For
        the testing kit.
        """
        return Fate(_aliases(using)[1])


def _future(deliver_at: object) -> datetime | None:
    """Return ``deliver_at`` if it is yet to come."""
    if deliver_at is None:
        return None
    if not isinstance(deliver_at, datetime) or deliver_at.utcoffset() is None:
        raise InvalidEvent(
            f"deliver_at={deliver_at!r} is not an aware datetime; "
            "use one like django.utils.timezone.now() + timedelta(hours=1)"
        )
    return deliver_at if deliver_at > datetime.now(timezone.utc) else None


def _aliases(using: str | None) -> tuple[str, str]:
    """Return the database to write to, and the one whose commit decides over the events."""
    home = conf.outbox_settings().database or using or router.db_for_write(OutboxEvent)
    if using is not None:
        return home, using if connections[using].in_atomic_block else home
    if connections[home].in_atomic_block:
        return home, home
    return home, _open_transaction() or home


def _open_transaction() -> str | None:
    """Return the alias of a database with an open transaction, the default one first."""
    aliases = [each.alias for each in connections.all(initialized_only=True) if each.in_atomic_block]
    return DEFAULT_DB_ALIAS if DEFAULT_DB_ALIAS in aliases else next(iter(aliases), None)


def _write(alias: str, messages: Sequence[Message], due: datetime | None) -> None:
    connection = connections[alias]
    try:
        # After an error the transaction must not commit without its events, not even if the
        # caller swallows the exception.
        with transaction.mark_for_rollback_on_error(using=alias):
            _insert(connection, messages) if due is None else _schedule(alias, messages, due)
    except Error as error:
        if is_missing_table(error):
            raise not_migrated(alias) from error
        if connection.in_atomic_block or (connection.connection is not None and not connection.autocommit):
            raise
        raise unavailable(alias, error) from error
    if due is None:
        _announce_on_commit(connection)


def _write_after(business: str, home: str, messages: Sequence[Message], due: datetime | None) -> None:
    """Write to ``home`` when the transaction on ``business`` has committed, and only then."""

    def write_events() -> None:
        _write_late(home, messages, due)

    transaction.on_commit(write_events, using=business, robust=True)


def _write_late(alias: str, messages: Sequence[Message], due: datetime | None) -> None:
    try:
        _write(alias, messages, due)
    except Exception:
        # Nobody can take the business transaction back any more. What is needed to publish
        # the events again goes into the log record, as nothing else has it.
        for message in messages:
            logger.critical(
                "event %s %s is lost: its transaction has committed, and the outbox in database %r "
                "cannot be written; the log record has its body, to publish it again",
                message.routing_key,
                message.event_id,
                alias,
                extra={"event_id": message.event_id, "event_body": message.body.decode()},
            )
        raise


def _insert(connection: BaseDatabaseWrapper, messages: Sequence[Message]) -> None:
    """Insert rows: ids are given in the order of the messages."""
    now = connection.ops.adapt_datetimefield_value(to_field(datetime.now(timezone.utc)))
    if len(messages) == 1:
        _insert_values(connection, messages, now)
        return
    is_json = len(messages) >= JSON_FROM and connection.vendor == "postgresql"
    insert = _insert_json if is_json else _insert_values
    parts = chunks(messages, _rows_per_insert(connection))
    if len(parts) == 1:
        insert(connection, messages, now)
        return
    with transaction.atomic(using=connection.alias, savepoint=False):
        for part in parts:
            insert(connection, part, now)


def _rows_per_insert(connection: BaseDatabaseWrapper) -> int:
    most = connection.features.max_query_params
    return min(ROWS_PER_INSERT, most // _PARAMETERS_PER_ROW) if most else ROWS_PER_INSERT


def _insert_values(connection: BaseDatabaseWrapper, messages: Sequence[Message], now: Any) -> None:
    statement = _INSERT + ", ".join([_PLACES] * len(messages))
    values = [value for message in messages for value in (*event_values(message), now)]
    with connection.cursor() as cursor:
        cursor.execute(statement, values)


def _insert_json(connection: BaseDatabaseWrapper, messages: Sequence[Message], now: Any) -> None:
    rows = [dict(zip(_NAMES, event_values(message), strict=True)) for message in messages]
    with connection.cursor() as cursor:
        cursor.execute(_INSERT_JSON, (now, json.dumps(rows, ensure_ascii=False)))


def _schedule(alias: str, messages: Sequence[Message], due: datetime) -> None:
    """Keep events out of the hot table until they are due: the scans of relays stay short."""
    now = to_field(datetime.now(timezone.utc))
    rows = [
        HeldEvent(
            **dict(zip(_NAMES, event_values(message), strict=True)),
            created_at=now,
            held_at=now,
            state=HeldEvent.State.SCHEDULED,
            due_at=to_field(due),
        )
        for message in messages
    ]
    HeldEvent.objects.using(alias).bulk_create(rows)


def _announce_on_commit(connection: BaseDatabaseWrapper) -> None:
    if not connection.in_atomic_block and not connection.get_autocommit():
        return  # the caller commits by hand, and Django cannot tell us when
    announcer = _announcer(connection.alias)
    if not any(hook[1] is announcer for hook in connection.run_on_commit):
        transaction.on_commit(announcer, using=connection.alias, robust=True)


@cache
def _announcer(alias: str) -> Callable[[], None]:
    """Return one and the same callback for a database, so that a transaction has it only once."""

    def announce() -> None:
        if conf.outbox_settings().relay_task:
            kicker.kick(alias)
        wakeups.announce(alias)

    return announce
