"""Back-fill: sent events go once more, from the archive into the queue of one handler.

For a handler that is newer than the events it needs. Nobody else sees them again: they do not pass
the exchange. They go in the order in which they were sent, each batch confirmed by the broker before
it is noted as done, so that a process killed at any moment leaves a back-fill that can be gone on
with: nothing is left out, and at most one batch comes twice, which the inbox absorbs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from django.db import Error, router, transaction
from django.db.models import F, QuerySet
from django.utils import timezone

from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.backfill_models import Backfill
from domain_event_broker.django.database import to_field, unavailable
from domain_event_broker.django.models import ArchivedEvent, InboxEntry
from domain_event_broker.errors import PublishFailed, UnsupportedOption
from domain_event_broker.ports import Addressing, Stored
from domain_event_broker.routing import check_binding_key, matches
from domain_event_broker.transports import open_transport

#: Archived events of which the routing key is read at once.
PAGE = 5_000
#: Events that are sent at once, and bytes of their bodies: what the process has in memory.
BATCH, BATCH_BYTES = 500, 8 * 1024 * 1024
#: Events of the first batch; the length of a next one goes by the bodies of the one before.
FIRST_BATCH = 20


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which sent events are meant; what is not given does not matter.

    :param binding_keys: keys one of which the routing key must match, such as those of the handler.
    :param since: sent at this (aware) time or later.
    :param until: sent before this (aware) time.
    :param ordering_key: the ``domain_object_id``.
    :param correlation_id: the story that they are part of.
    :raises HandlerError: a key is no binding key.
    """

    binding_keys: tuple[str, ...]
    since: datetime | None = None
    until: datetime | None = None
    ordering_key: str = ""
    correlation_id: str = ""

    def __post_init__(self) -> None:
        for key in self.binding_keys:
            check_binding_key(key)

    @classmethod
    def by(cls, backfill: Backfill) -> Chosen:
        """Return what a back-fill is for."""
        return cls(
            backfill.keys, backfill.since, backfill.until, backfill.ordering_key, backfill.correlation_id
        )

    def rows(self, alias: str) -> QuerySet[ArchivedEvent]:
        """Return the archived events, but for what their routing keys say."""
        rows = ArchivedEvent.objects.using(alias).order_by("pk")
        if self.since is not None:
            rows = rows.filter(published_at__gte=_field(self.since))
        if self.until is not None:
            rows = rows.filter(published_at__lt=_field(self.until))
        if self.ordering_key:
            rows = rows.filter(ordering_key=self.ordering_key)
        return rows.filter(correlation_id=self.correlation_id) if self.correlation_id else rows

    def accepts(self, routing_key: str) -> bool:
        """Tell whether events with this routing key are meant."""
        return any(matches(key, routing_key) for key in self.binding_keys)


@dataclass(frozen=True, slots=True)
class Count:
    """How many events a back-fill would send.

    :param complete: ``False``: the time was up, there are so many or more.
    """

    events: int
    complete: bool = True


def count(alias: str, chosen: Chosen, seconds: float | None = None) -> Count:
    """Count the archived events that are meant; nothing is changed.

    :param seconds: how long to go on counting; ``None``: to the end.
    :raises OutboxUnavailable: the database is away.
    """
    end = None if seconds is None else time.monotonic() + seconds
    found = 0
    with _database(alias):
        for page in _pages(chosen.rows(alias), 0, None):
            found += sum(chosen.accepts(routing_key) for _, routing_key in page)
            if end is not None and time.monotonic() > end:
                return Count(found, complete=False)
    return Count(found)


