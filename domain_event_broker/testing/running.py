"""Handlers in process: the real execution, retries and dead letters, on a clock that does not wait."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from inspect import ismethod
from typing import Any

from domain_event_broker import config
from domain_event_broker.codecs import bodies_of
from domain_event_broker.config import BrokerSettings
from domain_event_broker.discovery import known_handlers
from domain_event_broker.errors import HandlerError
from domain_event_broker.events import DomainEvent, Message
from domain_event_broker.execution import execute
from domain_event_broker.handlers import Handler
from domain_event_broker.injection import Injected
from domain_event_broker.ports import Action, DeadLetter, Decision, Delivery, Settlement, Stored
from domain_event_broker.subscriber import installed_inbox, subscription_of
from domain_event_broker.testing.published import Published, event_in, name_of_kind
from domain_event_broker.transports import memory
from domain_event_broker.transports.memory import MemoryTransport

#: Deliveries after which handlers that keep publishing events for each other are taken for a ring.
MAX_DELIVERIES = 1000
#: Last lines of a handler's traceback that a failed test shows.
TRACEBACK_LINES = 12

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Run:
    """One delivery to one handler.

    :param attempt: the how manieth this was for the event, from 1.
    :param delay: seconds until the next, where it is retried.
    :param failure: why it is not handled.
    :param outcome: ``"handled"``, ``"duplicate"``, ``"filtered"``, ``"retried"``, ``"dead-lettered"`` or
        ``"dropped"``.
    """

    handler: str
    routing_key: str
    event_id: str
    attempt: int
    action: Action
    delay: float = 0.0
    failure: str = ""
    outcome: str = ""

    @classmethod
    def of(cls, settlement: Settlement) -> Run:
        """Describe how a delivery ended."""
        delivery, failure = settlement.delivery, settlement.failure
        told = f"{failure.reason}: {failure.error_type} {failure.message}".rstrip() if failure else ""
        return cls(
            delivery.queue,
            delivery.routing_key,
            delivery.event_id,
            delivery.retries + 1,
            settlement.action,
            settlement.delay,
            told,
            settlement.outcome,
        )

    def __str__(self) -> str:
        end = f"again in {self.delay:g} s" if self.action is Action.RETRY else self.outcome
        end += f" ({self.failure})" if self.failure else ""
        return f"  {self.handler} {self.routing_key}, try {self.attempt}: {end}"


@dataclass(slots=True)
class RunReport:
    """What handlers did.

    :param runs: every delivery, in order.
    :param dead_letters: events in the dead letters of all handlers.
    :param unhandled: events that no handler is bound for.
    :param seconds: virtual time that passed.
    """

    runs: list[Run] = field(default_factory=list)
    dead_letters: list[DeadLetter] = field(default_factory=list)
    unhandled: list[DomainEvent] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, handler: Any, action: Action | None = None) -> list[Run]:
        """Return the deliveries to one handler, or those of them that ended so.

        :param handler: its name, or its function.
        """
        names = _names_of(handler)
        return [run for run in self.runs if run.handler in names and action in (None, run.action)]

    def assert_handled(self, handler: Any, times: int | None = 1) -> None:
        """Assert that a handler handled so many events; ``None``: one or more.

        Duplicates, and what a filter leaves out, are not counted: no handler heard of them.

        :raises AssertionError: the message says what the handlers did.
        """
        __tracebackhide__ = True
        handled = [run for run in self.of(handler) if run.outcome == "handled"]
        self._assert_count(handled, times, f"{_told(handler)} handled")

    def assert_retried(self, handler: Any, times: int | None = None) -> None:
        """Assert that deliveries to a handler were retried so often; ``None``: once or more."""
        __tracebackhide__ = True
        self._assert_count(self.of(handler, Action.RETRY), times, f"{_told(handler)} retried")

    def assert_dead_lettered(self, handler: Any, error: type[BaseException] | str = "") -> DeadLetter:
        """Assert that an event is in the dead letters of a handler, and return it (the first).

        :param error: the exception it failed with, or a part of its name, message or reason.
        """
        __tracebackhide__ = True
        names, part = _names_of(handler), error if isinstance(error, str) else error.__qualname__
        for letter in self.dead_letters:
            if letter.queue in names and part in _failure_of(letter):
                return letter
        because = f" because of {part}" if part else ""
        raise AssertionError(f"no event of {_told(handler)} was dead-lettered{because}. {self}")

    def assert_no_dead_letters(self) -> None:
        """Assert that no event is in the dead letters of any handler."""
        __tracebackhide__ = True
        if self.dead_letters:
            raise AssertionError("\n".join(["dead letters:", *map(_obituary, self.dead_letters), str(self)]))

    def _assert_count(self, runs: Sequence[Run], times: int | None, words: str) -> None:
        __tracebackhide__ = True
        if len(runs) != times and not (runs and times is None):
            wanted = "an event" if times is None else f"{times} events"
            raise AssertionError(f"{words} {len(runs)} events, not {wanted}. {self}")

    def __str__(self) -> str:
        if not self.runs:
            return "No handler was called."
        return "\n".join(["The handlers were called so:", *map(str, self.runs)])


class HandlerRunner:
    """A broker in memory with the queues of some handlers, and what a subscriber does, in this thread.

    :param handlers: names, functions or handlers; ``None``: all of the program.
    """

    def __init__(self, handlers: Iterable[Any] | None = None) -> None:
        self._settings = _private_settings()
        self._handlers = {handler.name: _served(handler, self._settings) for handler in _chosen(handlers)}
        self._name = self._settings.url[0].partition("://")[2]
        self._transport = MemoryTransport(self._settings)
        self._clock = memory.broker(self._name).clock
        self._bodies = bodies_of(self._settings)
        self._scheduled: list[tuple[float, Message]] = []
        defaults = self._settings.subscriber
        self._policies = {each.name: each.policy(defaults.max_retries) for each in self._handlers.values()}
        for handler in self._handlers.values():
            self._transport.subscribe(subscription_of(handler, defaults))

    def run(self, feed: Callable[[], Sequence[Published]], most: int = MAX_DELIVERIES) -> RunReport:
        """Deliver events, and those that are published meanwhile, until nothing is left to do.

        :param feed: returns the events published since it was last asked.
        :param most: deliveries after which it gives up.
        :raises AssertionError: it gave up.
        """
        __tracebackhide__ = True
        report, began = RunReport(), self._clock.now()
        while self._take_up(feed(), report):
            for delivery in self._transport.receive(1, 0):
                if len(report.runs) == most:
                    raise AssertionError(f"{most} deliveries, and still more: {_last(report)}")
                self._handle(delivery, report)
        report.dead_letters = [letter for name in self._handlers for letter in self._letters(name)]
        report.seconds = self._clock.now() - began
        return report

    def replay(self, handler: Any = None) -> int:
        """Put dead letters back to work, of one handler or of all; return how many."""
        names = [name for name in self._handlers if handler is None or name in _names_of(handler)]
        reports = [self._transport.dead_letters(name).sift(lambda letter: Decision.RETRY) for name in names]
        return sum(report.replayed for report in reports)

    def close(self) -> None:
        """Forget the broker."""
        self._transport.close()
        memory.forget(self._name)

    def _take_up(self, published: Iterable[Published], report: RunReport) -> bool:
        """Let events enter the queues; tell whether there is something to deliver, now or later."""
        for each in published:
            seconds = _seconds_until(each.deliver_at)
            if seconds > 0:
                self._scheduled.append((self._clock.now() + seconds, each.message))
            else:
                self._publish(each.message, report)
        if any(stats.ready for stats in self._transport.stats(self._handlers).values()):
            return True
        return self._let_time_pass(report)

    def _let_time_pass(self, report: RunReport) -> bool:
        """Move the clock to the next moment at which something is due; ``False``: there is none."""
        moments = [moment for moment, _ in self._scheduled]
        delay = memory.broker(self._name).seconds_until_due(self._handlers)
        if delay is not None:
            moments.append(self._clock.now() + delay)
        if not moments:
            return False
        self._clock.advance(max(0.0, min(moments) - self._clock.now()))
        due = [message for moment, message in self._scheduled if moment <= self._clock.now()]
        self._scheduled = [each for each in self._scheduled if each[0] > self._clock.now()]
        for message in due:
            self._publish(message, report)
        return True

    def _publish(self, message: Message, report: RunReport) -> None:
        (outcome,) = self._transport.publish([message])
        if outcome.stored is Stored.UNROUTABLE:
            report.unhandled.append(event_in(message))

    def _handle(self, delivery: Delivery, report: RunReport) -> None:
        handler = self._handlers[delivery.queue]
        policy = self._policies[handler.name]
        settlement = execute(delivery, handler, policy, installed_inbox(), self._bodies)
        self._transport.settle([settlement])
        report.runs.append(Run.of(settlement))

    def _letters(self, name: str) -> list[DeadLetter]:
        letters: list[DeadLetter] = []

        def look(letter: DeadLetter) -> Decision:
            letters.append(letter)
            return Decision.LEAVE

        self._transport.dead_letters(name).sift(look)
        return letters


def _private_settings() -> BrokerSettings:
    """Return the project's settings, with a broker of our own in place of its."""
    url = f"memory://handlers-{os.getpid()}-{next(_numbers)}"
    settings = config.current() or BrokerSettings(url=(url,))
    return replace(settings, url=(url,), exchange_type="topic")


