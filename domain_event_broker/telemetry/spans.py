"""The spans of an event's way, by the semantic conventions of OpenTelemetry for messaging.

Imported where tracing is on. The conventions are those of
https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/ (and ``rabbitmq/`` beside it):

* ``create`` (PRODUCER) when an event is published. Its context goes into the headers, which outbox, broker,
  retries, dead letters and replays carry as they are: all that follows is one trace.
* ``send`` (CLIENT) for each batch that is sent, with links to its events.
* ``process`` (CONSUMER) for each attempt of a handler, child of ``create`` and linked to it.
* ``replay`` or ``discard`` (CLIENT) for dead letters, with links to their events.

Attributes never hold payloads, nor texts of exceptions, which may quote them. Whatever fails in here is
told of once and keeps no event from its way.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar, Token
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from opentelemetry import context as contexts
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode

from domain_event_broker._version import __version__
from domain_event_broker.config import scheme
from domain_event_broker.events import HEADER_CORRELATION_ID, HEADER_REPLAYS, Message
from domain_event_broker.failures import Failure
from domain_event_broker.handoff import TRACE_HEADERS
from domain_event_broker.ports import DeadLetter, Delivery, Settlement

logger = logging.getLogger("domain_event_broker.tracing")

Result = TypeVar("Result")

#: Links of one span. The SDK keeps no more by default (``OTEL_SPAN_LINK_COUNT_LIMIT``).
MAX_LINKS = 128

SYSTEM = "messaging.system"
OPERATION_NAME, OPERATION_TYPE = "messaging.operation.name", "messaging.operation.type"
DESTINATION = "messaging.destination.name"
GROUP = "messaging.consumer.group.name"
MESSAGE_COUNT = "messaging.batch.message_count"
MESSAGE_ID, CONVERSATION_ID = "messaging.message.id", "messaging.message.conversation_id"
BODY_SIZE = "messaging.message.body.size"
RABBITMQ_KEY = "messaging.rabbitmq.destination.routing_key"
ERROR_TYPE = "error.type"
#: Ours, for what the conventions have no name for.
ATTEMPT, OUTCOME = "domain_event_broker.attempt", "domain_event_broker.outcome"
REASON, RETRY_DELAY = "domain_event_broker.failure.reason", "domain_event_broker.retry.delay"
REPLAYS = "domain_event_broker.replays"
UNROUTABLE, REFUSED = "domain_event_broker.unroutable", "domain_event_broker.refused"

_SYSTEMS = {"amqp": "rabbitmq", "amqps": "rabbitmq", "rediss": "redis"}
#: Schemes whose URLs name no host.
_WITHOUT_HOST = ("memory", "database")

#: Headers of what began the code that runs now, where that has no span of its own: a Celery task.
_carried: ContextVar[Mapping[str, Any] | None] = ContextVar("domain_event_broker_trace", default=None)


def harmless(call: Callable[[], Result], otherwise: Result) -> Result:
    """Return what ``call`` does; ``otherwise`` where it fails, which is told of.

    Samplers, span processors and propagators are of the project's choice. What they raise is no reason for an
    event to stay, nor to be handled twice.
    """
    try:
        return call()
    except Exception:
        if not _told:
            _told.append(True)
            logger.exception("tracing failed; events go on without it (said once)")
        return otherwise


_told: list[bool] = []


class Tracing:
    """Makes the spans of a program.

    :param urls: where the broker is.
    :param exchange: exchange that its events are published to.
    """

    def __init__(self, urls: tuple[str, ...], exchange: str) -> None:
        # Of whichever provider is set now or later.
        self._tracer = trace.get_tracer("domain_event_broker", __version__)
        self._exchange = exchange
        self._common = _common_attributes(urls)
        self._is_rabbitmq = self._common[SYSTEM] == "rabbitmq"

    def created(self, message: Message) -> Message:
        """Return a message that carries the trace of what surrounds its publisher."""
        return harmless(lambda: self._created(message), message)

    def begin(self, delivery: Delivery) -> Processing | None:
        """Begin the span of an attempt; :meth:`Processing.end` ends it, in the same thread or task."""
        return harmless(lambda: Processing(self._start_process(delivery)), None)

    def carried_by(self, headers: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the headers of an event with the span of its handler in them, for whom it is handed to."""
        return {**headers, **self.headers_now()}

    def headers_now(self) -> dict[str, str]:
        """Return the headers by which something that begins now is told of the trace around it."""
        carrier: dict[str, str] = {}
        harmless(lambda: propagate.inject(carrier, _around({})), None)
        return carrier

    def carry(self, headers: Mapping[str, Any]) -> Token[Mapping[str, Any] | None]:
        """Let events published now go on with the trace in ``headers``, unless a span surrounds them."""
        return _carried.set(headers)

    def drop(self, token: Token[Mapping[str, Any] | None]) -> None:
        """Undo :meth:`carry`."""
        _carried.reset(token)

    def flush(self, seconds: float) -> None:
        """Let the provider export what waits for that, for ``seconds`` at most."""
        force = getattr(trace.get_tracer_provider(), "force_flush", None)
        if force is not None:
            harmless(lambda: force(int(seconds * 1000)), None)

    def start(self, operation: str, operation_type: str, destination: str, **options: Any) -> Span:
        """Start a span.

        :param operation: what is done, in one word.
        :param operation_type: one of the conventions' words for what kind of thing that is.
        :param options: ``attributes`` beside the common ones, and what else the tracer takes.
        """
        attributes = {
            **self._common,
            OPERATION_NAME: operation,
            OPERATION_TYPE: operation_type,
            DESTINATION: destination,
            **options.pop("attributes", {}),
        }
        return self._tracer.start_span(f"{operation} {destination}", attributes=attributes, **options)

    def start_send(self, messages: Iterable[Message], count: int) -> Span:
        """Start the span of a batch on its way to the broker."""
        return self.start(
            "send",
            "send",
            self._exchange,
            kind=SpanKind.CLIENT,
            links=links_to(each.headers for each in messages),
            attributes={MESSAGE_COUNT: count},
        )

    def _created(self, message: Message) -> Message:
        parent = _around(message.headers)
        attributes = self._of_message(message.routing_key, message.event_id, message.headers, message.body)
        span = self.start(
            "create",
            "create",
            _joined(self._exchange, message.routing_key),
            context=parent,
            kind=SpanKind.PRODUCER,
            attributes=attributes,
        )
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span, parent))
        span.end()
        if not carrier:
            return message  # there is no provider, and nothing to go on with
        own = {name: value for name, value in message.headers.items() if name not in TRACE_HEADERS}
        return replace(message, headers={**own, **carrier})

    def _start_process(self, delivery: Delivery) -> tuple[Span, Context]:
        parent = propagate.extract(_strings(delivery.headers), Context())
        creation = trace.get_current_span(parent).get_span_context()
        attributes = self._of_message(
            delivery.routing_key, delivery.event_id, delivery.headers, delivery.body
        ) | {GROUP: delivery.queue, ATTEMPT: delivery.retries + 1}
        replays = delivery.headers.get(HEADER_REPLAYS)
        if isinstance(replays, int):
            attributes[REPLAYS] = replays
        span = self.start(
            "process",
            "process",
            _joined(self._exchange, delivery.routing_key, delivery.queue),
            context=parent,
            kind=SpanKind.CONSUMER,
            links=[Link(creation)] if creation.is_valid else [],
            attributes=attributes,
        )
        return span, trace.set_span_in_context(span, parent)

    def _of_message(
        self, routing_key: str, event_id: str, headers: Mapping[str, Any], body: bytes
    ) -> dict[str, str | int]:
        attributes: dict[str, str | int] = {
            MESSAGE_ID: event_id,
            CONVERSATION_ID: str(headers.get(HEADER_CORRELATION_ID) or event_id),
            BODY_SIZE: len(body),
        }
        if self._is_rabbitmq:
            attributes[RABBITMQ_KEY] = routing_key
        return attributes


