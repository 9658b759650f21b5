"""The outbox as a relay sees it, on PostgreSQL, MySQL, MariaDB and SQLite."""

# ruff: noqa: S608 - statements are put together from names of ours and integers; the rest are parameters

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Collection, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from domain_event_broker.config import OutboxSettings
from domain_event_broker.django import wakeups
from domain_event_broker.django.conf import (
    known_alias,
    outbox_alias,
    outbox_settings,
    subscriber_settings,
)
from domain_event_broker.django.database import (
    is_passing,
    numbers,
    to_parameter,
    to_text,
    unavailable,
    unix_time,
)
from domain_event_broker.django.lease_table import LeaseTable
from domain_event_broker.django.models import HeldEvent
from domain_event_broker.django.retention import Housekeeping
from domain_event_broker.django.rows import ARCHIVE, EVENT_COLUMNS, HELD, OUTBOX, ROW_COLUMNS, to_outbox_row
from domain_event_broker.django.scan import ScanBound
from domain_event_broker.django.waiting import Waiter
from domain_event_broker.ports import Held, Lease, OutboxRow, Sent

logger = logging.getLogger("domain_event_broker.relay")

#: Seconds for which a transaction is tried again that lost against another one.
RETRY_SECONDS = 10.0

#: Seconds between two looks whether held rows are due.
PROMOTE_SECONDS = 0.1

#: Held rows that go back into the hot table in one transaction.
PROMOTE_LIMIT = 500

#: Bytes of event bodies that one fetch returns; a single event may be larger.
FETCH_BYTES = 32 * 1024 * 1024

#: Bytes of a body, as each database tells them without decoding it.
_BODY_BYTES = {"sqlite": "length(CAST(o.body AS BLOB))"}

#: So many of our buckets, or fewer, are read one by one on PostgreSQL.
FEW_BUCKETS = 12

#: Leaves out rows whose key waits for a held one.
_NOT_BLOCKED = (
    f" AND NOT EXISTS (SELECT 1 FROM {HELD} h WHERE h.blocks_key AND h.ordering_key = o.ordering_key)"
)

#: Finds the parked row that a row waits for.
_PARKED_KEY = (
    f"SELECT 1 FROM {HELD} h WHERE h.blocks_key AND h.ordering_key = o.ordering_key "
    f"AND h.state = '{HeldEvent.State.PARKED.value}'"
)

#: A row as a scan reads it: ``ROW_COLUMNS``, of which the body, the last, is ``None`` if it is large.
_Found: TypeAlias = tuple[Any, ...]

P = ParamSpec("P")
R = TypeVar("R")
Self = TypeVar("Self", bound="DjangoRelayOutbox")
Answer = TypeVar("Answer", Sent, Held)