def _chosen(wanted: Iterable[Any] | None) -> list[Handler]:
    known = known_handlers().all()
    if wanted is None:
        return known
    chosen: list[Handler] = []
    for each in [wanted] if isinstance(wanted, str) or callable(wanted) else wanted:
        found = (
            [each]
            if isinstance(each, Handler)
            else [handler for handler in known if _is_meant(handler, each)]
        )
        if not found:
            names = ", ".join(handler.name for handler in known) or "none"
            raise HandlerError(f"{each!r} is no handler; known are {names}")
        chosen += found
    return chosen


def _served(handler: Handler, settings: BrokerSettings) -> Handler:
    """Return the handler as ``memory:`` can serve it: its queue need not end with a connection."""
    idempotent = handler.idempotent and settings.subscriber.inbox
    return replace(handler, idempotent=idempotent, exclusive=False, auto_delete=False, durable=True)


def _names_of(handler: Any) -> set[str]:
    if isinstance(handler, str):
        return {handler}
    if isinstance(handler, Handler):
        return {handler.name}
    return {each.name for each in known_handlers().all() if _is_meant(each, handler)}


def _is_meant(handler: Handler, by: Any) -> bool:
    """Tell whether a name, or what was declared, means this handler: a function, a class, or a task."""
    call = handler.call.function if isinstance(handler.call, Injected) else handler.call
    owner = getattr(call, "__self__", None)
    meant = (call, owner, type(owner), getattr(call, "task", None))
    if ismethod(by) and by == call:
        return True  # each look at a method makes a new object
    return by == handler.name or (by is not None and any(by is each for each in meant))


def _told(handler: Any) -> str:
    return " or ".join(sorted(_names_of(handler))) or name_of_kind(handler)


def _failure_of(letter: DeadLetter) -> str:
    failure = letter.failure
    return f"{failure.reason} {failure.error_type} {failure.message}" if failure else ""


def _obituary(letter: DeadLetter) -> str:
    trace = letter.failure.traceback.rstrip().splitlines()[-TRACEBACK_LINES:] if letter.failure else []
    head = f"  {letter.queue} {letter.routing_key}: {_failure_of(letter)}"
    return "\n".join([head, *(f"    {line}" for line in trace)])


def _last(report: RunReport) -> str:
    return "\n".join(["the last were:", *map(str, report.runs[-6:])])


def _seconds_until(moment: datetime | None) -> float:
    return 0.0 if moment is None else (moment - datetime.now(timezone.utc)).total_seconds()
