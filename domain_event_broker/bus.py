"""A bus in this process: handlers come and go at run time.

It is the ``memory:`` broker with a :class:`~domain_event_broker.subscriber.Consumer` for each
handler, so retries, time limits, filters, async handlers and dead letters are those of any
subscriber. Its events end with the process: for programs of one process, and for first steps.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from dataclasses import asdict, dataclass
from inspect import ismethod
from typing import Any

from domain_event_broker import correlation
from domain_event_broker.codecs import bodies_of
from domain_event_broker.config import BrokerSettings, SubscriberSettings
from domain_event_broker.errors import BrokerUnavailable, HandlerError, HandlerStuck
from domain_event_broker.events import DomainEvent, TypedEvent
from domain_event_broker.execution import DirectInbox
from domain_event_broker.handlers import Handler, default_name, normalised
from domain_event_broker.ports import DeadLetters, Inbox, Stored
from domain_event_broker.publisher import to_event
from domain_event_broker.stats import Stats
from domain_event_broker.subscriber import Consumer
from domain_event_broker.telemetry.tracing import created, traced
from domain_event_broker.transports import memory
from domain_event_broker.transports.memory import MemoryTransport

#: What a handler of all events is bound with.
ALL = "#"
#: Seconds between two looks whether everything is handled.
LOOK_SECONDS = 0.005
#: Seconds that a shutdown whose time is up gives the threads of idle handlers to end.
LEAVE_SECONDS = 1.0

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class _Member:
    """A handler on the bus, with the thread that serves it."""

    events: Any
    call: Any
    handler: Handler
    consumer: Consumer
    thread: threading.Thread


class MemoryBus:
    """Publishes events to handlers of the same process. All of it may be used from any thread.

    A context manager, also of ``async with``, that ends with :meth:`shutdown`.

    :param name: that of the ``memory://`` broker; default: one of its own.
    :param inbox: calls the handlers; default: directly.
    :param settings: defaults of handlers, as in ``DOMAIN_EVENT_BROKER["SUBSCRIBER"]``.
    :param tracing: whether publishing and handling make spans of OpenTelemetry.
    """

    def __init__(
        self,
        name: str = "",
        inbox: Inbox | None = None,
        settings: SubscriberSettings | None = None,
        *,
        tracing: bool = False,
    ) -> None:
        #: A broker that others can name may be in use by them: it stays when this bus ends.
        self._is_private = not name
        self._name = name or f"bus-{os.getpid()}-{next(_numbers)}"
        self._settings = BrokerSettings(
            url=(f"memory://{self._name}",), subscriber=settings or SubscriberSettings(), tracing=tracing
        )
        self._inbox = inbox or DirectInbox()
        self._bodies = bodies_of(self._settings)
        self._broker = memory.broker(self._name)
        self._transport = traced(MemoryTransport(self._settings), self._settings)
        self._lock = threading.RLock()
        self._members: list[_Member] = []
        #: Figures of this object, and of handlers that are gone.
        self._own = Stats()
        self._serving: list[_Member] = []
        self._is_ending = False
        self._is_closed = False
        self._own.connected()

    # --- subscribing -----------------------------------------------------------------------

    def subscribe(self, events: Any, handler: Any, **options: Any) -> None:
        """Let ``handler`` have ``events`` from now on.

        :param events: a binding key such as ``"order.*"``, or a class of typed events.
        :param handler: a function, async or not, or an object with a method ``handle``.
        :param options: of :func:`~domain_event_broker.subscribe`, such as ``max_retries=5``.
        :raises HandlerError: it cannot be served so, or another one has its name.
        :raises BrokerUnavailable: the bus was shut down.
        """
        call = getattr(handler, "handle", handler)
        given = {key: value for key, value in normalised(**options).items() if value is not None}
        given.setdefault("name", f"{default_name(call)[:200]}-{next(_numbers)}")
        if call is not handler:
            given.setdefault("can_handle", getattr(handler, "can_handle", None))
        declared = Handler(call=call, binding_keys=(events,), **given)
        with self._lock:
            self._check_open()
            self._check_free(declared.name)
            self._start(events, handler, declared)

    def unsubscribe(self, events: Any, handler: Any) -> bool:
        """Let ``handler`` have no more of ``events``. One that it is at is finished, others it forgets.

        :return: whether it had them.
        """
        with self._lock:
            found = [each for each in self._members if each.events == events and _is_same(each.call, handler)]
            for member in found[:1]:
                self._end(member)
        return bool(found)

    def subscribe_all(self, subscriber: Any, **options: Any) -> None:
        """Let an object have what its method ``subscribed_to()`` lists, in its method ``handle()``.

        :param options: as of :meth:`subscribe`; a ``name`` gets a number for each of several keys.
        """
        wanted = subscriber.subscribed_to()
        keys = [wanted] if isinstance(wanted, str) else list(wanted)
        name = options.pop("name", None)
        for number, events in enumerate(keys, 1):
            own = f"{name}-{number}" if name and len(keys) > 1 else name
            self.subscribe(events, subscriber, name=own, **options)

    def subscribe_to_all_events(self, handler: Any, **options: Any) -> None:
        """Let ``handler`` have every event."""
        self.subscribe(ALL, handler, **options)

    def unsubscribe_from_all_events(self, handler: Any) -> bool:
        """Undo :meth:`subscribe_to_all_events`; tell whether there was something to undo."""
        return self.unsubscribe(ALL, handler)

    def clear_subscribers(self) -> None:
        """Let nobody have anything any more."""
        with self._lock:
            for member in list(self._members):
                self._end(member)

    def get_subscriber_count(self, events: Any = None) -> int:
        """Return how many handlers there are, or how many of ``events``."""
        with self._lock:
            return sum(events is None or each.events == events for each in self._members)

    def get_wildcard_subscriber_count(self) -> int:
        """Return how many handlers have every event."""
        return self.get_subscriber_count(ALL)

    # --- publishing ------------------------------------------------------------------------

    def publish(self, *events: DomainEvent | TypedEvent) -> int:
        """Hand events to their handlers, in order; they handle them in threads of their own.

        :return: how many of them somebody is subscribed to.
        :raises InvalidEvent: one cannot be published; none of them was.
        :raises BrokerUnavailable: the bus was shut down.
        """
        messages = [self._bodies.encode(to_event(event)) for event in events]
        if self._settings.tracing:
            messages = created(messages, self._settings)
        with self._lock:
            self._check_open()
            outcomes = self._transport.publish(messages)
            stored = sum(outcome.stored is Stored.STORED for outcome in outcomes)
            self._own.published(stored, len(messages) - stored)
        return stored

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything is handled, retries included.

        :param timeout: in seconds; ``None``: for ever.
        :return: ``False``: the time was up, or events are left of a handler that is served no more.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while self._is_busy():
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(LOOK_SECONDS)
        return not self._is_something_left()

    def shutdown(self, timeout: float = 30.0) -> bool:
        """Take nothing more, handle what is there, and end. Not to be called by a handler.

        What handlers publish meanwhile is handled, too. A second call does nothing.

        :param timeout: seconds after which what is not handled is given up.
        :return: whether everything was handled.
        """
        with self._lock:
            if self._is_ending:
                return True
            self._is_ending = True
        end = time.monotonic() + timeout
        done = self._close_when_done(end)
        serving = list(self._serving)
        self.clear_subscribers()
        end = max(end, time.monotonic() + LEAVE_SECONDS)
        for member in serving:
            member.thread.join(max(0.0, end - time.monotonic()))
        self._transport.close()
        if self._is_private:
            memory.forget(self._name)
        return done

    # --- looking ---------------------------------------------------------------------------

    def get_stats(self) -> dict[str, Any]:
        """Return figures, ready for JSON: see :class:`~domain_event_broker.stats.Stats`."""
        total = Stats()
        with self._lock:
            for stats in (self._own, *(each.consumer.stats for each in self._serving)):
                total.add(stats)
            total.reconnections = 0
            running = bool(self._members) and not self._is_closed
            return {**total.as_dict(), "is_connected": not self._is_closed, "is_consuming": running}

    def get_queue_info(self) -> dict[str, dict[str, Any]]:
        """Return the depths of each handler's queue, by its name, ready for JSON."""
        with self._lock:
            names = [each.handler.name for each in self._members]
            if self._is_closed:
                return {}
            return {name: asdict(stats) for name, stats in self._transport.stats(names).items()}

    def health_check(self) -> dict[str, Any]:
        """Return whether all handlers are served, and which are not."""
        with self._lock:
            dead = [each.handler.name for each in self._members if not each.thread.is_alive()]
            healthy = not self._is_closed and not dead
            return {"healthy": healthy, "closed": self._is_closed, "handlers_not_served": dead}

    def dead_letters(self, handler: Any) -> DeadLetters:
        """Return the dead letters of a handler that is subscribed, by itself or by its name.

        :raises KeyError: it is not.
        """
        with self._lock:
            for member in self._members:
                if _is_same(member.call, handler) or handler == member.handler.name:
                    return self._transport.dead_letters(member.handler.name)
        raise KeyError(f"{handler!r} is not subscribed")

    # --- ends ------------------------------------------------------------------------------

    def __enter__(self) -> MemoryBus:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    async def __aenter__(self) -> MemoryBus:
        return self

    async def __aexit__(self, *_: object) -> None:
        from asyncio import to_thread  # late: whoever calls this has it loaded

        await to_thread(self.shutdown)

    def _start(self, events: Any, call: Any, handler: Handler) -> None:
        """Make the queue, so that no event published from here on is missed, and serve it."""
        self._broker.declare(self._settings.exchange, handler.name, handler.binding_keys)
        consumer = Consumer([handler], self._settings, self._inbox)
        thread = threading.Thread(
            target=self._serve, args=(handler.name, consumer), name=f"bus-{handler.name}", daemon=True
        )
        member = _Member(events, call, handler, consumer, thread)
        self._members.append(member)
        self._serving.append(member)
        thread.start()

    def _serve(self, name: str, consumer: Consumer) -> None:
        """Serve a handler until it is unsubscribed; then its queue goes, and its figures stay."""
        try:
            consumer.run()
        except HandlerStuck:
            pass  # the consumer has told of it; the bus goes on with its other handlers
        finally:
            self._left(name, consumer)

    def _left(self, name: str, consumer: Consumer) -> None:
        with self._lock:
            self._serving = [each for each in self._serving if each.consumer is not consumer]
            self._own.add(consumer.stats)
            if any(each.consumer is consumer for each in self._members):
                # It ended by itself: what is left stays to be looked at, and no more comes.
                self._broker.unbind(name)
            else:
                self._remove_if_unused(name)

    def _end(self, member: _Member) -> None:
        name = member.handler.name
        self._members.remove(member)
        self._broker.unbind(name)
        member.consumer.stop()
        self._remove_if_unused(name)

    def _remove_if_unused(self, name: str) -> None:
        """Delete a queue that nobody is subscribed with, and that no consumer is still ending on.

        A name may be subscribed anew before its last consumer has ended: then there are two.
        """
        if not self._is_taken(name) and not any(each.handler.name == name for each in self._serving):
            self._broker.remove(name)

    def _is_busy(self) -> bool:
        """Whether a handler that is served has something to do, or is at something.

        One moment for all queues: else an event that a handler publishes could enter one that was
        looked at before, and the handler be done before its own is.
        """
        with self._lock, self._broker.changed:
            ending = {each.handler.name for each in self._serving if each not in self._members}
            return any(self._broker.stats(name).in_flight for name in ending) or any(
                self._has_events(each) for each in self._serving if each in self._members
            )

    def _is_something_left(self) -> bool:
        with self._lock:
            return any(self._has_events(each) for each in self._members if each not in self._serving)

    def _has_events(self, member: _Member) -> bool:
        depths = self._broker.stats(member.handler.name)
        return bool(depths.ready or depths.in_flight or depths.delayed)

    def _close_when_done(self, end: float) -> bool:
        """Take nothing more from anybody once everything is handled, or the time is up."""
        while True:
            done = self.wait(max(0.0, end - time.monotonic()))
            with self._lock:
                if not (done and self._is_busy()):
                    self._is_closed = True
                    return done

    def _check_open(self) -> None:
        """Refuse what comes after the end; until that, handlers may still say what follows."""
        is_follow_up = correlation.causation_id() is not None
        if self._is_closed or (self._is_ending and not is_follow_up):
            raise BrokerUnavailable("this bus was shut down")

    def _check_free(self, name: str) -> None:
        if self._is_taken(name):
            raise HandlerError(
                f"two handlers of this bus are named {name!r}: they would share one queue, and each get a "
                "part of the events; give one of them another name="
            )

    def _is_taken(self, name: str) -> bool:
        return any(each.handler.name == name for each in self._members)


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether two handlers are one; a method is made anew each time that it is asked for."""
    return one is other or (ismethod(one) and bool(one == other))
