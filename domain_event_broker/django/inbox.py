"""The inbox: a handler takes effect once per event, however often that is delivered."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from datetime import datetime, timezone
from time import monotonic
from typing import Any, cast

from asgiref.sync import async_to_sync, sync_to_async
from django.db import Error, InterfaceError, OperationalError, connections, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models.constants import OnConflict
from django.db.transaction import TransactionManagementError

from domain_event_broker.deadlines import current_attempt
from domain_event_broker.django.database import is_missing_table, to_parameter
from domain_event_broker.django.models import InboxEntry
from domain_event_broker.errors import HandlerSignal, InboxUnavailable, TransactionLost
from domain_event_broker.events import DomainEvent
from domain_event_broker.handlers import Handler
from domain_event_broker.injection import Injected, refuse_undone

logger = logging.getLogger("domain_event_broker.subscriber")

#: Seconds for which a thread keeps its connection although ``CONN_MAX_AGE`` is 0, which means
#: "until the end of the request": a connection for each event would cost more than the event.
KEEP_SECONDS = 60.0

#: Seconds between two looks at the connections of the thread that async handlers without inbox share.
TIDY_SECONDS = 1.0
#: Seconds within which a statement has to be cancelled when the time of its handler is up.
CANCEL_SECONDS = 2.0

#: Longest identity that the column holds; SHA-256 in hexadecimal has just this length.
_ID_LENGTH = 64

#: psycopg's word for a transaction in which a statement failed: its COMMIT would be a ROLLBACK
#: (https://www.postgresql.org/docs/current/libpq-status.html, ``PQTRANS_INERROR``).
_IN_ERROR = 3


class DjangoInbox:
    """Runs handlers in a transaction together with the memory that they ran."""

    def __init__(self) -> None:
        self._tidied_at = 0.0

    def run(self, handler: Handler, event: DomainEvent) -> bool:
        """Call ``handler`` with ``event`` unless it took effect for it before.

        An idempotent handler runs in a transaction on the database of the inbox: what it
        writes there, and the memory that it did, are committed together or not at all. A
        second delivery at the same time waits for the first, and then is a duplicate. What it
        does elsewhere (another database, a web service) is not part of that.

        What an async handler does with the ORM, or in ``sync_to_async``, it does in this thread and so
        in this transaction, while its own code runs on the loop.

        :return: ``False``: a duplicate, the handler was not called.
        :raises InboxUnavailable: the handler was not called; calling again later is safe.
        :raises TransactionLost: the database went away while it ran; calling again later is safe, too.
        :raises TransactionManagementError: the handler returned, and left its transaction in a
            state in which nothing of it could be committed.
        :raises Exception: whatever the handler raised, or what it left to ``transaction.on_commit``
            without ``robust=True``: the memory is taken back then, so that it runs once more.
        """
        alias = router.db_for_write(InboxEntry)
        around = _depths()
        _tidy(alias, around)
        try:
            if handler.idempotent and event.uuid_string:
                return _run_reconnecting(connections[alias], handler, event)
            _call(handler, event, _nothing)
            return True
        finally:
            _tidy(alias, around)
            _at_thread_end.close(alias)

    async def arun(self, handler: Handler, event: DomainEvent, threads: Executor) -> bool:
        """As :meth:`run`, for an async handler, from the loop that it shall run on.

        One that is idempotent has a thread of ``threads`` beside it, with a connection and the
        transaction, for as long as it runs. One that is not has neither: what it does with the ORM
        takes turns with the others, in the one thread that ``sync_to_async`` has for a loop. Unless a
        dependency may hold a transaction open there: that would be the others', too.
        """
        if (handler.idempotent and event.uuid_string) or getattr(handler.call, "holds_open", False):
            # From such a thread async_to_sync() leads back to this loop, and sync_to_async() to it.
            run = sync_to_async(self.run, thread_sensitive=False, executor=cast(ThreadPoolExecutor, threads))
            return await run(handler, event)
        try:
            await _await(handler.call, event, _nothing)
        except BaseException:
            await self._tidy_shared(0)
            raise
        await self._tidy_shared(TIDY_SECONDS)
        return True

    async def _tidy_shared(self, seconds: float) -> None:
        """Look after the connections of the shared thread, unless it was done ``seconds`` ago."""
        now = monotonic()
        if now - self._tidied_at >= seconds:
            self._tidied_at = now
            await sync_to_async(_tidy)(router.db_for_write(InboxEntry), {})


def _nothing() -> None:
    """There is no transaction to look at."""


def _call(handler: Handler, event: DomainEvent, verify: Callable[[], None]) -> None:
    """Call a handler, and verify that its transaction can be committed before it cleans up."""
    if handler.is_async:
        async_to_sync(_await)(handler.call, event, verify)
    elif isinstance(handler.call, Injected):
        handler.call.verified(event, verify)
    else:
        refuse_undone(handler.call, handler.call(event))


async def _await(call: Callable[..., Any], event: DomainEvent, verify: Callable[[], None]) -> None:
    averified = getattr(call, "averified", None)
    if averified is None:
        refuse_undone(call, await call(event))
    else:
        await averified(event, verify, _in_thread)


async def _in_thread(function: Callable[[], Any]) -> Any:
    """Run what may wait where the ORM runs: in the thread of the transaction, if there is one."""
    return await sync_to_async(function)()


class _NotAsked(InboxUnavailable):
    """Ours alone: a handler cannot raise it, so the handler was not called."""


def _run_reconnecting(connection: BaseDatabaseWrapper, handler: Handler, event: DomainEvent) -> bool:
    """Run once; on a new connection if the one at hand had died since it was used."""
    used = None if connection.in_atomic_block else connection.connection
    try:
        return _run_once(connection, handler, event)
    except _NotAsked:
        # Django replaces a dead connection when it leaves the atomic block.
        if used is None or (used is connection.connection and connection.is_usable()):
            raise
    connection.close()
    return _run_once(connection, handler, event)


def _run_once(connection: BaseDatabaseWrapper, handler: Handler, event: DomainEvent) -> bool:
    _connect(connection)
    used, commit = connection.connection, _Commit()
    try:
        return _run_in_transaction(connection, handler, event, commit)
    except BaseException as error:
        # The process dies before the next line: a redelivery is a duplicate, as it is when it
        # dies between COMMIT and the hooks. Nothing but the row knows of them.
        if commit.has_happened:
            _take_back(connection, handler.name, event.uuid_string, error)
        elif commit.is_begun and not commit.is_closed_by_handler and _is_lost(connection, used, error):
            raise _lost(connection.alias, error) from error
        raise


def _is_lost(connection: BaseDatabaseWrapper, used: object, error: BaseException) -> bool:
    """Tell whether a handler failed because the database went away, and for no other reason.

    Then its transaction is rolled back. The exception is a connection that is lost during COMMIT:
    whether that was done, the inbox tells when the handler is to run again.

    :param used: the connection that the handler had. Django replaces one that it could not roll back.
    """
    return _is_of_connection(error) and (connection.connection is not used or not connection.is_usable())


def _is_of_connection(error: BaseException) -> bool:
    """Tell whether an exception is, or was raised for, one that a lost connection raises.

    A signal of the handler's is none: it has decided what shall happen.
    """
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen and not isinstance(each, HandlerSignal):
        if isinstance(each, (OperationalError, InterfaceError)):
            return True
        seen.add(id(each))
        each = each.__cause__ or each.__context__
    return False


class _Commit:
    """Whether a transaction was committed, seen by the first of its hooks.

    Beside it, whether the handler was called, and whether it closed the connection itself.
    """

    def __init__(self) -> None:
        self.has_happened = False
        self.is_begun = False
        self.is_closed_by_handler = False

    def note(self) -> None:
        """The hook."""
        self.has_happened = True


def _run_in_transaction(
    connection: BaseDatabaseWrapper, handler: Handler, event: DomainEvent, commit: _Commit
) -> bool:
    is_outermost = not connection.in_atomic_block
    with transaction.atomic(using=connection.alias):
        if is_outermost:
            # Before those of the handler: Django runs hooks in their order, after the COMMIT
            # (https://docs.djangoproject.com/en/stable/topics/db/transactions/#order-of-execution).
            transaction.on_commit(commit.note, using=connection.alias)
        if not _remember(connection, handler.name, _identity(event.uuid_string)):
            return False
        depth = _depth(connection)

        def verify() -> None:
            _check_can_commit(connection, handler.name, depth)

        _cancel_on_expiry(connection)
        commit.is_begun = True
        try:
            _call(handler, event, verify)
            verify()  # again: a dependency that cleaned up may have spoiled it
        finally:
            commit.is_closed_by_handler = connection.closed_in_transaction
    return True


def _cancel_on_expiry(connection: BaseDatabaseWrapper) -> None:
    """Let the statement that the database is busy with be cancelled when the handler's time is up."""
    attempt = current_attempt()
    if attempt is None:
        return
    raw = connection.connection
    # psycopg 3 has a way with a limit of time (from 3.2), older ones and psycopg2 have cancel(),
    # SQLite has interrupt(); each may be called from another thread.
    safe, cancel = getattr(raw, "cancel_safe", None), getattr(raw, "cancel", None)
    interrupt = getattr(raw, "interrupt", None)
    if safe is not None:
        attempt.on_expiry(lambda: safe(timeout=CANCEL_SECONDS))
    elif cancel is not None:
        attempt.on_expiry(cancel)
    elif interrupt is not None:
        attempt.on_expiry(interrupt)


