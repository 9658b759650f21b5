"""The dead letters of the ``database:`` transport."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from django.db.models import QuerySet

from domain_event_broker.django.transport_models import DeadDelivery, QueuedDelivery
from domain_event_broker.django.transport_rows import DeliveryRows, read_headers, write_headers
from domain_event_broker.django.transport_session import Session
from domain_event_broker.events import HEADER_REPLAYS
from domain_event_broker.failures import Failure, History, without_failure
from domain_event_broker.ports import DeadLetter, Decision, SiftReport

#: Dead letters that are read at once.
PAGE = 50
#: Seconds for which decisions about dead letters are gathered before they are carried out.
GATHER_SECONDS = 0.2


class DatabaseDeadLetters:
    """The dead letters of one handler; see :class:`~domain_event_broker.ports.DeadLetters`.

    Unlike the rest of the transport they may be used inside a transaction: what is done then
    lives and dies with it.
    """

    def __init__(self, session: Session, rows: DeliveryRows, queue: str) -> None:
        self._session = session
        self._rows = rows
        self._queue = queue

    def count(self) -> int:
        """See :class:`~domain_event_broker.ports.DeadLetters`."""
        return self._session.run(self._letters().count)

    def sift(self, decide: Callable[[DeadLetter], Decision], limit: int | None = None) -> SiftReport:
        """See :class:`~domain_event_broker.ports.DeadLetters`.

        Decisions are carried out together, a few at a time, also those taken before ``decide``
        raised.
        """
        done: Counter[Decision] = Counter()
        gathered: list[tuple[DeadDelivery, Decision]] = []
        began = time.monotonic()
        try:
            for row in itertools.islice(self._present(), limit):
                gathered.append((row, Decision(decide(_dead_letter(self._queue, row)))))
                if len(gathered) >= PAGE or time.monotonic() - began > GATHER_SECONDS:
                    done += self._carry_out(gathered)
                    began = time.monotonic()
        finally:
            done += self._carry_out(gathered)
        return SiftReport(done[Decision.RETRY], done[Decision.DISCARD], done[Decision.LEAVE])

    def _letters(self) -> QuerySet[DeadDelivery]:
        letters = DeadDelivery.objects.using(self._session.alias)
        return letters.filter(queue__name=self._queue).order_by("id")

    def _present(self) -> Iterator[DeadDelivery]:
        """Yield the letters that are there now; later ones have higher ids."""
        newest = self._session.run(lambda: self._letters().values_list("id", flat=True).last())
        last = 0
        while newest is not None and last < newest:
            page = self._read_page(last, newest)
            yield from page
            last = page[-1].id if page else newest

    def _read_page(self, after: int, newest: int) -> list[DeadDelivery]:
        return self._session.run(lambda: list(self._letters().filter(id__gt=after, id__lte=newest)[:PAGE]))

    def _carry_out(self, gathered: list[tuple[DeadDelivery, Decision]]) -> Counter[Decision]:
        """Do as was decided, in one transaction: killed in it, the letters are where they were."""
        decisions, gathered[:] = gathered[:], []
        done: Counter[Decision] = Counter(each for _, each in decisions if each is Decision.LEAVE)
        moving = {row.id: (row, each) for row, each in decisions if each is not Decision.LEAVE}
        if moving:
            done += self._session.run(lambda: self._move(moving))
        return done

    def _move(self, moving: Mapping[int, tuple[DeadDelivery, Decision]]) -> Counter[Decision]:
        with self._session.writing():
            letters = DeadDelivery.objects.using(self._session.alias).filter(id__in=list(moving))
            # Another replay may have been faster: only what is still there is ours to move.
            present = sorted(letters.select_for_update().values_list("id", flat=True))
            rows = [moving[row_id] for row_id in present]
            again = [_replayed(row) for row, decision in rows if decision is Decision.RETRY]
            self._rows.insert(again)
            letters.filter(id__in=present).delete()
        return Counter(decision for _, decision in rows)


def _dead_letter(queue: str, row: DeadDelivery) -> DeadLetter:
    headers = read_headers(row.headers)
    return DeadLetter(
        queue=queue,
        body=bytes(row.body),
        routing_key=row.routing_key,
        event_id=row.event_id,
        headers=headers,
        failure=Failure.from_headers(headers),
        replays=headers.get(HEADER_REPLAYS, 0),
    )


def _replayed(row: DeadDelivery) -> QueuedDelivery:
    """Return a row with which the event of a dead letter starts anew."""
    headers = read_headers(row.headers)
    past = History.after(headers, Failure.from_headers(headers))
    replays = headers.get(HEADER_REPLAYS, 0) + 1
    headers = {**without_failure(headers), HEADER_REPLAYS: replays, **past.to_headers()}
    return QueuedDelivery(
        queue_id=row.queue_id,
        event_id=row.event_id,
        routing_key=row.routing_key,
        body=bytes(row.body),
        headers=write_headers(headers),
    )