class Processing:
    """An attempt under way: its span is what surrounds the code that runs now, until it ends."""

    __slots__ = ("_span", "_token")

    def __init__(self, started: tuple[Span, Context]) -> None:
        self._span, context = started
        self._token: Token[Context] = contexts.attach(context)

    def end(self, settlement: Settlement | None, error: BaseException | None = None) -> None:
        """End the span, and go back to what was around before.

        :param settlement: how the delivery ended; ``None``: ``error`` was raised instead.
        """
        harmless(lambda: self._end(settlement, error), None)

    def _end(self, settlement: Settlement | None, error: BaseException | None) -> None:
        contexts.detach(self._token)
        if settlement is not None:
            self._span.set_attribute(OUTCOME, settlement.outcome)
            if settlement.delay:
                self._span.set_attribute(RETRY_DELAY, settlement.delay)
            if settlement.failure is not None:
                _set_failure(self._span, settlement.failure)
        elif error is not None:
            set_error(self._span, error)
        self._span.end()


def links_to(headers: Iterable[Mapping[str, Any]]) -> list[Link]:
    """Return links to the contexts in headers: of recorded traces, so many as a span can have."""
    links: list[Link] = []
    for each in headers:
        found = context_in(each)
        if found is not None:
            links.append(Link(found))
            if len(links) >= MAX_LINKS:
                break
    return links


