"""Time limits of handlers: what happens to one that is not back in time.

Python cannot end a thread. What can be done from outside, and in which cases it works:

1. An exception is raised in the thread of the handler, as Ctrl-C would in the main thread. It
   arrives as soon as the thread executes Python code
   (https://docs.python.org/3/c-api/threads.html, ``PyThreadState_SetAsyncExc``). A coroutine is
   cancelled.
2. What the thread waits for outside of Python is cancelled where somebody knows how: the inbox
   does so with a statement that the database is busy with.
3. A handler that neither reaches is *stuck*. Only the end of its process ends it, so whoever runs
   it is told, and leaves.

Whichever it is, what began in time and ended late counts as failed, and its transaction is never
committed: the limit is looked at once more, under a lock, before the handler may have succeeded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import TypeVar

from domain_event_broker.errors import HandlerTimeout

Result = TypeVar("Result")

logger = logging.getLogger("domain_event_broker.subscriber")

#: Seconds that a handler has to come back when its time is up, before it counts as stuck.
STUCK_SECONDS = 5.0
#: Seconds after which a watchdog with nothing to watch ends its thread.
IDLE_SECONDS = 1.0


class TimeIsUp(BaseException):
    """Raised in a handler's thread. No ``Exception``: a handler that catches those shall end, too."""


class Attempt:
    """One call of a handler that has a limit of time. To be used once.

    :param seconds: the limit.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.is_fresh = True
        self._guard = threading.Lock()
        self._interrupt: Callable[[], None] | None = None
        self._cancels: list[Callable[[], None]] = []
        self._is_over = False
        self._stuck = False

    @property
    def is_over(self) -> bool:
        """Whether the time was up before the handler was back."""
        return self._is_over

    @property
    def is_under_way(self) -> bool:
        """Whether the handler has begun, and is not back."""
        return self._interrupt is not None

    @property
    def is_stuck(self) -> bool:
        """Whether the handler was told, and did not come back."""
        return self._stuck and self._interrupt is not None

    def on_expiry(self, cancel: Callable[[], None]) -> None:
        """Call ``cancel`` from another thread when the time is up and the handler not back."""
        self._cancels.append(cancel)

    def call(self, function: Callable[[], Result]) -> Result:
        """Call ``function``, and interrupt it in this thread when the time is up.

        :raises HandlerTimeout: the time was up, whatever the function did then.
        :raises TimeIsUp: the same, come in the moment at which it ended by itself.
        """
        ident = threading.get_ident()
        self.begin(lambda: _raise_in(ident, TimeIsUp))
        try:
            result = function()
            is_late = self.end()
        except BaseException as error:
            if self.end():
                _raise_in(ident, None)  # it may be on its way still
                raise self.error() from _cause(error)
            raise
        if is_late:
            _raise_in(ident, None)
            raise self.error()
        return result

    def expire(self) -> None:
        """Interrupt the handler, unless it is back; the watchdog calls this when the time is up."""
        with self._guard:
            if self._interrupt is None or self._is_over:
                return
            self._is_over = True
            self._interrupt()
            for cancel in self._cancels:
                try:
                    cancel()
                except Exception:
                    logger.exception("what a handler waits for could not be cancelled")

    def give_up(self) -> None:
        """Take note that the handler did not come back; the watchdog calls this some time later."""
        self._stuck = True

    def error(self) -> HandlerTimeout:
        """Return the error that the attempt fails with."""
        return HandlerTimeout(f"the handler was not done within its timeout of {self.seconds:g} s")

    def begin(self, interrupt: Callable[[], None]) -> None:
        """Let ``interrupt`` be called, from another thread, when the time is up and the handler not back."""
        self.is_fresh = False
        self._interrupt = interrupt
        _watchdog.watch(self)

    def end(self) -> bool:
        """Say that the handler is back; tell whether that is too late."""
        with self._guard:
            self._interrupt = None
            is_late = self._is_over
        _watchdog.leave(self)
        return is_late


class _Watchdog:
    """Tells attempts that their time is up, in a thread that is there as long as there are any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ends: dict[Attempt, float] = {}
        self._wakes_at = 0.0
        self._thread: threading.Thread | None = None

    def watch(self, attempt: Attempt) -> None:
        """Begin to look after an attempt."""
        end = time.monotonic() + attempt.seconds
        with self._changed:
            self._ends[attempt] = end
            # A thread of the parent process is not there after a fork.
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="handler-timeouts", daemon=True)
                self._thread.start()
            elif end < self._wakes_at:
                self._changed.notify()

    def leave(self, attempt: Attempt) -> None:
        """Look after an attempt no more."""
        self._ends.pop(attempt, None)

    def _serve(self) -> None:
        idle_since = time.monotonic()
        while True:
            now = time.monotonic()
            with self._changed:
                ends = dict(self._ends)
                if ends:
                    idle_since = now
                elif now - idle_since >= IDLE_SECONDS:
                    self._thread = None
                    return
            for attempt, end in ends.items():
                self._look_at(attempt, end, now)
            with self._changed:
                # Not to the end in one piece: the thread shall not outlive by much what it is for.
                self._wakes_at = min([*self._ends.values(), now + IDLE_SECONDS])
                self._changed.wait(max(self._wakes_at - time.monotonic(), 0))

    def _look_at(self, attempt: Attempt, end: float, now: float) -> None:
        if now < end:
            return
        if attempt.is_over:
            attempt.give_up()
            # Else its end, which is past, would wake this thread at once, over and over.
            self._ends.pop(attempt, None)
            return
        attempt.expire()
        with self._changed:
            if attempt in self._ends:
                # Not from "now" on: a statement that is cancelled may have taken its time.
                self._ends[attempt] = time.monotonic() + STUCK_SECONDS
        if not attempt.is_under_way:
            self._ends.pop(attempt, None)  # it left between those two lines: leave() has no lock


_watchdog = _Watchdog()
_current: ContextVar[Attempt | None] = ContextVar("domain_event_broker_attempt", default=None)


def current_attempt() -> Attempt | None:
    """Return the attempt that is about to begin, or the one that the code running now belongs to."""
    return _current.get()


def enter(attempt: Attempt) -> Token[Attempt | None]:
    """Let :func:`current_attempt` return ``attempt``, until :func:`leave`."""
    return _current.set(attempt)


def leave(token: Token[Attempt | None]) -> None:
    """Go back to what was there before :func:`enter` returned ``token``."""
    _current.reset(token)


def _raise_in(ident: int, kind: type[BaseException] | None) -> None:
    """Raise an exception in a thread; ``None``: take back one that has not arrived."""
    import ctypes  # takes longer to import than all the rest; needed where a handler has a limit of time

    argument = ctypes.py_object(kind) if kind is not None else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), argument)


def _cause(error: BaseException) -> BaseException | None:
    """Return what is worth telling of: not the interruption itself."""
    return None if isinstance(error, TimeIsUp) else error
