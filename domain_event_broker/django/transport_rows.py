"""The statements of the ``database:`` transport: how deliveries are claimed, kept and answered for.

A claim is a lock that ends by itself: ``holder`` says whose it is, ``due_at`` when it ends. It
is no lock of the database, so no transaction stays open while a handler runs. Each answer asks
for the row *and* its holder: one that comes after the lock has ended, and another receiver has
the row, changes nothing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db.models import Case, Count, F, Q, QuerySet, Value, When

from domain_event_broker.django.database import numbers
from domain_event_broker.django.transport_models import DeadDelivery, QueuedDelivery
from domain_event_broker.django.transport_session import Session

#: Rows named by one statement.
CHUNK = 500
#: Bytes of event bodies that one INSERT carries; the packets of MySQL are bounded.
INSERT_BYTES = 1024 * 1024

_TABLE = QueuedDelivery._meta.db_table

#: One statement, so that idle polling costs one round trip. Retries that are due come before
#: events that wait, or a queue that never empties would keep them for ever. The inner LIMITs
#: walk the index (queue, due_at, id) and stop; the order by due_at, though it is 0 for all that
#: wait, keeps the planner from walking the primary key instead, past the rows of all other
#: queues. FOR UPDATE does not mix with UNION, hence the sub-selects (https://www.postgresql.org/docs/current/sql-select.html#SQL-FOR-UPDATE-SHARE).
_CLAIM = f"""
    WITH wanted AS MATERIALIZED (
        SELECT picked.id
        FROM unnest(%(queues)s::bigint[], %(rooms)s::bigint[]) AS room (queue_id, size),
        LATERAL (
            SELECT id FROM (
                SELECT id FROM {_TABLE}
                WHERE queue_id = room.queue_id AND due_at > 0 AND due_at <= %(now)s
                ORDER BY due_at, id LIMIT room.size FOR UPDATE SKIP LOCKED
            ) AS due
            UNION ALL
            SELECT id FROM (
                SELECT id FROM {_TABLE}
                WHERE queue_id = room.queue_id AND due_at <= 0
                ORDER BY due_at, id LIMIT room.size FOR UPDATE SKIP LOCKED
            ) AS waiting
            LIMIT room.size
        ) AS picked
        LIMIT %(limit)s
    )
    UPDATE {_TABLE} AS row
    SET crashes = row.crashes + CASE WHEN row.holder IS NULL THEN 0 ELSE 1 END,
        holder = %(holder)s, due_at = %(until)s
    FROM wanted WHERE row.id = wanted.id
    RETURNING row.id, row.queue_id, row.body, row.routing_key, row.event_id, row.headers,
        row.retries, row.crashes
