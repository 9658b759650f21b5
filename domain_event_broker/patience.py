"""What a worker does while it waits: for a stop, and for a broker or a database that is away."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

#: Longest sleep in one piece, in seconds: a stop waits no longer to be noticed.
SLICE_SECONDS = 0.1
#: Seconds before the first new try, and after which an outage is told of once more.
FIRST_SECONDS, REMIND_SECONDS = 0.2, 60.0


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


class Outage:
    """Counts failures in a row, and says how long to wait and whether to speak of it.

    :param log: where the outage is told of: at once, and each minute that it lasts.
    :param longest: longest wait between two tries, in seconds.
    :param clock: reading of a monotonic clock, in seconds.
    """

    def __init__(
        self, log: logging.Logger, longest: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._longest = longest
        self._clock = clock
        self._failures = 0
        self._told_at: float | None = None

    def failed(self, error: BaseException) -> float:
        """Take note of a failure; return seconds to wait before the next try."""
        self._failures += 1
        now = self._clock()
        if self._told_at is None or now - self._told_at >= REMIND_SECONDS:
            self._told_at = now
            self._log.error("%s; trying again until it is back", error)
        else:
            self._log.debug("still away: %s", error)
        seconds = min(FIRST_SECONDS * 2.0 ** min(self._failures - 1, 20), self._longest)
        return seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads reconnects, no secret

    def over(self) -> bool:
        """Take note that all is well; tell whether it was not."""
        was_away = self._failures > 0
        self._failures, self._told_at = 0, None
        return was_away
