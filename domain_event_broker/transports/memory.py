"""The ``memory:`` transport: a broker inside this process, for tests and first steps.

It keeps the promises of any transport, with retries, dead letters and replay as RabbitMQ has
them, except that its events end with the process. ``memory:`` is one broker, ``memory://name``
another; all threads of the process share it.

Its clock can be moved by tests, so that none has to wait for a retry::

    memory.broker().clock.advance(60)
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from domain_event_broker.config import BrokerSettings, mask
from domain_event_broker.errors import BrokerUnavailable, ConfigurationError, UnsupportedOption
from domain_event_broker.events import HEADER_REPLAYS, Message
from domain_event_broker.failures import Failure, History, without_failure
from domain_event_broker.ports import (
    Action,
    Capabilities,
    DeadLetter,
    Decision,
    Delivery,
    PublishOutcome,
    QueueStats,
    Settlement,
    SiftReport,
    Stored,
    Subscription,
)
from domain_event_broker.routing import matches


class Clock:
    """The time by which a broker measures delays: real, plus what :meth:`advance` has added."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._ahead = 0.0
        self._on_change = on_change

    def now(self) -> float:
        """Return seconds since some moment; only differences mean anything."""
        return time.monotonic() + self._ahead

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` have passed; what is due by then can be received at once."""
        if seconds < 0:
            raise ValueError(f"advance({seconds!r}): time does not go back")
        self._ahead += seconds
        self._on_change()


@dataclass(slots=True)
class _Entry:
    """An event in one queue."""

    routing_key: str
    body: bytes
    event_id: str
    headers: dict[str, str | int]
    position: int = 0
    retries: int = 0
    buried_at: float = 0.0

    @classmethod
    def of(cls, message: Message) -> _Entry:
        return cls(message.routing_key, message.body, message.event_id, dict(message.headers))


@dataclass(slots=True)
class _Queue:
    """The events of one handler: ready ones by position, delayed ones by the time they are due."""

    name: str
    bindings: set[tuple[str, str]] = field(default_factory=set)
    ready: list[tuple[int, _Entry]] = field(default_factory=list)
    delayed: list[tuple[float, int, _Entry]] = field(default_factory=list)
    dead: dict[int, _Entry] = field(default_factory=dict)
    dead_ttl: float | None = None
    dead_limit: int | None = None
    receivers: set[MemoryTransport] = field(default_factory=set)
    in_flight: int = 0

    def is_bound(self, exchange: str, routing_key: str) -> bool:
        return any(
            exchange == bound_to and matches(binding_key, routing_key)
            for bound_to, binding_key in self.bindings
        )


class MemoryBroker:
    """Queues that the transports of one name share. Its methods may be called from any thread."""

    def __init__(self) -> None:
        #: Guards all queues, and is notified when a receiver may have something to do.
        self.changed = threading.Condition()
        self.clock = Clock(self.notify)
        self._queues: dict[str, _Queue] = {}
        self._numbers = itertools.count(1)

    def notify(self) -> None:
        """Let every receiver look again."""
        with self.changed:
            self.changed.notify_all()

    def publish(self, exchange: str, message: Message) -> bool:
        """Put a copy into each queue bound for ``message``; ``False``: there is none."""
        with self.changed:
            bound = [each for each in self._queues.values() if each.is_bound(exchange, message.routing_key)]
            for queue in bound:
                self._append(queue, _Entry.of(message))
            return bool(bound)

    def send_to(self, name: str, message: Message) -> bool:
        """Put ``message`` into one queue; ``False``: there is none of this name."""
        with self.changed:
            if name in self._queues:
                self._append(self._queues[name], _Entry.of(message))
            return name in self._queues

    def limit_letters(self, name: str, ttl: float | None, most: int | None) -> None:
        """Keep dead letters of a queue for ``ttl`` seconds, and so many of them; ``None``: without limit."""
        with self.changed:
            self._queues[name].dead_ttl, self._queues[name].dead_limit = ttl, most

    def declare(self, exchange: str, name: str, binding_keys: Iterable[str]) -> None:
        """Make the queue, unless it is there, and bind it with these keys, too."""
        with self.changed:
            queue = self._queues.setdefault(name, _Queue(name))
            queue.bindings |= {(exchange, key) for key in binding_keys}

    def unbind(self, name: str) -> None:
        """Let no further event enter a queue."""
        with self.changed:
            self._queues[name].bindings.clear()

    def remove(self, name: str) -> None:
        """Delete a queue with all that is in it."""
        with self.changed:
            self._queues.pop(name, None)

    def missing(self, exchange: str, name: str, binding_keys: Iterable[str]) -> list[str]:
        """Tell what :meth:`declare` would make."""
        with self.changed:
            queue = self._queues.get(name)
            if queue is None:
                return [f"queue {name!r} does not exist"]
            unbound = [key for key in binding_keys if (exchange, key) not in queue.bindings]
            return [f"queue {name!r} is not bound with {key!r}" for key in unbound]

    def join(self, name: str, receiver: MemoryTransport) -> None:
        """Count ``receiver`` among those of the queue."""
        with self.changed:
            self._queues[name].receivers.add(receiver)

    def leave(self, receiver: MemoryTransport) -> None:
        """Undo :meth:`join` for all queues."""
        with self.changed:
            for queue in self._queues.values():
                queue.receivers.discard(receiver)

    def take(self, name: str, limit: int) -> list[tuple[int, _Entry]]:
        """Take up to ``limit`` entries out of a queue; each gets a number that it is given back by."""
        with self.changed:
            queue = self._ripe(self._queues[name])
            taken = [heapq.heappop(queue.ready)[1] for _ in range(min(limit, len(queue.ready)))]
            queue.in_flight += len(taken)
            return [(next(self._numbers), entry) for entry in taken]

    def seconds_until_due(self, names: Iterable[str]) -> float | None:
        """Return how long it takes until the next delayed entry of these queues is due."""
        with self.changed:
            due = [self._queues[name].delayed[0][0] for name in names if self._queues[name].delayed]
            return max(0.0, min(due) - self.clock.now()) if due else None

    def drop(self, name: str) -> None:
        """Forget one entry that was taken."""
        with self.changed:
            self._queues[name].in_flight -= 1

    def give_back(self, name: str, entry: _Entry) -> None:
        """Put an entry that was taken back to its old place."""
        with self.changed:
            queue = self._queues[name]
            queue.in_flight -= 1
            heapq.heappush(queue.ready, (entry.position, entry))
            self.changed.notify_all()

    def delay(self, name: str, entry: _Entry, seconds: float) -> None:
        """Let an entry that was taken come back later, as one more retry."""
        with self.changed:
            queue = self._queues[name]
            queue.in_flight -= 1
            entry.retries += 1
            heapq.heappush(queue.delayed, (self.clock.now() + seconds, entry.position, entry))
            self.changed.notify_all()

    def bury(self, name: str, entry: _Entry) -> None:
        """Move an entry that was taken to the dead letters."""
        with self.changed:
            queue = self._queues[name]
            queue.in_flight -= 1
            entry.buried_at = self.clock.now()
            queue.dead[next(self._numbers)] = entry
            self._forget_letters(queue)

    def dead(self, name: str) -> list[tuple[int, _Entry]]:
        """Return the dead letters of a queue, oldest first, each with its number."""
        with self.changed:
            queue = self._queues.get(name)
            return list(self._forget_letters(queue).dead.items()) if queue else []

    def exhume(self, name: str, number: int, replay: bool) -> bool:
        """Take a letter out of the dead ones, and put it to work if it is to be replayed.

        ``False``: somebody else did before.
        """
        with self.changed:
            queue = self._queues[name]
            entry = self._forget_letters(queue).dead.pop(number, None)
            if entry is not None and replay:
                headers = without_failure(entry.headers)
                headers[HEADER_REPLAYS] = _replays(entry) + 1
                headers |= History.after(entry.headers, Failure.from_headers(entry.headers)).to_headers()
                self._append(queue, _Entry(entry.routing_key, entry.body, entry.event_id, headers))
            return entry is not None

    def stats(self, name: str) -> QueueStats:
        """Return the depths of a queue."""
        with self.changed:
            queue = self._queues.get(name)
            if queue is None:
                return QueueStats(exists=False, in_flight=0, consumers=0)
            self._forget_letters(self._ripe(queue))
            return QueueStats(
                exists=True,
                ready=len(queue.ready),
                in_flight=queue.in_flight,
                delayed=len(queue.delayed),
                dead=len(queue.dead),
                consumers=len(queue.receivers),
            )

    def _forget_letters(self, queue: _Queue) -> _Queue:
        """Drop the dead letters that are beyond the limits, the oldest first."""
        while queue.dead:
            oldest = next(iter(queue.dead))
            age = self.clock.now() - queue.dead[oldest].buried_at
            is_old = queue.dead_ttl is not None and age >= queue.dead_ttl
            if not is_old and (queue.dead_limit is None or len(queue.dead) <= queue.dead_limit):
                break
            del queue.dead[oldest]
        return queue

    def _append(self, queue: _Queue, entry: _Entry) -> None:
        self._ripe(queue)
        entry.position = next(self._numbers)
        heapq.heappush(queue.ready, (entry.position, entry))
        self.changed.notify_all()

    def _ripe(self, queue: _Queue) -> _Queue:
        """Let what is due enter the queue anew, at its end."""
        while queue.delayed and queue.delayed[0][0] <= self.clock.now():
            entry = heapq.heappop(queue.delayed)[2]
            entry.position = next(self._numbers)
            heapq.heappush(queue.ready, (entry.position, entry))
        return queue


_brokers: dict[str, MemoryBroker] = {}
_brokers_guard = threading.Lock()


def broker(name: str = "") -> MemoryBroker:
    """Return the broker of ``memory://<name>``, or of ``memory:``; it is made when first asked for."""
    with _brokers_guard:
        return _brokers.setdefault(name, MemoryBroker())


def forget(name: str | None = None) -> None:
    """Forget a broker with all its queues, or all of them; for the time between two tests.

    Transports that are open keep the old one to themselves.
    """
    with _brokers_guard:
        if name is None:
            _brokers.clear()
        else:
            _brokers.pop(name, None)


class MemoryTransport:
    """A connection to a :class:`MemoryBroker`.

    :param settings: its URL is ``memory:`` or ``memory://name``; the exchange must be a topic one.
    :raises ConfigurationError: the URL, or the type of the exchange, cannot be served.
    """

    capabilities = Capabilities(durable=False, cross_process=False, dead_letter_limits=True)

    def __init__(self, settings: BrokerSettings) -> None:
        self._broker = broker(_name(settings))
        self._exchange = settings.exchange
        self._subscriptions: dict[str, Subscription] = {}
        self._held: dict[int, tuple[str, _Entry]] = {}
        self._woken = False
        self._closed = False

    def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        """See :class:`~domain_event_broker.ports.Transport`."""
        self._check_open()
        return _outcomes(self._broker.publish(self._exchange, message) for message in messages)

    def send_to(self, queue: str, messages: Sequence[Message]) -> list[PublishOutcome]:
        """See :class:`~domain_event_broker.ports.Addressing`."""
        self._check_open()
        return _outcomes(self._broker.send_to(queue, message) for message in messages)

    def subscribe(self, subscription: Subscription) -> None:
        """See :class:`~domain_event_broker.ports.Transport`."""
        self.declare(subscription)
        self._broker.join(subscription.name, self)
        self._subscriptions[subscription.name] = subscription

    def declare(self, subscription: Subscription) -> None:
        """See :class:`~domain_event_broker.ports.Transport`."""
        self._check_open()
        _check_options(subscription)
        self._broker.declare(self._exchange, subscription.name, subscription.binding_keys)
        self._broker.limit_letters(
            subscription.name, subscription.dead_letter_ttl, subscription.dead_letter_limit
        )

    def check(self, subscription: Subscription) -> list[str]:
        """See :class:`~domain_event_broker.ports.Transport`."""
        self._check_open()
        _check_options(subscription)
        return self._broker.missing(self._exchange, subscription.name, subscription.binding_keys)

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        """See :class:`~domain_event_broker.ports.Transport`.

        ``timeout`` is real time: moving the clock of the broker makes retries due, but does
        not end it.
        """
        self._check_open()
        end = time.monotonic() + timeout
        with self._broker.changed:
            while True:
                deliveries = self._take(limit)
                left = end - time.monotonic()
                if deliveries or self._woken or left <= 0:
                    self._woken = False
                    return deliveries
                self._broker.changed.wait(self._pause(left))

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """See :class:`~domain_event_broker.ports.Transport`."""
        self._check_open()
        with self._broker.changed:
            for settlement in settlements:
                held = self._held.pop(settlement.delivery.token, None)
                if held is not None:
                    self._settle(settlement, *held)

    def wake(self) -> None:
        """See :class:`~domain_event_broker.ports.Transport`."""
        with self._broker.changed:
            self._woken = True
            self._broker.changed.notify_all()

    def dead_letters(self, queue: str) -> MemoryDeadLetters:
        """See :class:`~domain_event_broker.ports.Transport`."""
        self._check_open()
        return MemoryDeadLetters(self._broker, queue)

    def stats(self, queues: Iterable[str]) -> dict[str, QueueStats]:
        """See :class:`~domain_event_broker.ports.Transport`."""
        self._check_open()
        return {name: self._broker.stats(name) for name in queues}

    def close(self) -> None:
        """See :class:`~domain_event_broker.ports.Transport`."""
        self._closed = True
        self._broker.leave(self)
        for name, entry in self._held.values():
            self._broker.give_back(name, entry)
        self._held.clear()

    def _take(self, limit: int) -> list[Delivery]:
        deliveries: list[Delivery] = []
        for name, room in self._rooms().items():
            taken = self._broker.take(name, min(room, limit - len(deliveries)))
            self._held.update((number, (name, entry)) for number, entry in taken)
            deliveries += [_delivery(name, number, entry) for number, entry in taken]
        if deliveries:
            self._let_another_be_first(deliveries[0].queue)
        return deliveries

    def _let_another_be_first(self, name: str) -> None:
        """A queue that always has something must not keep the limit for itself."""
        self._subscriptions[name] = self._subscriptions.pop(name)

    def _rooms(self) -> dict[str, int]:
        """Return how much each queue may deliver now; those that may nothing are left out."""
        held = Counter(name for name, _ in self._held.values())
        rooms = {name: each.prefetch - held[name] for name, each in self._subscriptions.items()}
        return {name: room for name, room in rooms.items() if room > 0}

    def _pause(self, left: float) -> float:
        due = self._broker.seconds_until_due(self._rooms())
        return left if due is None else min(left, due)

    def _settle(self, settlement: Settlement, name: str, entry: _Entry) -> None:
        if settlement.failure is not None:
            entry.headers.update(settlement.failure.to_headers())
        if settlement.action is Action.REQUEUE:
            self._broker.give_back(name, entry)
        elif settlement.action is Action.RETRY:
            self._broker.delay(name, entry, settlement.delay)
        elif settlement.action is Action.DEAD and self._subscriptions[name].dead_letter:
            self._broker.bury(name, entry)
        else:
            self._broker.drop(name)

    def _check_open(self) -> None:
        if self._closed:
            raise BrokerUnavailable("this connection to the memory: broker is closed")


class MemoryDeadLetters:
    """The dead letters of one handler; see :class:`~domain_event_broker.ports.DeadLetters`."""

    def __init__(self, broker: MemoryBroker, queue: str) -> None:
        self._broker = broker
        self._queue = queue

    def count(self) -> int:
        """See :class:`~domain_event_broker.ports.DeadLetters`."""
        return len(self._broker.dead(self._queue))

    def sift(self, decide: Callable[[DeadLetter], Decision], limit: int | None = None) -> SiftReport:
        """See :class:`~domain_event_broker.ports.DeadLetters`."""
        done = {Decision.RETRY: 0, Decision.DISCARD: 0, Decision.LEAVE: 0}
        for number, entry in self._broker.dead(self._queue)[:limit]:
            decision = Decision(decide(_letter(self._queue, entry)))
            replay = decision is Decision.RETRY
            if decision is Decision.LEAVE or self._broker.exhume(self._queue, number, replay):
                done[decision] += 1
        return SiftReport(done[Decision.RETRY], done[Decision.DISCARD], done[Decision.LEAVE])


def _name(settings: BrokerSettings) -> str:
    if len(settings.url) != 1:
        raise ConfigurationError(f"memory: is one broker; these are {len(settings.url)} URLs")
    if settings.exchange_type != "topic":
        raise UnsupportedOption(
            f"memory: knows topic exchanges only, not EXCHANGE_TYPE={settings.exchange_type!r}"
        )
    (url,) = settings.url
    _, separator, name = url.partition("://")
    if not separator and url.partition(":")[2]:
        raise ConfigurationError(f"{mask(url)!r} cannot be served; use 'memory:' or 'memory://name'")
    return name.strip("/")


def _check_options(subscription: Subscription) -> None:
    for option in ("exclusive", "auto_delete"):
        if getattr(subscription, option):
            raise UnsupportedOption(
                f"handler {subscription.name!r} has {option}=True: queues of memory: do not vanish "
                "with their consumer; RabbitMQ (amqp:) has such queues"
            )


def _outcomes(stored: Iterable[bool]) -> list[PublishOutcome]:
    return [PublishOutcome(Stored.STORED if each else Stored.UNROUTABLE) for each in stored]


def _delivery(queue: str, number: int, entry: _Entry) -> Delivery:
    headers: dict[str, Any] = dict(entry.headers)
    return Delivery(
        queue, entry.body, entry.routing_key, entry.event_id, headers, entry.retries, token=number
    )


def _letter(queue: str, entry: _Entry) -> DeadLetter:
    headers = dict(entry.headers)
    failure = Failure.from_headers(headers)
    return DeadLetter(queue, entry.body, entry.routing_key, entry.event_id, headers, failure, _replays(entry))


def _replays(entry: _Entry) -> int:
    return int(entry.headers.get(HEADER_REPLAYS, 0))
