"""Takes note of every event that a test publishes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar, cast

from domain_event_broker import config, publisher
from domain_event_broker.codecs import bodies_of
from domain_event_broker.config import BrokerSettings
from domain_event_broker.events import DomainEvent, Message, TypedEvent
from domain_event_broker.ports import Capabilities, Delivery, Outbox, PublishOutcome, Stored, Transport
from domain_event_broker.testing.published import Published, PublishedEvents, always
from domain_event_broker.testing.running import MAX_DELIVERIES, HandlerRunner, RunReport

Result = TypeVar("Result")


class CapturedEvents(PublishedEvents):
    """The events published since capturing began, and the handlers that they can be given to."""

    def __init__(self) -> None:
        super().__init__()
        self._runner: HandlerRunner | None = None
        self._fed = 0

    def run_handlers(
        self,
        handlers: Iterable[Any] | None = None,
        *,
        allow_dead_letters: bool = False,
        max_deliveries: int = MAX_DELIVERIES,
    ) -> RunReport:
        """Give the captured events to the handlers, until nothing is left to do.

        Each event is given once; those that handlers publish are given, too. Handlers run in this
        thread, one at a time, through the inbox, in the transaction of the test if there is one.
        Retries and dead letters are those of a subscriber, on a clock that does not wait.

        :param handlers: names, functions or handlers; default: all of the program. Only the first
            call can say.
        :param allow_dead_letters: ``False``: an event that fails for good fails the test.
        :param max_deliveries: deliveries after which handlers are taken for a ring.
        :raises AssertionError: an event failed for good, or there was no end.
        :raises HandlerError: no handler has such a name.
        """
        __tracebackhide__ = True
        runner = self._runner = self._runner or HandlerRunner(handlers)
        report = runner.run(self._unfed, max_deliveries)
        if not allow_dead_letters:
            report.assert_no_dead_letters()
        return report

    def replay_dead_letters(self, handler: Any = None, *, allow_dead_letters: bool = False) -> RunReport:
        """Put dead letters back to work, as ``manage.py replay_dlq`` does, and run the handlers.

        :param handler: name or function of the handler; default: all.
        :param allow_dead_letters: as for :meth:`run_handlers`.
        """
        __tracebackhide__ = True
        if self._runner is not None:
            self._runner.replay(handler)
        return self.run_handlers(allow_dead_letters=allow_dead_letters)

    def take_note(self, published: Sequence[Published]) -> None:
        """Add what was published."""
        self._published.extend(published)

    def clear(self) -> None:
        """Forget what was published so far; it is not given to handlers any more."""
        super().clear()
        self._fed = 0

    def close(self) -> None:
        """Forget the queues of the handlers."""
        if self._runner is not None:
            self._runner.close()

    def _unfed(self) -> list[Published]:
        new, self._fed = self._published[self._fed :], len(self._published)
        return [each for each in new if each.is_there()]

    def _why_nothing(self) -> str:
        off = config.current() is None
        return ": DOMAIN_EVENT_BROKER is None, so the broker is switched off." if off else "."


@contextmanager
def capture_events() -> Iterator[CapturedEvents]:
    """Take note of the events that are published within, by any thread.

    In Django they are stored in the outbox all the same, in the transaction of the test; those of a
    transaction that is rolled back are not counted. Without Django, and for other brokers than the
    default one, they are not sent: no broker is needed.

    A :class:`~domain_event_broker.Publisher` that was connected before goes on sending.
    """
    captured = CapturedEvents()
    outbox = publisher.installed_outbox()
    connect = publisher.install_connector(lambda settings: cast(Transport, _Captor(captured)))
    if outbox is not None:
        publisher.install_outbox(_CapturingOutbox(outbox, captured))
    try:
        yield captured
    finally:
        publisher.install_outbox(outbox)
        publisher.install_connector(connect)
        captured.close()


class CaptureEventsMixin:
    """For ``unittest``: each test has ``self.captured_events``.

    It goes before the test case: ``class Placing(CaptureEventsMixin, TestCase)``.
    """

    captured_events: CapturedEvents

    def run(self, result: Any = None) -> Any:
        """Run the test while events are captured."""
        with capture_events() as self.captured_events:
            return cast(Any, super()).run(result)


def run_handlers(
    *events: DomainEvent | TypedEvent,
    handlers: Iterable[Any] | None = None,
    allow_dead_letters: bool = False,
    max_deliveries: int = MAX_DELIVERIES,
) -> RunReport:
    """Give events to handlers, as :meth:`CapturedEvents.run_handlers` does, without publishing them.

    :param events: what the handlers get.

    The other parameters, and the errors, are those of that method.
    """
    __tracebackhide__ = True
    with capture_events() as captured:
        bodies = bodies_of(config.current() or BrokerSettings(url=("memory:",)))
        captured.take_note([Published(bodies.encode(publisher.to_event(event))) for event in events])
        return captured.run_handlers(
            handlers, allow_dead_letters=allow_dead_letters, max_deliveries=max_deliveries
        )


class _CapturingOutbox:
    """Stores events in the real outbox, and takes note."""

    def __init__(self, outbox: Outbox, captured: CapturedEvents) -> None:
        self._outbox = outbox
        self._captured = captured

    def store(
        self, messages: Sequence[Message], *, using: str | None = None, deliver_at: datetime | None = None
    ) -> None:
        """See :class:`~domain_event_broker.ports.Outbox`."""
        self._outbox.store(messages, using=using, deliver_at=deliver_at)
        is_there = self.fate(using)
        self._captured.take_note([Published(message, deliver_at, is_there) for message in messages])

    def in_async(self, call: Callable[..., Result]) -> Callable[..., Awaitable[Result]]:
        """See :class:`~domain_event_broker.ports.Outbox`."""
        return self._outbox.in_async(call)

    def fate(self, using: str | None = None) -> Callable[[], bool]:
        """Return what tells whether events stored now are there; an outbox that cannot tell keeps them."""
        fate = getattr(self._outbox, "fate", None)
        return always if fate is None else cast(Callable[[], bool], fate(using))


class _Captor:
    """A connection over which nothing is sent."""

    capabilities = Capabilities()

    def __init__(self, captured: CapturedEvents) -> None:
        self._captured = captured

    def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        """Take note of the messages; all are stored."""
        self._captured.take_note([Published(message) for message in messages])
        return [PublishOutcome(Stored.STORED)] * len(messages)

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        """Return nothing."""
        return []

    def wake(self) -> None:
        """Do nothing: nobody waits."""

    def close(self) -> None:
        """Do nothing."""