def begin(alias: str, handler: str, chosen: Chosen, *, force: bool, expected: int, by: str) -> Backfill:
    """Write down that a back-fill begins; :func:`go_on` does it.

    It is for the events that are in the archive now. Those that are sent from now on come to the
    handler by themselves, if its queue is bound.

    :param force: let the inbox forget that the handler took effect for these events before.
    :param expected: how many there are, for those who watch.
    :param by: who began it.
    :raises PublishFailed: another one of this handler is unfinished, perhaps since a moment ago.
    :raises OutboxUnavailable: the database is away.
    """
    now = timezone.now()
    with _database(alias):
        newest = ArchivedEvent.objects.using(alias).order_by("-pk").values_list("pk", flat=True).first()
        begun = Backfill.objects.using(alias).create(
            handler=handler,
            binding_keys=json.dumps(chosen.binding_keys),
            since=_field(chosen.since),
            until=_field(chosen.until),
            ordering_key=chosen.ordering_key,
            correlation_id=chosen.correlation_id,
            force=force,
            expected=expected,
            up_to=newest or 0,
            begun_by=by,
            begun_at=now,
            moved_at=now,
        )
        _withdraw_if_second(begun)
    return begun


def _withdraw_if_second(begun: Backfill) -> None:
    """Take back what was begun twice, by two clicks or two people: each event would be forgotten twice.

    Each looks after its own row is committed, so one of them sees the other; at worst, both withdraw.
    """
    others = Backfill.objects.using(begun._state.db).filter(handler=begun.handler, ended_at=None)
    if others.exclude(pk=begun.pk).exists():
        begun.delete()
        raise PublishFailed(
            f"another back-fill of {begun.handler!r} is unfinished: go on with that one, or give it up first"
        )


def unfinished(alias: str, handler: str | None = None) -> list[Backfill]:
    """Return the back-fills that can be gone on with, of one handler or of all, the oldest first.

    :raises OutboxUnavailable: the database is away.
    """
    with _database(alias):
        found = Backfill.objects.using(alias).filter(ended_at=None).order_by("pk")
        return list(found if handler is None else found.filter(handler=handler))


def give_up(backfill: Backfill) -> None:
    """Let a back-fill end where it is; what was sent stays sent.

    :raises OutboxUnavailable: the database is away.
    """
    alias = str(backfill._state.db)
    with _database(alias):
        unended = Backfill.objects.using(alias).filter(pk=backfill.pk, ended_at=None)
        unended.update(ended_at=timezone.now(), given_up=True)


def go_on(
    backfill: Backfill,
    settings: BrokerSettings,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[int], None] = lambda sent: None,
) -> bool:
    """Send what a back-fill has not sent yet; return whether it is done now.

    Two processes that go on with the same one do not harm: who is second stops.

    :param settings: the broker, and the time it has for answers.
    :param stop: asked before each batch.
    :param progress: called after each with the number of events sent so far.
    :raises PublishFailed: the queue of the handler is missing, or refuses an event. It stays unfinished.
    :raises BrokerUnavailable: the broker went away. It stays unfinished, as it does for
    :raises OutboxUnavailable: the database went away.
    :raises UnsupportedOption: the transport cannot do it.
    """
    transport = open_transport(settings)
    try:
        if not hasattr(transport, "send_to"):
            raise UnsupportedOption(
                f"{settings.masked_url} cannot put events into the queue of one handler; "
                "publish them again instead, to all that subscribe"
            )
        return _Run(backfill, cast(Addressing, transport), stop, progress).run()
    finally:
        transport.close()


