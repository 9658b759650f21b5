"""Spans of what goes to the broker in one piece: batches, and dead letters that are decided on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from domain_event_broker.events import Message
from domain_event_broker.ports import (
    DeadLetter,
    DeadLetters,
    Decision,
    PublishOutcome,
    SiftReport,
    Stored,
    Transport,
)
from domain_event_broker.telemetry.spans import (
    ERROR_TYPE,
    GROUP,
    MAX_LINKS,
    MESSAGE_COUNT,
    REFUSED,
    UNROUTABLE,
    Tracing,
    context_in,
    harmless,
    letter_attributes,
    set_error,
)


class TracedTransport:
    """Does what another transport does, and makes a span of each batch."""

    def __init__(self, transport: Transport, tracing: Tracing) -> None:
        self._transport = transport
        self._tracing = tracing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        """Send messages: see :meth:`~domain_event_broker.ports.Transport.publish`."""
        span = harmless(lambda: self._tracing.start_send(messages, len(messages)), None)
        try:
            outcomes = self._transport.publish(messages)
        except BaseException as error:
            _end(span, error)
            raise
        if span is not None:
            harmless(lambda: _tell(span, outcomes), None)
        _end(span)
        return outcomes

    def dead_letters(self, queue: str) -> DeadLetters:
        """Return the dead letters of a handler."""
        return _TracedLetters(self._transport.dead_letters(queue), queue, self._tracing)


class _TracedLetters:
    """Dead letters with a span for each time that some of them are replayed or discarded."""

    def __init__(self, letters: DeadLetters, queue: str, tracing: Tracing) -> None:
        self._letters = letters
        self._queue = queue
        self._tracing = tracing

    def count(self) -> int:
        """Return how many there are."""
        return self._letters.count()

    def sift(self, decide: Callable[[DeadLetter], Decision], limit: int | None = None) -> SiftReport:
        """Decide on each: see :meth:`~domain_event_broker.ports.DeadLetters.sift`."""
        sifting = _Sifting(decide, self._queue, self._tracing)
        try:
            report = self._letters.sift(sifting.decide, limit)
        except BaseException as error:
            sifting.end(error)
            raise
        sifting.end()
        return report


class _Sifting:
    """One look through the dead letters. A mere look makes no span."""

    def __init__(self, decide: Callable[[DeadLetter], Decision], queue: str, tracing: Tracing) -> None:
        self._decide = decide
        self._queue = queue
        self._tracing = tracing
        self._span: Span | None = None
        self._count = self._links = 0

    def decide(self, letter: DeadLetter) -> Decision:
        """Ask for the decision, and link to the letter if something becomes of it."""
        decision = self._decide(letter)
        if decision is not Decision.LEAVE:
            harmless(lambda: self._take_note(letter, decision), None)
        return decision

    def end(self, error: BaseException | None = None) -> None:
        """End the span, if there is one."""
        span = self._span
        if span is not None:
            harmless(lambda: span.set_attribute(MESSAGE_COUNT, self._count), None)
            _end(span, error)

    def _take_note(self, letter: DeadLetter, decision: Decision) -> None:
        self._count += 1
        if self._span is None:
            self._span = self._start("discard" if decision is Decision.DISCARD else "replay")
        found = context_in(letter.headers)
        if found is not None and self._links < MAX_LINKS:
            self._links += 1
            self._span.add_link(found, letter_attributes(letter))

    def _start(self, operation: str) -> Span:
        return self._tracing.start(
            operation, "settle", self._queue, kind=SpanKind.CLIENT, attributes={GROUP: self._queue}
        )


def _tell(span: Span, outcomes: Sequence[PublishOutcome]) -> None:
    answers = [outcome.stored for outcome in outcomes]
    refused, unroutable = answers.count(Stored.REFUSED), answers.count(Stored.UNROUTABLE)
    if unroutable:
        span.set_attribute(UNROUTABLE, unroutable)
    if refused:
        span.set_attribute(REFUSED, refused)
        span.set_attribute(ERROR_TYPE, "refused")
        span.set_status(Status(StatusCode.ERROR, "refused"))


def _end(span: Span | None, error: BaseException | None = None) -> None:
    if span is None:
        return
    if error is not None:
        harmless(lambda: set_error(span, error), None)
    harmless(span.end, None)
