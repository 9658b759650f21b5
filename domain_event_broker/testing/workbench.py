"""What the contract suite works with: hooks that a transport's test class fills in, and tools.

Nothing here needs pytest to be imported; the suite is run by it.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar
from unittest import SkipTest

from domain_event_broker.events import Message
from domain_event_broker.failures import Failure
from domain_event_broker.ports import (
    Action,
    DeadLetter,
    DeadLetters,
    Decision,
    Delivery,
    Settlement,
    SiftReport,
    Stored,
    Subscription,
    Transport,
)
from domain_event_broker.testing.samples import FOREIGN_HEADERS

#: Seconds of one look for deliveries that have not come yet.
BEAT = 0.1
#: Seconds that virtual time moves on where a broker with a clock of its own had nothing to give.
VIRTUAL_BEAT = 0.02

Value = TypeVar("Value")


class TransportWorkbench:
    """Hooks and tools of :class:`~domain_event_broker.testing.TransportContract`."""

    #: What reports call the transport; default: the name of the class.
    title: str | None = None
    #: Longest wait, in seconds, for something that the broker has promised to do.
    patience: float = 10.0
    #: Whether :meth:`advance` moves a clock instead of waiting.
    virtual_time: bool = False
    #: Whether ``Delivery.crashes`` is counted.
    counts_crashes: bool = False

    # --- hooks ---------------------------------------------------------------------------

    def open(self) -> Transport:
        """Return a new connection, made in the calling thread, to the broker under test.

        Called several times in one test, it must reach one and the same broker.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how its transport is opened")

    def fresh_name(self) -> str:
        """Return a name that was never used on this broker, for a queue or as a word of a key."""
        return f"contract-{uuid.uuid4().hex[:12]}"

    def subscription(self, **overrides: object) -> Subscription:
        """Return a subscription with a fresh name, bound to ``<name>.*`` unless told otherwise.

        :param overrides: fields of :class:`~domain_event_broker.ports.Subscription`.
        """
        name = overrides.pop("name", None) or self.fresh_name()
        fields: dict[str, object] = {"name": name, "binding_keys": (f"{name}.*",), **overrides}
        self._queues.append(str(name))
        return Subscription(**fields)  # type: ignore[arg-type]

    def now(self) -> float:
        """Read the clock by which the broker measures delays, in seconds."""
        return time.monotonic()

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass on the clock of :meth:`now`, keeping open connections alive."""
        end = self.now() + seconds
        while (left := end - self.now()) > 0:
            for transport in self._opened:
                transport.receive(0, min(BEAT, left))

    def crash(self, transport: Transport) -> None:
        """Let the connection go as if its process had died. Default: it is closed."""
        transport.close()

    def clean_up(self, queues: Sequence[str]) -> None:
        """Called after each test with the names of its handlers: remove what they left behind."""

    # --- life of a test --------------------------------------------------------------------

    def setup_method(self) -> None:
        """Begin with no connection and no queue."""
        self._opened: list[Transport] = []
        self._queues: list[str] = []

    def teardown_method(self) -> None:
        """Close what was opened, and clean up."""
        for transport in self._opened:
            transport.close()
        self.clean_up(self._queues)

    def connect(self) -> Transport:
        """Open a connection that is closed when the test ends."""
        transport = self.open()
        self._opened.append(transport)
        return transport

    def disconnect(self, transport: Transport) -> None:
        """Close a connection of :meth:`connect` before the test ends."""
        self._opened.remove(transport)
        transport.close()

    def start_handler(self, **overrides: object) -> tuple[Transport, Subscription]:
        """Return a connection, and a handler that it receives for."""
        transport, handler = self.connect(), self.subscription(**overrides)
        transport.subscribe(handler)
        return transport, handler

    def start_two_handlers(self) -> tuple[Transport, tuple[Subscription, Subscription]]:
        """Return a connection that receives for two handlers bound with one and the same key."""
        transport, key = self.connect(), f"{self.fresh_name()}.placed"
        one, other = (self.subscription(binding_keys=(key,), delays=(0.1,)) for _ in range(2))
        transport.subscribe(one)
        transport.subscribe(other)
        return transport, (one, other)

    # --- sending ---------------------------------------------------------------------------

    def message(
        self, routing_key: str, body: bytes = b"{}", headers: Mapping[str, str | int] | None = None
    ) -> Message:
        """Return a message with an identity of its own."""
        return Message(routing_key, body, str(uuid.uuid4()), None, time.time(), dict(headers or {}))

    def publish(self, transport: Transport, *messages: Message) -> None:
        """Publish messages that must be stored."""
        outcomes = transport.publish(messages)
        assert [outcome.stored for outcome in outcomes] == [Stored.STORED] * len(messages), outcomes

    def publish_to(self, transport: Transport, subscription: Subscription, *bodies: bytes) -> list[Message]:
        """Publish one event for each body to a handler bound to ``<name>.*``, and return them."""
        messages = [self.message(f"{subscription.name}.placed", body) for body in bodies]
        self.publish(transport, *messages)
        return messages

    # --- receiving -------------------------------------------------------------------------

    def arrivals(
        self, transport: Transport, count: int, within: float | None = None
    ) -> list[tuple[float, Delivery]]:
        """Receive until ``count`` deliveries are there; return each with the time it came.

        :param within: seconds after which their absence is a failure; default: patience.
        """
        end = self.now() + (self.patience if within is None else within)
        found: list[tuple[float, Delivery]] = []
        while len(found) < count:
            batch = self._look(transport, count - len(found))
            found += [(self.now(), delivery) for delivery in batch]
            if not batch and self.now() > end:
                raise AssertionError(
                    f"{len(found)} of {count} deliveries came: {[delivery for _, delivery in found]}"
                )
        return found

    def collect(self, transport: Transport, count: int = 1, within: float | None = None) -> list[Delivery]:
        """Receive exactly ``count`` deliveries, waiting for them, and leave them unsettled."""
        return [delivery for _, delivery in self.arrivals(transport, count, within)]

    def collect_until_marker(self, transport: Transport, subscription: Subscription) -> list[Delivery]:
        """Publish a marker to the handler and return all that is delivered before it.

        Queues keep their order, so what has not come before the marker is not in the queue.
        The marker is acknowledged.
        """
        (marker,) = self.publish_to(transport, subscription, b"marker")
        found: list[Delivery] = []
        while True:
            (delivery,) = self.collect(transport)
            if delivery.event_id == marker.event_id:
                self.answer(transport, [delivery], Action.ACK)
                return found
            found.append(delivery)

    def deliver(self, transport: Transport, subscription: Subscription, *bodies: bytes) -> list[Delivery]:
        """Publish events to a handler that ``transport`` receives for, and receive them."""
        self.publish_to(transport, subscription, *bodies)
        return self.collect(transport, len(bodies))

    def eventually(self, read: Callable[[], Value], expected: Value) -> None:
        """Wait until ``read`` returns ``expected``: for figures that a broker tells a little late."""
        end = time.monotonic() + self.patience
        while (value := read()) != expected:
            if time.monotonic() > end:
                raise AssertionError(f"still {value!r}, and never {expected!r}")
            for transport in self._opened:
                transport.receive(0, BEAT)

    # --- settling --------------------------------------------------------------------------

    def answer(
        self,
        transport: Transport,
        deliveries: Sequence[Delivery],
        action: Action,
        delay: float = 0.0,
        failure: Failure | None = None,
    ) -> None:
        """Settle deliveries, all in the same way, in one batch."""
        transport.settle([Settlement(delivery, action, delay, failure) for delivery in deliveries])

    def failure(self, reason: str = "error", attempts: int = 1) -> Failure:
        """Return a failure with something in every field."""
        trace = 'Traceback (most recent call last):\n  File "größe.py", line 1\nValueError: 注文\n'
        return Failure(
            reason, "shop.errors.Größe", "no 注文 left", trace, attempts, "host:1", 1_700_000_000.5
        )

    def dead_letters_with(
        self, transport: Transport, subscription: Subscription, *bodies: bytes
    ) -> DeadLetters:
        """Publish events, let them fail for good, and return the dead letters they are in."""
        deliveries = self.deliver(transport, subscription, *bodies)
        self.answer(transport, deliveries, Action.DEAD, failure=self.failure())
        letters = transport.dead_letters(subscription.name)
        self.eventually(letters.count, len(bodies))
        return letters

    def browse(self, letters: DeadLetters, limit: int | None = None) -> list[DeadLetter]:
        """Return the dead letters, leaving all where they are."""
        seen: list[DeadLetter] = []

        def look(letter: DeadLetter) -> Decision:
            seen.append(letter)
            return Decision.LEAVE

        report = letters.sift(look, limit)
        assert (report.replayed, report.discarded, report.left) == (0, 0, len(seen)), report
        return seen

    def sift_all(self, letters: DeadLetters, decision: Decision) -> tuple[list[int], SiftReport]:
        """Give all letters one decision; return how often each was replayed before, and the report."""
        replays: list[int] = []

        def decide(letter: DeadLetter) -> Decision:
            replays.append(letter.replays)
            return decision

        return replays, letters.sift(decide)

    def not_applicable(self, reason: str) -> SkipTest:
        """Return what a test raises when the transport does not claim to do what it tests."""
        return SkipTest(f"not applicable: {reason}")

    def _look(self, transport: Transport, limit: int) -> list[Delivery]:
        if not self.virtual_time:
            return transport.receive(limit, BEAT)
        found = transport.receive(limit, 0)
        if not found:
            self.advance(VIRTUAL_BEAT)
            found = transport.receive(limit, 0)
        return found


class Meanwhile:
    """Runs something in another thread, a little after the body of ``with`` has begun.

    What it raises is raised when that body has ended.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._error: BaseException | None = None
        self._thread = threading.Timer(0.2, self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:
            self._error = error


def ids_of(deliveries: Sequence[Delivery]) -> list[str]:
    """Return the identities of events, in their order."""
    return [delivery.event_id for delivery in deliveries]


def bodies_of(events: Sequence[Delivery | DeadLetter]) -> list[bytes]:
    """Return the bodies of events, in their order."""
    return [event.body for event in events]


def foreign_headers_of(event: Delivery | DeadLetter) -> dict[str, object]:
    """Return the headers of another program; a transport may add some of its own."""
    return {name: value for name, value in event.headers.items() if name in FOREIGN_HEADERS}
