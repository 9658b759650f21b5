"""Where a scan of the hot table may begin: the arithmetic alone, no database.

The rows that were sent stay in the index of PostgreSQL until vacuum may remove them, which a
long transaction anywhere can put off for hours. A scan that began at id 0 each time would wade
through all of them. But ids are given before transactions commit, so one that is lower than
all that were seen may still appear, and must be sent before the later ones of its key.

So the bound moves up only when that is impossible: to an id seen at a time when every
transaction that was running then has ended since, and after one more scan from the old bound.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

#: Seconds between two looks at which transactions are running, and between seeing an id and
#: asking who may still hold a lower one: a transaction takes its id a moment before it shows.
LOOK_SECONDS = 0.5

#: Seconds between two scans without a bound: the net for what the reasoning above does not
#: know of, such as a sequence of ids that was set back by hand.
SWEEP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Candidate:
    row_id: int
    next_transaction: int


class ScanBound:
    """Tells from which id on to scan; every row at or below the bound has been dealt with.

    :param clock: reading of a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._unsettled: set[int] = set()
        self._swept_at = clock()
        self.reset()

    def reset(self) -> None:
        """Begin anew from id 0: our buckets changed, or rows came back with the ids they had."""
        self._low = 0
        self._reached = 0
        self._reached_at_last_look = 0
        self._confirmed = 0
        self._candidate: _Candidate | None = None
        self._look_at = self._clock() + LOOK_SECONDS
        self._unsettled.clear()

    def start(self) -> int:
        """Return the id after which the next scan begins."""
        if self._clock() - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = self._clock()
            return 0
        return min(self._low, self._lowest_unsettled())

    def fetched(self, row_ids: Sequence[int], is_full: bool) -> None:
        """Take note of a scan's result, in the order of the ids.

        :param is_full: the scan ended because of its limit, not because there was no more.
        """
        last = row_ids[-1] if row_ids else self._reached
        beyond = {row_id for row_id in self._unsettled if row_id > last} if is_full else set()
        self._unsettled = beyond.union(row_ids)
        if self._confirmed:
            self._low = max(self._low, min(self._confirmed, last) if is_full else self._confirmed)
            self._confirmed = 0
        self._reached = max(self._reached, last)

    def settled(self, row_ids: Iterable[int]) -> None:
        """Take note that rows have left the hot table."""
        self._unsettled.difference_update(row_ids)

    def wants_a_look(self) -> bool:
        """Tell whether :meth:`look` would get any further now."""
        return self._reached > self._low and self._clock() >= self._look_at

    def look(self, oldest_running: int, next_transaction: int) -> None:
        """Take note of the transactions that are running.

        :param oldest_running: number of the oldest transaction under way; all before it ended.
        :param next_transaction: number that the next new one gets.
        """
        self._look_at = self._clock() + LOOK_SECONDS
        if self._candidate is not None and oldest_running >= self._candidate.next_transaction:
            self._confirmed, self._candidate = self._candidate.row_id, None
        if self._candidate is None and self._reached_at_last_look > max(self._low, self._confirmed):
            self._candidate = _Candidate(self._reached_at_last_look, next_transaction)
        self._reached_at_last_look = self._reached

    def _lowest_unsettled(self) -> int:
        return min(self._unsettled) - 1 if self._unsettled else self._low