def _take_back(connection: BaseDatabaseWrapper, consumer: str, event_id: str, error: BaseException) -> None:
    """Forget that a handler took effect: what it left to ``on_commit`` did not happen.

    Else its retry would be a duplicate, acknowledged with that work undone.
    """
    if connection.in_atomic_block:
        _abandon(connection)
    entries = InboxEntry._default_manager.using(connection.alias)
    try:
        entries.filter(consumer=consumer, event_id=_identity(event_id)).delete()
    except Error as failure:
        then = f"and this could not be undone ({failure}): a retry will be taken for a duplicate"
    else:
        then = "so a retry or a replay will run the whole handler again"
    logger.error(
        "handler %r was committed for event %s, then a transaction.on_commit() hook of it raised %r, %s",
        consumer,
        event_id,
        error,
        then,
        extra={"handler": consumer, "event_id": event_id},
    )


def _connect(connection: BaseDatabaseWrapper) -> None:
    try:
        connection.ensure_connection()
    except Error as error:
        raise _unavailable(connection.alias, error) from error


def _remember(connection: BaseDatabaseWrapper, consumer: str, event_id: str) -> bool:
    """Write that the handler takes effect now; tell whether it is the first time.

    First of all statements, so that a concurrent duplicate waits here, before its handler ran.
    """
    now = to_parameter(connection, datetime.now(timezone.utc).timestamp())
    columns = ["consumer", "event_id", "handled_at"]
    insert = connection.ops.insert_statement(on_conflict=OnConflict.IGNORE)
    suffix = connection.ops.on_conflict_suffix_sql([], OnConflict.IGNORE, [], [])
    table = InboxEntry._meta.db_table
    statement = f"{insert} {table} ({', '.join(columns)}) VALUES (%s, %s, %s) {suffix}"
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement, [consumer, event_id, now])
            return bool(cursor.rowcount)
    except Error as error:
        raise _unavailable(connection.alias, error) from error