def context_in(headers: Mapping[str, Any]) -> SpanContext | None:
    """Return the context in headers; ``None``: none, or one of a trace that is not recorded."""
    found = trace.get_current_span(propagate.extract(_strings(headers), Context())).get_span_context()
    return found if found.is_valid and found.trace_flags.sampled else None


def set_error(span: Span, error: BaseException) -> None:
    """Say on a span what kind of error it ended with; its text may quote anything."""
    span.set_attribute(ERROR_TYPE, type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR))


def letter_attributes(letter: DeadLetter) -> dict[str, str | int]:
    """Return what a link to a dead letter says of it."""
    return {MESSAGE_ID: letter.event_id, REPLAYS: letter.replays}


def _set_failure(span: Span, failure: Failure) -> None:
    span.set_attribute(REASON, failure.reason)
    span.set_attribute(ERROR_TYPE, failure.error_type or failure.reason)
    span.set_status(Status(StatusCode.ERROR, failure.reason))


def _around(headers: Mapping[str, Any]) -> Context:
    """Return the context that an event published now belongs to.

    :param headers: those of the event: one that was received, or made by hand, may have a trace of its own.
    """
    context = contexts.get_current()
    if trace.get_current_span(context).get_span_context().is_valid:
        return context
    return propagate.extract(_strings(_carried.get() or headers), context)


def _strings(headers: Mapping[Any, Any]) -> dict[str, str]:
    """Return what a propagator can read; foreign programs write anything into headers."""
    return {
        name: value
        for name, value in headers.items()
        if isinstance(name, str) and isinstance(value, str) and not name.startswith("event-")
    }


def _joined(*parts: str) -> str:
    """Return a destination as ``exchange:routing key:queue``, without what is empty or said twice."""
    return ":".join(dict.fromkeys(part for part in parts if part))


def _common_attributes(urls: tuple[str, ...]) -> dict[str, str | int]:
    """Return what is the same for all spans. One URL names a server; of several, any may be the one."""
    kind = scheme(urls[0])
    attributes: dict[str, str | int] = {SYSTEM: _SYSTEMS.get(kind, kind)}
    if len(urls) == 1 and kind not in _WITHOUT_HOST:
        parts = urlsplit(urls[0])
        if parts.hostname:
            attributes["server.address"] = parts.hostname
        if parts.port:
            attributes["server.port"] = parts.port
    return attributes