"""  # noqa: S608 - the name of a table of ours


@dataclass(frozen=True, slots=True)
class ClaimedRow:
    """A row that is ours until its lock ends."""

    id: int
    queue_id: int
    body: bytes
    routing_key: str
    event_id: str
    headers: str
    retries: int
    crashes: int


class DeliveryRows:
    """The rows of deliveries as one holder sees them.

    :param holder: a number that no other receiver has.
    """

    def __init__(self, session: Session, holder: int) -> None:
        self._session = session
        self._holder = holder

    def claim(self, rooms: Mapping[int, int], limit: int, milliseconds: int) -> list[ClaimedRow]:
        """Take what is ready, oldest first, for ``milliseconds``.

        Killed right after this, nobody has acted on it: the rows come back when the lock ends.

        :param rooms: how many of each queue, by id.
        :param limit: how many in all.
        """
        now = self._session.now()
        if self._session.vendor == "postgresql":
            rows = self._claim_in_one(rooms, limit, now, now + milliseconds)
        else:
            rows = self._claim_in_steps(rooms, limit, now, now + milliseconds)
        return sorted(rows, key=lambda row: row.id)

    def insert(self, rows: Sequence[QueuedDelivery]) -> None:
        """Store new rows, in their order. Must be called in a transaction."""
        for part in _parts(rows):
            self._rows().bulk_create(part)

    def renew(self, ids: Sequence[int], milliseconds: int) -> set[int]:
        """Let the locks of these rows end ``milliseconds`` from now; return those not ours any more."""
        until, lost = self._session.now() + milliseconds, set[int]()
        for chunk in _chunks(ids):
            ours = self._ours(chunk)
            if ours.update(due_at=until) < len(chunk):
                lost |= set(chunk) - set(ours.values_list("id", flat=True))
        return lost

    def delete(self, ids: Sequence[int]) -> None:
        """Forget rows of ours for good."""
        for chunk in _chunks(ids):
            # Plain SQL: Django would read the rows first, bodies and all, to look for relations.
            ours = f"id IN ({numbers(chunk)}) AND holder = {self._holder:d}"
            self._execute(f"DELETE FROM {_TABLE} WHERE {ours}")  # noqa: S608 - integers

    def give_back(self, ids: Sequence[int]) -> None:
        """Put rows of ours back to their old places."""
        for chunk in _chunks(ids):
            self._ours(chunk).update(due_at=0, holder=None)

    def put_first(self, ids: Sequence[int]) -> None:
        """Give rows of ours back, to be claimed next: before retries that are due, too."""
        for chunk in _chunks(ids):
            self._ours(chunk).update(due_at=1, holder=None)

    def held_beyond(self, queue_ids: Iterable[int], milliseconds: int) -> set[tuple[int, int]]:
        """Return id and end of the locks that end later than ``milliseconds`` from now."""
        rows = self._rows().filter(
            queue_id__in=list(queue_ids), due_at__gt=self._session.now() + milliseconds
        )
        return set(rows.exclude(holder=None).values_list("id", "due_at"))

    def end_locks(self, locks: Iterable[tuple[int, int]]) -> None:
        """End locks, each if its holder has not renewed it since it was read."""
        for row_id, until in locks:
            self._rows().filter(id=row_id, due_at=until).exclude(holder=None).update(due_at=1)

    def delay(self, row_id: int, seconds: float, headers: str) -> None:
        """Let a row of ours come back later, as one more retry, which no process has died with yet."""
        due_at = self._session.now() + round(seconds * 1000) if seconds > 0 else 0
        retries = F("retries") + 1
        self._ours([row_id]).update(due_at=due_at, holder=None, retries=retries, crashes=0, headers=headers)

    def bury(self, rows: Mapping[int, DeadDelivery]) -> None:
        """Move rows of ours to the dead letters. Must be called in a transaction."""
        ours = set(self._ours(list(rows)).select_for_update().values_list("id", flat=True))
        dead = [letter for row_id, letter in rows.items() if row_id in ours]
        DeadDelivery.objects.using(self._session.alias).bulk_create(dead, batch_size=CHUNK)
        self.delete(sorted(ours))

    def _claim_in_one(self, rooms: Mapping[int, int], limit: int, now: int, until: int) -> list[ClaimedRow]:
        parameters: dict[str, Any] = {
            "queues": list(rooms),
            "rooms": list(rooms.values()),
            "limit": limit,
            "now": now,
            "until": until,
            "holder": self._holder,
        }
        with self._session.connection.cursor() as cursor:
            cursor.execute(_CLAIM, parameters)
            return [
                ClaimedRow(row_id, queue_id, bytes(body), *rest)
                for row_id, queue_id, body, *rest in cursor.fetchall()
            ]

    def _claim_in_steps(self, rooms: Mapping[int, int], limit: int, now: int, until: int) -> list[ClaimedRow]:
        ready = self._ready_queues(rooms, now)
        if not ready:
            return []
        with self._session.writing():
            rows: list[QueuedDelivery] = []
            for queue_id in ready:
                rows += self._pick(queue_id, min(rooms[queue_id], limit - len(rows)), now)
            self._lock([row.id for row in rows], until)
        return [_claimed(row) for row in rows]

    def _ready_queues(self, queue_ids: Iterable[int], now: int) -> list[int]:
        """Return the queues that have something: one statement that locks nothing."""
        looks = [
            f"SELECT queue_id FROM (SELECT queue_id FROM {_TABLE} "  # noqa: S608 - integers
            f"WHERE queue_id = {queue_id:d} AND due_at <= {now:d} LIMIT 1) AS q{queue_id:d}"
            for queue_id in queue_ids
        ]
        with self._session.connection.cursor() as cursor:
            cursor.execute(" UNION ALL ".join(looks))
            ready = {queue_id for (queue_id,) in cursor.fetchall()}
        return [queue_id for queue_id in queue_ids if queue_id in ready]

    def _pick(self, queue_id: int, room: int, now: int) -> list[QueuedDelivery]:
        """Read up to ``room`` rows, those whose time has come before those that wait."""
        can_skip = self._session.connection.features.has_select_for_update_skip_locked
        rows = self._rows().filter(queue_id=queue_id).select_for_update(skip_locked=can_skip)
        rows = rows.order_by("due_at", "id")  # the order of the index, also where due_at is 0
        picked = list(rows.filter(due_at__gt=0, due_at__lte=now)[:room])
        if len(picked) < room:
            picked += rows.filter(due_at__lte=0)[: room - len(picked)]
        return picked

    def _lock(self, ids: Sequence[int], until: int) -> None:
        """MySQL works through the columns in this order: ``crashes`` must see the old holder."""
        crashed = Case(When(holder=None, then=Value(0)), default=Value(1))
        for chunk in _chunks(ids):
            rows = self._rows().filter(id__in=chunk)
            rows.update(crashes=F("crashes") + crashed, holder=self._holder, due_at=until)

    def _rows(self) -> QuerySet[QueuedDelivery]:
        return QueuedDelivery.objects.using(self._session.alias)

    def _ours(self, ids: Sequence[int]) -> QuerySet[QueuedDelivery]:
        return self._rows().filter(id__in=ids, holder=self._holder)

    def _execute(self, statement: str) -> None:
        with self._session.connection.cursor() as cursor:
            cursor.execute(statement)


def depths(session: Session, names: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return ``ready``, ``in_flight``, ``delayed`` and ``dead`` of those queues that have any."""
    named, later = Q(queue__name__in=list(names)), Q(due_at__gt=session.now())
    queued = QueuedDelivery.objects.using(session.alias).filter(named).values("queue__name").order_by()
    counted = queued.annotate(
        ready=Count("id", filter=~later),
        in_flight=Count("id", filter=later & ~Q(holder=None)),
        delayed=Count("id", filter=later & Q(holder=None)),
    ).values_list("queue__name", "ready", "in_flight", "delayed")
    figures: dict[str, dict[str, int]] = defaultdict(dict)
    for name, ready, in_flight, delayed in counted:
        figures[name].update(ready=ready, in_flight=in_flight, delayed=delayed)
    dead = DeadDelivery.objects.using(session.alias).filter(named).values("queue__name").order_by()
    for name, number in dead.annotate(number=Count("id")).values_list("queue__name", "number"):
        figures[name]["dead"] = number
    return figures