class _Run:
    """One process that works on a back-fill."""

    def __init__(
        self,
        backfill: Backfill,
        transport: Addressing,
        stop: Callable[[], bool],
        progress: Callable[[int], None],
    ) -> None:
        self._backfill = backfill
        self._transport = transport
        self._stop = stop
        self._progress = progress
        self._alias = str(backfill._state.db)
        self._size = FIRST_BATCH
        self._stopped = False

    def run(self) -> bool:
        """Send batch after batch; return whether all was sent, and by us."""
        chosen, backfill = Chosen.by(self._backfill), self._backfill
        rows = chosen.rows(self._alias)
        with _database(self._alias):
            for page in _pages(rows, backfill.done_to, backfill.up_to):
                if self._stop():
                    return False
                meant = [pk for pk, routing_key in page if chosen.accepts(routing_key)]
                self._send_all(meant)
                if self._stopped or not self._note(page[-1][0], 0):
                    return False
            return self._note(backfill.up_to, 0, ended_at=timezone.now())

    def _send_all(self, keys: Sequence[int]) -> None:
        start = 0
        while start < len(keys) and not self._stopped:
            batch = keys[start : start + self._size]
            start += len(batch)
            self._stopped = self._stop() or not self._send(batch)

    def _send(self, keys: Sequence[int]) -> bool:
        """Send one batch; ``False``: another process has done so meanwhile."""
        rows = list(ArchivedEvent.objects.using(self._alias).filter(pk__in=keys).order_by("pk"))
        if not rows:
            return True  # the archive forgot them meanwhile
        if self._backfill.force and not self._forget(rows):
            return False
        outcomes = self._transport.send_to(self._backfill.handler, [row.to_message() for row in rows])
        # Killed after this line, the batch is sent once more: the inbox knows its events by then.
        stored = next((n for n, each in enumerate(outcomes) if each.stored is not Stored.STORED), len(rows))
        noted = not stored or self._note(rows[stored - 1].pk, stored)
        if stored < len(rows):
            reason = outcomes[stored].reason or "there is no such queue (use declare_queues)"
            raise PublishFailed(
                f"event {rows[stored].event_id} cannot go to queue {self._backfill.handler!r}: {reason}"
            )
        size = sum(len(row.body) for row in rows) // len(rows)
        self._size = max(1, min(BATCH, BATCH_BYTES // max(1, size)))
        return noted

    def _forget(self, rows: Sequence[ArchivedEvent]) -> bool:
        """Let the inbox forget events, before they are sent, and each of them once.

        What was forgotten and may have been sent by a process that was killed is not forgotten again:
        the handler may have taken effect since.
        """
        backfill = self._backfill
        fresh = [row for row in rows if row.pk > backfill.forgotten_to]
        if not fresh:
            return True
        entries = InboxEntry.objects.using(router.db_for_write(InboxEntry)).filter(
            consumer=backfill.handler, event_id__in=self._not_forgotten(fresh)
        )
        with transaction.atomic(using=self._alias):
            # First: it locks the row, so that of two processes the second forgets nothing. Where the inbox is
            # in another database, one killed before the COMMIT has forgotten what it will forget again; it
            # had not been sent.
            if not self._change(forgotten_to=fresh[-1].pk):
                return False
            entries.delete()
        backfill.forgotten_to = fresh[-1].pk
        return True

    def _not_forgotten(self, fresh: Sequence[ArchivedEvent]) -> list[str]:
        """Return the ids of events that no earlier batch had: one published again is in the archive twice."""
        ids = {row.event_id for row in fresh}
        backfill = self._backfill
        before = Chosen.by(backfill).rows(self._alias).filter(event_id__in=ids, pk__lte=backfill.forgotten_to)
        return sorted(ids.difference(before.values_list("event_id", flat=True)))

    def _note(self, done_to: int, sent: int, **changes: Any) -> bool:
        """Write down how far it is; ``False``: another process works on it, or it was given up."""
        backfill = self._backfill
        if not self._change(done_to=done_to, sent=F("sent") + sent, moved_at=timezone.now(), **changes):
            return False
        backfill.done_to = done_to
        backfill.sent += sent
        self._progress(backfill.sent)
        return True

    def _change(self, **changes: Any) -> bool:
        """Change the row, unless somebody else did since we read it."""
        backfill = self._backfill
        unchanged = Backfill.objects.using(self._alias).filter(
            pk=backfill.pk, done_to=backfill.done_to, forgotten_to=backfill.forgotten_to, ended_at=None
        )
        return bool(unchanged.update(**changes))


def _pages(rows: QuerySet[ArchivedEvent], after: int, up_to: int | None) -> Iterator[list[tuple[int, str]]]:
    """Yield the keys of rows with their routing keys, in order: bodies are read for what is sent only."""
    if up_to is not None:
        rows = rows.filter(pk__lte=up_to)
    while page := list(rows.filter(pk__gt=after).values_list("pk", "routing_key")[:PAGE]):
        yield page
        after = page[-1][0]


def _field(moment: datetime | None) -> datetime | None:
    """Return a moment as the columns have it; one that was read from a column is so already."""
    return moment if moment is None or timezone.is_naive(moment) else to_field(moment)


@contextmanager
def _database(alias: str) -> Iterator[None]:
    try:
        yield
    except Error as error:
        raise unavailable(alias, error) from error
