"""Publishing without waiting for the broker, in programs that have no outbox.

What waits here is in the memory of the process: killed, it takes up to ``max_pending`` events with
it. Where that matters there is the outbox, which waits in the database.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from domain_event_broker import callbacks, config
from domain_event_broker.batches import BatchAccount, Tally
from domain_event_broker.direct import Publisher
from domain_event_broker.errors import BrokerUnavailable, PublishFailed
from domain_event_broker.events import DomainEvent, Message, TypedEvent
from domain_event_broker.patience import Outage
from domain_event_broker.ports import PublishOutcome, Stored
from domain_event_broker.stats import Stats

logger = logging.getLogger("domain_event_broker.publisher")

#: Events that the thread sends at once.
BATCH_SIZE = 500
#: Longest time between two tries to reach a broker that is away, in seconds.
AWAY_SECONDS = 1.0
#: Time that closing a connection may take, in seconds.
DISCONNECT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    """An event that waits for the broker's answer.

    :param deadline: reading of ``time.monotonic()`` after which it is given up.
    """

    event: Any
    message: Message
    deadline: float


class BackgroundPublisher:
    """Publishes events from a thread of its own, in the order in which they were given to it.

    :meth:`publish` returns at once; what became of the events tell :meth:`close`, the callbacks and
    the log, where each failure is an error with the body of the event. May be shared between
    threads. A forked child begins with nothing pending: what its parent had is its parent's.

    :param connection_settings: URL of the broker; by default the configured one. ``None``:
        nothing is sent.
    :param exchange: exchange to publish to.
    :param exchange_type: its type, should it have to be made.
    :param max_pending: events without an answer at once; then :meth:`publish` waits.
    :param timeout: seconds after which an event that the broker has not confirmed is given up.
    :param on_failure: function or coroutine function, called with event and reason for each one that
        the broker refused, or that was not sent when the publisher was closed.
    :param on_timeout: the same, called with the event, for each one that was given up.
    """

    def __init__(
        self,
        connection_settings: str | None = "",
        exchange: str = "domain-events",
        exchange_type: str = "topic",
        *,
        max_pending: int = 1000,
        timeout: float = 30.0,
        on_failure: Callable[[Any, str], Any] | None = None,
        on_timeout: Callable[[Any], Any] | None = None,
    ) -> None:
        if max_pending < 1 or timeout <= 0:
            raise ValueError(
                f"max_pending={max_pending!r}, timeout={timeout!r}: both must be greater than nought"
            )
        self._connect = partial(Publisher, connection_settings, exchange, exchange_type)
        self._is_off = config.resolve(connection_settings) is None
        self._max_pending = max_pending
        self._timeout = timeout
        self._on_failure = on_failure
        self._on_timeout = on_timeout
        self._closed = False
        self._begin()
        os.register_at_fork(after_in_child=partial(_begin_anew, weakref.ref(self)))

    def publish(
        self,
        event: bytes | str | DomainEvent | TypedEvent,
        routing_key: str | None = None,
        *,
        wait: float | None = None,
    ) -> None:
        """Leave an event to the thread. Waits only while ``max_pending`` of them have no answer.

        :param event: an event, typed or not, or the body of one.
        :param routing_key: key to send it with, if not its own.
        :param wait: longest time to wait for room, in seconds; default: ``timeout``.
        :raises InvalidEvent: it cannot be sent as it is.
        :raises PublishFailed: there was no room in time, or the publisher is closed.
        """
        message = self._checker.prepare(event, routing_key)
        if self._is_off:
            return
        room = self._timeout if wait is None else wait
        with self._changed:
            if not self._changed.wait_for(
                lambda: self._closed or len(self._pending) < self._max_pending, room
            ):
                raise PublishFailed(
                    f"{self._max_pending} events wait for the broker already, and in {room:g} s there was no "
                    f"room for another; {message.routing_key!r} ({message.event_id}) was not accepted"
                )
            self._check_open(message)
            self._pending.append(_Pending(event, message, time.monotonic() + self._timeout))
            self.stats.background_tasks_created += 1
            self._start()
            self._changed.notify_all()

    @property
    def pending(self) -> int:
        """Events that have no answer yet."""
        return len(self._pending)

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until nothing is pending, at most ``timeout`` seconds; tell whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._pending, timeout)

    def close(self, timeout: float = 30.0) -> BatchAccount:
        """Accept nothing more, send what is pending, and return the account of all events since the start.

        Called by itself when the program ends in an orderly way, if nobody did before.

        :param timeout: longest time, in seconds. What is pending then counts as failed.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self.flush(timeout):
            self._join()
        else:
            self._abandon(f"not confirmed within {timeout:g} s of closing")
        atexit.unregister(self.close)
        return self._tally.account()

    def __enter__(self) -> BackgroundPublisher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> None:
        """Set up what belongs to one process."""
        self._changed = threading.Condition()
        self._pending: deque[_Pending] = deque()
        self._tally = Tally()
        self._thread: threading.Thread | None = None
        self._outage = Outage(logger, AWAY_SECONDS)
        # Checks in the threads of callers, and never connects.
        self._checker = self._connect()
        #: What it did so far; ``stats.as_dict()`` is ready for JSON.
        self.stats = Stats()

    def _check_open(self, message: Message) -> None:
        if self._closed:
            raise PublishFailed(
                f"this publisher is closed; {message.routing_key!r} ({message.event_id}) was not accepted"
            )

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            # A daemon: a broker that is away must not keep a program from ending. close() waits.
            self._thread = threading.Thread(
                target=self._run, name="domain-event-broker-publisher", daemon=True
            )
            self._thread.start()
            atexit.register(self.close)

    def _join(self) -> None:
        """Wait for the thread, which has nothing to do but to disconnect."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(DISCONNECT_SECONDS)

    def _run(self) -> None:
        """Send until the publisher is closed and nothing is pending."""
        publisher = self._connect()
        publisher.stats = self.stats
        try:
            while batch := self._next_batch():
                self._send(publisher, batch)
        finally:
            publisher.disconnect()

    def _next_batch(self) -> list[_Pending]:
        """Wait for events and return those to send now; they stay pending. Empty: it is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._pending)
            return [self._pending[index] for index in range(min(BATCH_SIZE, len(self._pending)))]

    def _send(self, publisher: Publisher, batch: Sequence[_Pending]) -> None:
        try:
            outcomes = publisher.send([each.message for each in batch])
        except BrokerUnavailable as error:
            self._give_up_late(batch, str(error))
            self._pause(self._outage.failed(error))
            return
        except Exception as error:
            # Whatever it is: the events must not stay, nor vanish without a word.
            logger.exception("the publisher failed")
            self._settle([(each, f"{type(error).__name__}: {error}", True) for each in batch])
            return
        if self._outage.over():
            logger.info("publishing again")
        self._answered(batch, outcomes)

    def _answered(self, batch: Sequence[_Pending], outcomes: Sequence[PublishOutcome]) -> None:
        refused: list[tuple[_Pending, str, bool]] = []
        with self._changed:
            for each, outcome in zip(batch, outcomes, strict=True):
                if outcome.stored is Stored.REFUSED:
                    refused.append((each, outcome.reason, False))
                elif self._take(each):
                    self._tally.published(outcome.stored is Stored.UNROUTABLE)
            self._changed.notify_all()
        self._settle(refused)

    def _give_up_late(self, batch: Sequence[_Pending], reason: str) -> None:
        now = time.monotonic()
        self._settle([(each, reason, True) for each in batch if each.deadline <= now], self._late)

    def _late(self, failed: _Pending, reason: str) -> None:
        callbacks.call(self._on_timeout, failed.event)

    def _abandon(self, reason: str) -> None:
        with self._changed:
            left = list(self._pending)
        self._settle([(each, reason, True) for each in left])

    def _settle(
        self,
        failed: Sequence[tuple[_Pending, str, bool]],
        tell: Callable[[_Pending, str], None] | None = None,
    ) -> None:
        """Take failed events out, count and log them, and tell who wants to know."""
        for each, reason, maybe_stored in failed:
            with self._changed:
                if not self._take(each):
                    continue
                self._tally.failed(each.event, each.message, reason, maybe_stored)
            _log(each.message, reason, maybe_stored)
            (tell or self._failed)(each, reason)
        with self._changed:
            self._changed.notify_all()

    def _failed(self, failed: _Pending, reason: str) -> None:
        callbacks.call(self._on_failure, failed.event, reason)

    def _take(self, pending: _Pending) -> bool:
        """Take an event out of those that are pending; tell whether it was still there."""
        try:
            self._pending.remove(pending)
        except ValueError:
            return False
        self.stats.background_tasks_completed += 1
        return True

    def _pause(self, seconds: float) -> None:
        """Wait before the next try, no longer than the first event has time."""
        with self._changed:
            due = min((each.deadline for each in self._pending), default=0.0) - time.monotonic()
            time_left = max(0.0, min(seconds, due))
            self._changed.wait_for(lambda: self._closed and not self._pending, time_left)


def _begin_anew(publisher: weakref.ref[BackgroundPublisher]) -> None:
    """In a forked child there is no thread, and the lock may be held by one of the parent's."""
    found = publisher()
    if found is not None:
        found._begin()


def _log(message: Message, reason: str, maybe_stored: bool) -> None:
    logger.error(
        "event %s %s was not published%s: %s; the log record has its body, to publish it again",
        message.routing_key,
        message.event_id,
        ", or is not known to be" if maybe_stored else "",
        reason,
        extra={"event_id": message.event_id, "event_body": message.body.decode("utf-8", "backslashreplace")},
    )
