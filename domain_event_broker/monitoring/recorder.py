"""Writes what relays and subscribers tell into a row of a board."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.monitoring.board import Column, Row
from domain_event_broker.observer import Observer
from domain_event_broker.ports import Delivery, Settlement

#: Upper bounds of the classes of durations, in seconds; above the last there is one more.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
#: How a delivery can end.
OUTCOMES = ("handled", "duplicate", "filtered", "retried", "dead-lettered", "dropped", "requeued")
#: How a delivery ends that the handler was given: only these have a duration worth knowing.
TRIED = frozenset({"handled", "retried", "dead-lettered", "dropped"})
#: What becomes of an event that a relay sends.
SENT_OUTCOMES = ("confirmed", "unroutable", "refused", "parked")

#: What there is of every worker. Moments are readings of ``time.monotonic()``, one clock for all processes
#: of a machine; 0: never.
_COMMON: tuple[Column, ...] = (
    ("silent until",),
    ("at work",),
    ("broker away since",),
    ("database away since",),
    ("reconnects",),
    ("restarts",),
)


def histogram_columns(*name: str) -> list[Column]:
    """Return the figures of a histogram: one for each class of durations, and their sum."""
    return [*((*name, str(number)) for number in range(len(BOUNDS) + 1)), (*name, "sum")]


def relay_columns() -> list[Column]:
    """Return the figures of a relay."""
    counts: list[Column] = [("sent", outcome) for outcome in SENT_OUTCOMES]
    return [*_COMMON, *counts, ("buckets",), *histogram_columns("batch")]


def subscriber_columns(handlers: Iterable[str]) -> list[Column]:
    """Return the figures of a subscriber of ``handlers``."""
    found = list(_COMMON)
    for handler in handlers:
        found += [("settled", handler, outcome) for outcome in OUTCOMES]
        found += [("in flight", handler), *histogram_columns("duration", handler)]
    return found


def ended(row: Row, handlers: Iterable[str] = ()) -> None:
    """Take note of the end of the process that wrote ``row``: what it counted stays, the rest is over."""
    gauges: list[Column] = [("at work",), ("broker away since",), ("database away since",)]
    for column in [*gauges, *(("in flight", handler) for handler in handlers)]:
        row.set(0.0, *column)


class _Recorder(Observer):
    """What is the same for both."""

    def __init__(self, row: Row, clock: Callable[[], float] = time.monotonic) -> None:
        self._row = row
        self._cells = row.cells
        self._clock = clock
        self._was_connected = False
        self._silent_until = row.place("silent until")
        self.alive()

    def alive(self, seconds: float = 0.0) -> None:
        """Note until when the worker may be silent."""
        self._cells[self._silent_until] = self._clock() + seconds

    def connected(self) -> None:
        """Count connections after the first."""
        self._row.add(self._was_connected, "reconnects")
        self._was_connected = True

    def away(self, error: BaseException) -> None:
        """Note since when it is away; trying again is going on, too."""
        self.alive()
        column = "database away since"
        if isinstance(error, BrokerUnavailable):
            # The broker is asked after the database.
            self._row.set(0.0, column)
            column = "broker away since"
        if not self._row.get(column):
            self._row.set(self._clock(), column)

    def back(self) -> None:
        """Note that nothing is away."""
        self._row.set(0.0, "broker away since")
        self._row.set(0.0, "database away since")

    def _observe(self, first: int, seconds: float) -> None:
        """Add to the histogram whose figures begin at ``first``."""
        self._cells[first + bisect_left(BOUNDS, seconds)] += 1
        self._cells[first + len(BOUNDS) + 1] += seconds


class RelayRecorder(_Recorder):
    """Writes the figures of a relay into ``row``.

    :param clock: reading of a monotonic clock, in seconds.
    """

    def __init__(self, row: Row, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(row, clock)
        self._batch = row.place("batch", "0")

    def leased(self, buckets: int) -> None:
        """Note how many buckets are ours: with the first answer of the database the relay is at work."""
        self._row.set(buckets, "buckets")
        self._row.set(1.0, "at work")

    def relayed(self, seconds: float, sent: int, unroutable: int, refused: int, parked: int) -> None:
        """Count a batch."""
        self._observe(self._batch, seconds)
        for outcome, count in zip(SENT_OUTCOMES, (sent, unroutable, refused, parked), strict=True):
            self._row.set(count, "sent", outcome)


class SubscriberRecorder(_Recorder):
    """Writes the figures of a subscriber into ``row``.

    :param handlers: names of the handlers that it runs.
    :param clock: reading of a monotonic clock, in seconds.
    """

    def __init__(
        self, row: Row, handlers: Sequence[str], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(row, clock)
        self._in_flight = {name: row.place("in flight", name) for name in handlers}
        self._durations = {name: row.place("duration", name, "0") for name in handlers}
        self._settled = {
            (name, outcome): row.place("settled", name, outcome) for name in handlers for outcome in OUTCOMES
        }

    def connected(self) -> None:
        """Begin anew with what is in flight: what was comes back over the new connection."""
        super().connected()
        self._forget_in_flight()
        self._row.set(1.0, "at work")

    def away(self, error: BaseException) -> None:
        """The same when the connection was lost."""
        super().away(error)
        self._forget_in_flight()

    def received(self, deliveries: Sequence[Delivery]) -> None:
        """Count what is in flight."""
        for each in deliveries:
            self._cells[self._in_flight[each.queue]] += 1

    def settled(self, settlements: Sequence[Settlement]) -> None:
        """Count how deliveries ended, and how long that took."""
        cells = self._cells
        for each in settlements:
            queue, outcome = each.delivery.queue, each.outcome
            cells[self._in_flight[queue]] -= 1
            cells[self._settled[queue, outcome]] += 1
            if outcome in TRIED:
                self._observe(self._durations[queue], each.seconds)

    def _forget_in_flight(self) -> None:
        for place in self._in_flight.values():
            self._cells[place] = 0.0