def _guarded(
    method: Callable[Concatenate[Self, P], R],
) -> Callable[Concatenate[Self, P], R]:
    """Turn errors of the database into ours, and begin the next call with a new connection."""

    @wraps(method)
    def guarded(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        give_up_at = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                return method(self, *args, **kwargs)
            except Error as error:
                self._recover()
                if not is_passing(error) or time.monotonic() >= give_up_at:
                    raise unavailable(self.alias, error) from error
            time.sleep(0.005)

    return guarded


class DjangoRelayOutbox:
    """The rows of one database that wait to be sent, shared with the other relays on it.

    For one thread, but for :meth:`wake`. No transaction is open between two calls, so none
    waits for the broker.

    :param alias: alias of the database; default: the one that the settings and routers name.
    :param options: settings of the outbox; default: those of the project.
    :raises ConfigurationError: there is no database of this alias.
    """

    def __init__(self, alias: str | None = None, options: OutboxSettings | None = None) -> None:
        self._options = options or outbox_settings()
        self.alias = known_alias(alias or outbox_alias())
        self._leases = LeaseTable(self.alias, self._options.lease_seconds)
        self._bound = ScanBound()
        self._waiter = Waiter(self.alias, self._options.listen)
        self._housekeeping = Housekeeping(
            self.alias, self._options.archive_days, subscriber_settings().inbox_days
        )
        self._epochs: dict[int, int] = {}
        self._joined = False
        self._promote_at = 0.0
        # The clock of the database, as the reading of time.monotonic() that it is ahead of ours.
        self._clock_offset: float | None = None
        # Whether rows at hand were read over another connection, so perhaps from another server.
        self._is_reconnected = False

    @property
    def relay(self) -> str:
        """Identity of this relay in the lease table."""
        return self._leases.relay

    @property
    def is_listening(self) -> bool:
        """Whether PostgreSQL tells us of new events; else we look for them."""
        return self._waiter.is_listening

    @_guarded
    def renew(self) -> Lease:
        """Join the relays or stay among them, and return the buckets that are ours now."""
        wakeups.add_sleeper(self.alias, self)
        self._clock_offset = unix_time(self._connection) - time.monotonic()
        lease = self._leases.renew()
        self._joined = True
        epochs = dict(lease.epochs)
        if epochs != self._epochs:
            # Another relay may have left rows behind, and rows put back under their old ids.
            self._bound.reset()
            self._epochs = epochs
        if 0 in epochs:
            self._housekeeping.run()
        return lease

    @_guarded
    def fetch(self, lease: Lease, limit: int) -> list[OutboxRow]:
        """Return rows of our buckets that are due, in the order of their ids."""
        if not lease.epochs:
            return []
        blocked, due = self._look_at_held(lease)
        if due:
            self._promote(lease)
        if blocked or due:
            # Rows that were passed over may go on once their key is free: begin with them.
            self._bound.reset()
        found = self._scan(lease.epochs, limit, blocked)
        kept = self._within_budget(found)
        rows = self._with_bodies(kept)
        self._bound.fetched([row_id for row_id, *_ in kept], len(found) == limit or len(kept) < len(found))
        self._look_at_transactions()
        self._is_reconnected = False
        if rows:
            self._waiter.stay_awake()
        return rows

    @_guarded
    def settle(self, lease: Lease, sent: Sequence[Sent], held: Sequence[Held]) -> None:
        """Take sent rows out of the outbox (into the archive), and set refused ones aside."""
        if self._is_reconnected:
            sent, held = self._still_there(sent), self._still_there(held)
        with transaction.atomic(using=self.alias), self._connection.cursor() as cursor:
            for unroutable in (False, True):
                self._take_out(
                    cursor, [each.row.id for each in sent if each.unroutable is unroutable], unroutable
                )
            if held:
                ours = self._leases.hold(lease.epochs, {each.row.bucket for each in held})
                self._set_aside(cursor, [each for each in held if each.row.bucket in ours])
        self._bound.settled(each.row.id for each in sent)
        self._bound.settled(each.row.id for each in held)

    def wait(self, timeout: float) -> None:
        """Return when new rows may be there, or after ``timeout`` seconds, or before that to look."""
        self._waiter.wait(timeout)

    def wake(self) -> None:
        """Make the :meth:`wait` under way in another thread, or else the next one, return early."""
        self._waiter.ring()

    @_guarded
    def pending(self, limit: int = 10_000) -> int:
        """Return how many rows wait to be sent, counting no further than ``limit``.

        These are the rows that relays send without anybody's doing: refused ones that are tried
        again are among them; parked ones, those that wait for a parked one, and scheduled ones
        are not.
        """
        waiting = f"SELECT 1 FROM {OUTBOX} o WHERE NOT EXISTS ({_PARKED_KEY}) LIMIT {int(limit)}"
        refused = f"SELECT 1 FROM {HELD} WHERE state = '{HeldEvent.State.RETRYING.value}' LIMIT {int(limit)}"
        counts = f"(SELECT count(*) FROM ({waiting}) a), (SELECT count(*) FROM ({refused}) b)"
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT {counts}")
            return min(limit, int(sum(cursor.fetchone())))

    @_guarded
    def behind_parked(self, limit: int = 10_000) -> int:
        """Return how many rows wait for a parked one of their key, counting no further than ``limit``."""
        behind = f"SELECT 1 FROM {OUTBOX} o WHERE EXISTS ({_PARKED_KEY}) LIMIT {int(limit)}"
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT count(*) FROM ({behind}) a")
            return int(cursor.fetchone()[0])

    def leave(self) -> None:
        """Give the lease back, so that others need not wait for its end. Never raises."""
        wakeups.remove_sleeper(self.alias, self)
        self._waiter.close()
        self._bound.reset()
        self._epochs = {}
        joined, self._joined = self._joined, False
        try:
            if joined:
                self._leases.leave()
            self._recover()
        except Exception as error:
            # The lease ends by itself, a little later.
            logger.warning("could not give the lease back: %s", " ".join(str(error).split()))

    @property
    def _connection(self) -> BaseDatabaseWrapper:
        return connections[self.alias]

    def _recover(self) -> None:
        """Close the connection, unless it is in the middle of somebody's transaction.

        The next one may lead to another server, one that took over and lacks the last rows: ids
        below the bound of the scans are given once more there.
        """
        if not self._connection.in_atomic_block:
            self._connection.close()
            self._bound.reset()
            self._is_reconnected = True

    def _still_there(self, answers: Sequence[Answer]) -> list[Answer]:
        """Return the answers for rows that are the events they were, and not others with their ids."""
        ids = numbers(each.row.id for each in answers)
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT id, event_id FROM {OUTBOX} WHERE id IN ({ids})")
            present = dict(cursor.fetchall())
        return [each for each in answers if present.get(each.row.id) == each.row.message.event_id]

    def _now(self, seconds: float = 0.0) -> Any:
        """The time by the clock of the database, or that in so many seconds, as a parameter."""
        if self._clock_offset is None:
            self._clock_offset = unix_time(self._connection) - time.monotonic()
        return to_parameter(self._connection, self._clock_offset + time.monotonic() + seconds)

    # --- fetching

    def _look_at_held(self, lease: Lease) -> tuple[bool, bool]:
        """Tell whether held rows block keys of ours, and whether some of ours are due."""
        ours = f"bucket IN ({numbers(lease.epochs)})"
        blocked = f"SELECT EXISTS (SELECT 1 FROM {HELD} WHERE blocks_key AND {ours})"
        with self._connection.cursor() as cursor:
            if time.monotonic() < self._promote_at:
                cursor.execute(blocked)
                return bool(cursor.fetchone()[0]), False
            self._promote_at = time.monotonic() + PROMOTE_SECONDS
            cursor.execute(
                f"{blocked}, EXISTS (SELECT 1 FROM {HELD} WHERE due_at <= %s AND {ours})", [self._now()]
            )
            found = cursor.fetchone()
        return bool(found[0]), bool(found[1])

    def _scan(self, buckets: Collection[int], limit: int, blocked: bool) -> list[_Found]:
        """Read rows in the order of their ids; large bodies are left out.

        Along the primary key, past the rows of other relays, if many buckets are ours; from
        each bucket by itself if they are few. PostgreSQL is told which, since its statistics
        of a table that is empty most of the time can be far from the truth.
        """
        few = self._connection.vendor == "postgresql" and len(buckets) <= FEW_BUCKETS
        query = _each_bucket_query if few else _primary_key_query
        columns = _columns(self._body_bytes, FETCH_BYTES // limit)
        condition = _NOT_BLOCKED if blocked else ""
        with self._connection.cursor() as cursor:
            cursor.execute(query(columns, buckets, self._bound.start(), condition, int(limit)))
            return list(cursor.fetchall())

    def _within_budget(self, found: Sequence[_Found]) -> Sequence[_Found]:
        """Return the first rows whose bodies fit together, and one in any case."""
        large = _without_body(found)
        if not large:
            return found
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT id, {self._body_bytes} FROM {OUTBOX} o WHERE id IN ({numbers(large)})")
            sizes = dict(cursor.fetchall())
        totals = itertools.accumulate(sizes.get(row_id, len(body or "")) for row_id, *_, body in found)
        return found[: max(1, sum(total <= FETCH_BYTES for total in totals))]

    def _with_bodies(self, found: Sequence[_Found]) -> list[OutboxRow]:
        """Read the large bodies too; a row that somebody removed meanwhile is left out."""
        large = _without_body(found)
        if large:
            with self._connection.cursor() as cursor:
                cursor.execute(f"SELECT id, body FROM {OUTBOX} WHERE id IN ({numbers(large)})")
                bodies = dict(cursor.fetchall())
            whole = [(row_id, *values, bodies.get(row_id, body)) for row_id, *values, body in found]
            found = [values for values in whole if values[-1] is not None]
        return [to_outbox_row(values) for values in found]

    @property
    def _body_bytes(self) -> str:
        return _BODY_BYTES.get(self._connection.vendor, "octet_length(o.body)")

    def _look_at_transactions(self) -> None:
        """Learn whether the scans may begin further up; see :mod:`domain_event_broker.django.scan`.

        Other databases need no bound: they do not leave deleted rows in the way of a scan.
        """
        if self._connection.vendor != "postgresql" or not self._bound.wants_a_look():
            return
        with self._connection.cursor() as cursor:
            cursor.execute(
                "SELECT txid_snapshot_xmin(s), txid_snapshot_xmax(s) FROM txid_current_snapshot() s"
            )
            self._bound.look(*cursor.fetchone())

    # --- held rows coming back

    def _promote(self, lease: Lease) -> None:
        """Put due rows back into the hot table, those of refused events with their old ids.

        Only the relay that owns the bucket does: it knows then that rows with low ids appear.
        """
        now = self._now()
        with transaction.atomic(using=self.alias), self._connection.cursor() as cursor:
            ours = self._leases.hold(lease.epochs, list(lease.epochs))
            cursor.execute(
                f"SELECT id, outbox_id FROM {HELD} WHERE due_at <= %s AND bucket IN ({numbers(ours)}) "
                f"ORDER BY due_at, id LIMIT {PROMOTE_LIMIT}{self._for_update}",
                [now],
            )
            due = cursor.fetchall()
            taken = self._ids_in_use(cursor, [place for _, place in due if place is not None])
            self._put_back(cursor, [i for i, place in due if place is not None and place not in taken])
            self._append(cursor, [i for i, place in due if place is None or place in taken], now)
            self._delete(cursor, HELD, [i for i, _ in due])

    def _ids_in_use(self, cursor: Any, row_ids: Collection[int]) -> set[int]:
        """Of ids that rows had before, those that were given to others since (by a reset sequence)."""
        if not row_ids:
            return set()
        cursor.execute(f"SELECT id FROM {OUTBOX} WHERE id IN ({numbers(row_ids)})")
        return {row_id for (row_id,) in cursor.fetchall()}

    def _put_back(self, cursor: Any, held_ids: Collection[int]) -> None:
        if held_ids:
            cursor.execute(
                f"INSERT INTO {OUTBOX} (id, attempts, created_at, {EVENT_COLUMNS}) "
                f"SELECT outbox_id, attempts, created_at, {EVENT_COLUMNS} FROM {HELD} "
                f"WHERE id IN ({numbers(held_ids)})"
            )

    def _append(self, cursor: Any, held_ids: Collection[int], now: Any) -> None:
        """Add rows that were scheduled. They wait from now on: for lag, the past does not count."""
        if held_ids:
            cursor.execute(
                f"INSERT INTO {OUTBOX} (attempts, created_at, {EVENT_COLUMNS}) "
                f"SELECT attempts, %s, {EVENT_COLUMNS} FROM {HELD} "
                f"WHERE id IN ({numbers(held_ids)}) ORDER BY due_at, id",
                [now],
            )

    # --- settling

    def _take_out(self, cursor: Any, row_ids: Collection[int], unroutable: bool) -> None:
        """Delete sent rows, and archive them in the same statement or transaction."""
        if not row_ids:
            return
        if self._options.archive_days == 0:
            self._delete(cursor, OUTBOX, row_ids)
        elif self._connection.vendor == "postgresql":
            self._move_in_one_statement(cursor, row_ids, unroutable)
        else:
            self._lock(cursor, row_ids)
            cursor.execute(
                _archive(f"FROM {OUTBOX} WHERE id IN ({numbers(row_ids)})"), [self._now(), unroutable]
            )
            self._delete(cursor, OUTBOX, row_ids)

    def _move_in_one_statement(self, cursor: Any, row_ids: Collection[int], unroutable: bool) -> None:
        gone = f"WITH gone AS (DELETE FROM {OUTBOX} WHERE id IN ({numbers(row_ids)}) RETURNING *) "
        cursor.execute(gone + _archive("FROM gone"), [self._now(), unroutable])

    def _set_aside(self, cursor: Any, held: Sequence[Held]) -> None:
        """Move refused rows out of the hot table; a row that somebody removed meanwhile stays removed."""
        self._lock(cursor, [each.row.id for each in held])
        for each in held:
            self._copy_to_held(cursor, each)
        self._delete(cursor, OUTBOX, [each.row.id for each in held])

    def _copy_to_held(self, cursor: Any, held: Held) -> None:
        parked = held.retry_in is None
        state = HeldEvent.State.PARKED if parked else HeldEvent.State.RETRYING
        values = [state.value, held.row.attempts + 1, to_text(held.reason), held.block_key, self._now()]
        values += [] if held.retry_in is None else [self._now(held.retry_in)]
        cursor.execute(
            f"INSERT INTO {HELD} (state, attempts, reason, blocks_key, held_at, due_at, "
            f"outbox_id, created_at, {EVENT_COLUMNS}) "
            f"SELECT %s, %s, %s, %s, %s, {'NULL' if parked else '%s'}, "
            f"id, created_at, {EVENT_COLUMNS} FROM {OUTBOX} WHERE id = {int(held.row.id)}",
            values,
        )

    def _lock(self, cursor: Any, row_ids: Collection[int]) -> None:
        if self._for_update and row_ids:
            rows = f"{OUTBOX} o{self._by_id} WHERE o.id IN ({numbers(row_ids)})"
            cursor.execute(f"SELECT o.id FROM {rows}{self._for_update}")
            cursor.fetchall()

    def _delete(self, cursor: Any, table: str, row_ids: Collection[int]) -> None:
        if self._by_id:
            cursor.execute(f"DELETE o FROM {table} o{self._by_id} WHERE o.id IN ({numbers(row_ids)})")
        else:
            cursor.execute(f"DELETE FROM {table} WHERE id IN ({numbers(row_ids)})")

    @property
    def _by_id(self) -> str:
        """Keeps MySQL from reading, and locking, a whole small table to find a few rows of it."""
        return " FORCE INDEX (PRIMARY)" if self._connection.vendor == "mysql" else ""

    @property
    def _for_update(self) -> str:
        """Row locks where the database has them; SQLite lets one connection write at a time."""
        return " FOR UPDATE" if self._connection.features.has_select_for_update else ""


def _columns(size: str, largest: int) -> str:
    """Return the columns of a scan. The bodies that come along cannot exceed a budget together."""
    columns = ", ".join(f"o.{name}" for name in ROW_COLUMNS.split(", ") if name != "body")
    return f"{columns}, CASE WHEN {size} <= {largest:d} THEN o.body END"


def _without_body(found: Sequence[_Found]) -> list[int]:
    return [values[0] for values in found if values[-1] is None]


def _primary_key_query(columns: str, buckets: Collection[int], start: int, condition: str, limit: int) -> str:
    return (
        f"SELECT {columns} FROM {OUTBOX} o WHERE id > {start} AND bucket IN ({numbers(buckets)})"
        f"{condition} ORDER BY id LIMIT {limit}"
    )


def _each_bucket_query(columns: str, buckets: Collection[int], start: int, condition: str, limit: int) -> str:
    """Return a query that only the index on (bucket, id) can serve.

    Comparing rows where ``bucket = ...`` would mean the same leaves the planner no way along the
    primary key, through all the rows of other buckets.
    """
    in_bucket = f"(o.bucket, o.id) > (ours.bucket, {start}) AND (o.bucket, o.id) < (ours.bucket + 1, 0)"
    rows = f"SELECT * FROM {OUTBOX} o WHERE {in_bucket}{condition} ORDER BY o.bucket, o.id LIMIT {limit}"
    ours = f"unnest(ARRAY[{numbers(buckets)}]::smallint[]) ours (bucket)"
    return f"SELECT {columns} FROM {ours} CROSS JOIN LATERAL ({rows}) o ORDER BY o.id LIMIT {limit}"


def _archive(source: str) -> str:
    return (
        f"INSERT INTO {ARCHIVE} (outbox_id, created_at, {EVENT_COLUMNS}, published_at, unroutable) "
        f"SELECT id, created_at, {EVENT_COLUMNS}, %s, %s {source} ORDER BY id"
    )
