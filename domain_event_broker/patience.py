"""What a worker does while it waits: for a stop, and for a broker or a database that is away."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable

#: Longest sleep in one piece, in seconds: a stop waits no longer to be noticed.
SLICE_SECONDS = 0.1
#: Seconds before the first new try, and after which an outage is told of once more.
FIRST_SECONDS, REMIND_SECONDS = 0.2, 60.0
#: Kinds of lines that are remembered as said.
KINDS_REMEMBERED = 1000


class StopFlag:
    """Says that a worker shall stop; may be set from another thread or from a signal handler.

    Not a ``threading.Event``: its lock may be held by the very code that a signal interrupts,
    and setting it there would wait for ever.
    """

    def __init__(self) -> None:
        self._is_set = False

    def set(self) -> None:
        """Ask for the stop."""
        self._is_set = True

    def is_set(self) -> bool:
        """Whether the stop was asked for."""
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Sleep for ``seconds``, or until the stop; tell whether it was asked for."""
        end = time.monotonic() + seconds
        while not self._is_set and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, SLICE_SECONDS))
        return self._is_set


class News:
    """Tells of an outage: once at its start, each minute that it lasts, and that it is over. For any thread.

    :param log: where it is told.
    :param clock: reading of a monotonic clock, in seconds.
    :param calm: seconds after the end of an outage in which nothing new is said: several threads that run
        into one each come to know of its end at another time.
    """

    def __init__(
        self, log: logging.Logger, clock: Callable[[], float] = time.monotonic, calm: float = 0.0
    ) -> None:
        self._log = log
        self._clock = clock
        self._calm = calm
        self._lock = threading.Lock()
        self._told_at: float | None = None
        self._over_at: float | None = None

    def bad(self, error: BaseException) -> None:
        """Take note of a failure."""
        if self._is_news():
            self._log.error("%s; trying again until it is back", error)
        else:
            self._log.debug("still away: %s", error)

    def good(self) -> bool:
        """Take note that all is well; tell whether that is news, too."""
        with self._lock:
            was_told = self._told_at is not None and self._over_at is None
            self._over_at = self._clock()
            return was_told

    def _is_news(self) -> bool:
        with self._lock:
            now = self._clock()
            begins = self._over_at is not None and now - self._over_at >= self._calm
            if self._told_at is not None and not begins and now - self._told_at < REMIND_SECONDS:
                return False
            self._told_at, self._over_at = now, None
            return True


class Outage:
    """Counts failures in a row, and says how long to wait and whether to speak of it.

    :param log: where the outage is told of: at once, and each minute that it lasts.
    :param longest: longest wait between two tries, in seconds.
    :param clock: reading of a monotonic clock, in seconds.
    :param news: tells of the outage, where others run into the same one.
    """

    def __init__(
        self,
        log: logging.Logger,
        longest: float,
        clock: Callable[[], float] = time.monotonic,
        news: News | None = None,
    ) -> None:
        self._longest = longest
        self._failures = 0
        self._news = news or News(log, clock)

    def failed(self, error: BaseException) -> float:
        """Take note of a failure; return seconds to wait before the next try."""
        self._failures += 1
        self._news.bad(error)
        seconds = min(FIRST_SECONDS * 2.0 ** min(self._failures - 1, 20), self._longest)
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads reconnects, no secret

    def over(self) -> bool:
        """Take note that all is well; tell whether it was not, and nobody has said so yet."""
        was_away, self._failures = self._failures > 0, 0
        return was_away and self._news.good()


class Repetition:
    """Keeps what is said for many events alike from filling a log: a line a minute of each kind is enough.

    :param clock: reading of a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}

    def left_out(self, kind: str) -> int | None:
        """Return how many of this kind were left out since the last; ``None``: leave this one out, too."""
        now = self._clock()
        told_at, more = self._said.get(kind, (None, 0))
        if told_at is not None and now - told_at < REMIND_SECONDS:
            self._said[kind] = (told_at, more + 1)
            return None
        if len(self._said) >= KINDS_REMEMBERED:
            self._said.clear()
        self._said[kind] = (now, 0)
        return more
