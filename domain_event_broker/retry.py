"""When a failed event is tried again: pure decisions, no clock, no broker."""

from __future__ import annotations

import logging
import math
import random as _random
from collections.abc import Callable
from dataclasses import dataclass

from domain_event_broker.errors import HandlerError, Retry

logger = logging.getLogger("domain_event_broker.subscriber")

#: Longest delay, in seconds: a broker keeps a time-to-live in milliseconds as 32 bits.
MAX_DELAY = 24 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before each retry.

    Made with :meth:`fixed` or :meth:`exponential`.

    :param base: seconds before the first retry.
    :param factor: each further delay is this many times the one before.
    :param max: no delay is longer than this many seconds.
    :param jitter: share by which a delay may be shortened or lengthened at random, 0 to 1,
        so that events that failed together do not come back together.
    """

    base: float
    factor: float = 1.0
    max: float = MAX_DELAY
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not (0 <= self.base <= MAX_DELAY and self.factor >= 1 and 0 <= self.jitter <= 1 and self.max >= 0):
            raise HandlerError(
                f"{self!r} cannot be served: base must be 0 to {MAX_DELAY:.0f} seconds, "
                "factor 1 or more, max 0 or more, jitter 0 to 1"
            )

    @classmethod
    def fixed(cls, delay: float, jitter: float = 0.0) -> Backoff:
        """The same delay, in seconds, before each retry."""
        return cls(base=delay, jitter=jitter)

    @classmethod
    def exponential(
        cls, base: float, factor: float = 2.0, max: float = 3600.0, jitter: float = 0.1
    ) -> Backoff:
        """``base``, ``base * factor``, ``base * factor**2``, ... seconds, at most ``max``."""
        return cls(base=base, factor=factor, max=max, jitter=jitter)

    def nominal(self, attempt: int) -> float:
        """Return the delay before retry number ``attempt`` (from 1) without jitter, in seconds."""
        try:
            delay = self.base * self.factor ** (attempt - 1)
        except OverflowError:
            delay = self.max
        return min(delay, self.max, MAX_DELAY)

    def delay(self, attempt: int, random: Callable[[], float] = _random.random) -> float:
        """Return the delay before retry number ``attempt`` (from 1), in seconds."""
        nominal = self.nominal(attempt)
        return min(nominal * (1 + self.jitter * (2 * random() - 1)), MAX_DELAY)


#: Used where ``retry_on`` is declared and no backoff is.
DEFAULT_BACKOFF = Backoff.exponential(1.0, max=300.0)


#: Decides itself: gets the number of the retry (from 1) and the error, and returns seconds until
#: the next delivery, or ``None`` for the dead letters.
BackoffFunction = Callable[[int, BaseException], "float | None"]


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Which failures of a handler are retried, how often, and when.

    :param max_retries: retries after the first delivery; the handler is called at most
        ``max_retries + 1`` times per event.
    :param retry_on: exceptions that lead to a retry. Empty: any exception if a backoff is
        declared, else none but :class:`~domain_event_broker.Retry`, which always does.
    :param backoff: delays for the exceptions of ``retry_on``, or a function that decides.
    """

    max_retries: int = 0
    retry_on: tuple[type[BaseException], ...] = ()
    backoff: Backoff | BackoffFunction | None = None

    def covers(self, error: BaseException) -> bool:
        """Tell whether ``error`` leads to a retry, as long as retries are left."""
        if isinstance(error, Retry):
            return True
        if self.retry_on:
            return isinstance(error, self.retry_on)
        return self.backoff is not None and isinstance(error, Exception)

    def next_delay(self, error: BaseException, retries: int) -> float | None:
        """Return seconds until the next delivery, or ``None``: to the dead letters.

        :param retries: retries that the event had before this failure.
        """
        if retries >= self.max_retries or not self.covers(error):
            return None
        if isinstance(error, Retry):
            return _asked_for(error)
        backoff = self.backoff or DEFAULT_BACKOFF
        if isinstance(backoff, Backoff):
            return backoff.delay(retries + 1)
        return _decided_by(backoff, retries + 1, error)

    def known_delays(self) -> tuple[float, ...]:
        """Return the delays that can be told before any failure, in seconds, ascending."""
        backoff = self.backoff or (DEFAULT_BACKOFF if self.retry_on else None)
        if not isinstance(backoff, Backoff) or self.max_retries < 1:
            return ()
        attempts = range(1, min(self.max_retries, 64) + 1)
        return tuple(sorted({backoff.nominal(attempt) for attempt in attempts}))


def _decided_by(function: BackoffFunction, attempt: int, error: BaseException) -> float | None:
    """Return what a function of the project's own decides; the default if it fails or makes no sense.

    It is called when the handler has failed already: a second failure must not cost the event its retry.
    """
    try:
        delay = function(attempt, error)
        if delay is None or (not isinstance(delay, bool) and 0 <= delay < math.inf):
            return None if delay is None else min(float(delay), MAX_DELAY)
        problem = f"returned {delay!r}"
    except Exception as failure:
        problem = f"raised {failure!r}"
    default = DEFAULT_BACKOFF.delay(attempt)
    logger.error("backoff %r %s for retry %d; it waits %.1f s", function, problem, attempt, default)
    return default


def _asked_for(error: Retry) -> float:
    """Return the delay of a ``Retry``, in seconds; the default if a subclass left out or spoiled it."""
    delay = getattr(error, "delay", None)
    if isinstance(delay, (int, float)) and 0 <= delay < math.inf:
        return min(float(delay), MAX_DELAY)
    return Retry().delay