def _identity(event_id: str) -> str:
    """Return the identity as the column can hold it: foreign publishers may send any string."""
    if len(event_id) <= _ID_LENGTH and event_id.isprintable():
        return event_id
    return hashlib.sha256(event_id.encode("utf-8", "surrogatepass")).hexdigest()


def _check_can_commit(connection: BaseDatabaseWrapper, name: str, depth: int) -> None:
    """Refuse to take a transaction for committed whose end would be a silent rollback.

    That is what Django and PostgreSQL do when a database error was swallowed, or the
    connection closed: the event would be acknowledged and its effect gone.
    """
    if _depth(connection) > depth:
        raise TransactionManagementError(
            f"handler {name!r} began a transaction and did not end it; its work is rolled back"
        )
    info = getattr(connection.connection, "info", None)
    failed = getattr(info, "transaction_status", None) == _IN_ERROR
    if connection.needs_rollback or connection.closed_in_transaction or failed:
        raise TransactionManagementError(
            f"handler {name!r} returned, but its transaction cannot be committed: it caught a database "
            "error without transaction.atomic() around the statement, rolled back, or closed the connection"
        )


def _unavailable(alias: str, error: Error) -> _NotAsked:
    if is_missing_table(error):
        return _NotAsked(f"database {alias!r} has no inbox table: run 'manage.py migrate --database {alias}'")
    return _NotAsked(f"the inbox in database {alias!r} cannot be asked now: {' '.join(str(error).split())}")


def _lost(alias: str, error: BaseException) -> TransactionLost:
    return TransactionLost(
        f"the database {alias!r} went away while a handler ran: {' '.join(str(error).split())}"
    )


def _depth(connection: BaseDatabaseWrapper) -> int:
    """How many atomic blocks are open."""
    return len(connection.savepoint_ids) + connection.in_atomic_block


def _depths() -> dict[str, int]:
    return {connection.alias: _depth(connection) for connection in connections.all(initialized_only=True)}


def _tidy(inbox_alias: str, around: Mapping[str, int]) -> None:
    """Close connections that are broken, too old, or left in the middle of something.

    :param around: the atomic blocks that were open before; they are not ours to end.
    """
    for connection in connections.all(initialized_only=True):
        if _depth(connection) > around.get(connection.alias, 0):
            _abandon(connection)
        if connection.connection is not None and not connection.in_atomic_block:
            _close_if_old(connection, keep=connection.alias == inbox_alias)


def _abandon(connection: BaseDatabaseWrapper) -> None:
    """Roll back what a handler left open: the database does, when the connection ends."""
    logger.error("a handler left a transaction open on database %r; it is rolled back", connection.alias)
    connection.in_atomic_block = False
    connection.savepoint_ids = []
    connection.needs_rollback = False
    connection.closed_in_transaction = False
    connection.run_on_commit = []
    connection.close()


def _close_if_old(connection: BaseDatabaseWrapper, keep: bool) -> None:
    close_at = connection.close_at
    if keep and close_at is not None and not connection.settings_dict["CONN_MAX_AGE"]:
        connection.close_at = close_at + KEEP_SECONDS
    try:
        connection.close_if_unusable_or_obsolete()
    finally:
        if connection.connection is not None:
            connection.close_at = close_at


class _AtThreadEnd(threading.local):
    """Closes kept connections when their thread ends, and with it its part of this object."""

    def __init__(self) -> None:
        self._closers: dict[str, _Closer] = {}

    def close(self, alias: str) -> None:
        """Close the connection of this thread to ``alias`` at the end of the thread."""
        if alias not in self._closers and threading.current_thread() is not threading.main_thread():
            self._closers[alias] = _Closer(connections[alias])


class _Closer:
    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._connection.close()


_at_thread_end = _AtThreadEnd()
