"""How many events were sent lately, read from the archive without counting it.

The archive may hold millions of events of one day. So what is read is bounded: the newest
``COUNTED`` times of sending, each from the index on them. If that does not reach back far enough,
the number of events between two moments is told from the ids that the archive gave out between
them, one look into the index for each moment. That costs relays nothing.
"""

# ruff: noqa: S608 - statements are put together from names of ours and integers; the rest are parameters

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import pairwise

from django.db import Error, connections

from domain_event_broker.django.database import to_field, to_parameter, unavailable, unix_time
from domain_event_broker.django.models import ArchivedEvent
from domain_event_broker.django.rows import ARCHIVE

#: Times of sending that are read one by one; figures beyond are estimated.
COUNTED = 10_000
#: Rows by which it is told how many of the ids in the archive have a row.
SAMPLE = 1_000


@dataclass(frozen=True, slots=True)
class Slice:
    """Events sent in a part of a period.

    :param starts_at: aware, in UTC.
    """

    starts_at: datetime
    count: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """Events sent in a period that ends now, cut into slices; the last one is not over yet.

    :param slice_seconds: length of a slice.
    :param exact: whether events were counted; else the figures are near the truth.
    """

    slices: tuple[Slice, ...]
    slice_seconds: int
    exact: bool

    @property
    def total(self) -> int:
        """Events of the whole period."""
        return sum(each.count for each in self.slices)

    @property
    def highest(self) -> int:
        """Events of the busiest slice."""
        return max((each.count for each in self.slices), default=0)


def throughput(alias: str, periods: Sequence[tuple[int, int]]) -> list[Throughput]:
    """Return the events sent in each of ``periods``, by the clock of the database.

    :param alias: the database of the outbox. Without an archive (``ARCHIVE_DAYS`` is 0), or for a
        period longer than it keeps, there is nothing to be found.
    :param periods: for each, the number of slices and the seconds of a slice.
    :raises OutboxNotMigrated: the archive does not exist.
    :raises OutboxUnavailable: the database is away.
    """
    try:
        now = unix_time(connections[alias])
        bounds = [_bounds(now, slices, seconds) for slices, seconds in periods]
        times, complete = _newest_times(alias, min(each[0] for each in bounds))
        reaches_back_to = 0.0 if complete else times[-1]
        return [
            _counted(each, times) if reaches_back_to < each[0] else _estimated(alias, each) for each in bounds
        ]
    except Error as error:
        raise unavailable(alias, error) from error


def _bounds(now: float, slices: int, seconds: int) -> list[int]:
    """Return where slices begin, at whole minutes or hours, and where the last one ends."""
    end = int(now // seconds + 1) * seconds
    return [end - number * seconds for number in range(slices, -1, -1)]


def _newest_times(alias: str, since: int) -> tuple[list[float], bool]:
    """Return when the newest events were sent, newest first, and whether these are all since then."""
    sent = ArchivedEvent.objects.using(alias).filter(published_at__gte=to_field(_moment(since)))
    times = list(sent.order_by("-published_at").values_list("published_at", flat=True)[:COUNTED])
    return [each.timestamp() for each in times], len(times) < COUNTED


def _counted(bounds: Sequence[int], times: Sequence[float]) -> Throughput:
    step = bounds[1] - bounds[0]
    found = Counter(int(each - bounds[0]) // step for each in times if each >= bounds[0])
    return _throughput(bounds, [found[number] for number in range(len(bounds) - 1)], exact=True)


def _estimated(alias: str, bounds: Sequence[int]) -> Throughput:
    """Tell the numbers from ids. Some ids have no row, more on some databases: a sample says how many."""
    given, share = _ids_at(alias, bounds), _share_of_ids(alias)
    counts = [round(max(0, end - start) * share) for start, end in pairwise(given)]
    return _throughput(bounds, counts, exact=False)


def _throughput(bounds: Sequence[int], counts: Sequence[int], exact: bool) -> Throughput:
    slices = tuple(Slice(_moment(start), count) for start, count in zip(bounds, counts, strict=False))
    return Throughput(slices, bounds[1] - bounds[0], exact)


def _ids_at(alias: str, bounds: Sequence[int]) -> list[int]:
    """Return, for each moment, the id of the first event that was sent from then on."""
    connection = connections[alias]
    first = f"(SELECT id FROM {ARCHIVE} WHERE published_at >= %s ORDER BY published_at LIMIT 1)"
    newest = f"(SELECT max(id) FROM {ARCHIVE})"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT {', '.join([newest, *[first] * len(bounds)])}",
            [to_parameter(connection, each) for each in bounds],
        )
        last, *found = cursor.fetchone()
    return [(last or 0) + 1 if each is None else each for each in found]


def _share_of_ids(alias: str) -> float:
    """Return the share of ids that have a row, among the newest."""
    newest = f"SELECT id FROM {ARCHIVE} ORDER BY id DESC LIMIT {SAMPLE}"
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT count(*), min(id), max(id) FROM ({newest}) newest")
        count, lowest, highest = cursor.fetchone()
    return float(count / (highest - lowest + 1)) if count else 1.0


def _moment(unix: float) -> datetime:
    return datetime.fromtimestamp(unix, timezone.utc)