def read_headers(text: str) -> dict[str, Any]:
    """Return the headers that were kept as :func:`write_headers` did."""
    headers: dict[str, Any] = json.loads(text) if text else {}
    return headers


def write_headers(headers: Mapping[str, Any]) -> str:
    """Return headers as the text that is kept: ASCII, which every database takes."""
    return json.dumps(dict(headers), separators=(",", ":"))


def _claimed(row: QueuedDelivery) -> ClaimedRow:
    crashes = row.crashes + (row.holder is not None)
    return ClaimedRow(
        row.id,
        row.queue_id,
        bytes(row.body),
        row.routing_key,
        row.event_id,
        row.headers,
        row.retries,
        crashes,
    )


def _chunks(ids: Sequence[int]) -> Iterable[Sequence[int]]:
    for start in range(0, len(ids), CHUNK):
        yield ids[start : start + CHUNK]


def _parts(rows: Sequence[QueuedDelivery]) -> Iterator[list[QueuedDelivery]]:
    """Split rows so that no part has too many of them, or too large ones."""
    chunk: list[QueuedDelivery] = []
    size = 0
    for row in rows:
        size += len(row.body)
        if chunk and (size > INSERT_BYTES or len(chunk) == CHUNK):
            yield chunk
            chunk, size = [], len(row.body)
        chunk.append(row)
    if chunk:
        yield chunk
