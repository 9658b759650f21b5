"""Sending straight to the broker, without an outbox: one open connection, each event confirmed."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from domain_event_broker import callbacks, config
from domain_event_broker import options as event_options
from domain_event_broker.batches import BatchAccount, Tally, chunks, waves
from domain_event_broker.codecs import bodies_of
from domain_event_broker.config import BrokerSettings
from domain_event_broker.errors import (
    BrokerUnavailable,
    ConfirmTimeout,
    InvalidEvent,
    MalformedEvent,
    PublishFailed,
)
from domain_event_broker.events import DomainEvent, Message, TypedEvent, encode, headers_to_send
from domain_event_broker.options import EventOptions
from domain_event_broker.ports import PublishOutcome, Stored, Transport
from domain_event_broker.stats import Stats
from domain_event_broker.telemetry.tracing import created
from domain_event_broker.transports import open_transport

logger = logging.getLogger("domain_event_broker.publisher")

#: Opens a connection to a broker.
Connector = Callable[[BrokerSettings], Transport]

_connect: Connector = open_transport


def install_connector(connect: Connector | None) -> Connector:
    """Let publishers connect with ``connect`` from now on; return what they connected with before.

    Those that events are published through without an outbox connect anew; other ones that are
    connected keep their connection.
    """
    global _connect
    before, _connect = _connect, connect or open_transport
    close_connections()
    return before


class Publisher:
    """Sends events straight to the broker over one open connection, each of them confirmed.

    For programs without Django, and for sending what another system made. It does not use
    the outbox. Not to be shared between threads.

    :param connection_settings: URL of the broker; by default the configured one. ``None``:
        nothing is sent.
    :param exchange: exchange to publish to.
    :param exchange_type: its type, should it have to be made.
    :param on_timeout: function or coroutine function that is called with each event that the broker
        did not confirm in time, before the error is raised: it may have it or not.
    """

    def __init__(
        self,
        connection_settings: str | None = "",
        exchange: str = "domain-events",
        exchange_type: str = "topic",
        *,
        on_timeout: Callable[[Any], Any] | None = None,
    ) -> None:
        settings = config.resolve(connection_settings)
        self._settings = config.with_exchange(settings, exchange, exchange_type) if settings else None
        self._on_timeout = on_timeout
        self._transport: Transport | None = None
        #: What it did so far; ``stats.as_dict()`` is ready for JSON.
        self.stats = Stats()

    def connect(self) -> None:
        """Connect to the broker, unless connected; publishing does so by itself.

        :raises BrokerUnavailable: it could not be reached.
        """
        if self._transport is None and self._settings is not None:
            self._transport = _connect(self._settings)
            self.stats.connected()

    def disconnect(self) -> None:
        """Close the connection, if there is one."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def publish(
        self, message: bytes | str | DomainEvent | TypedEvent, routing_key: str | None = None
    ) -> None:
        """Send one event, and return when the broker has confirmed it.

        :param message: an event, typed or not, or the body of one.
        :param routing_key: key to send it with, if not its own.
        :raises PublishFailed: the broker did not store it.
        :raises BrokerUnavailable: the broker did not confirm it; it may have it.
        """
        self._publish([message], [self.prepare(message, routing_key)])

    def publish_many(self, messages: Sequence[Message]) -> None:
        """Send messages in order, and return when the broker has confirmed them all.

        A connection that turns out to be dead is opened anew, once: so an idle publisher
        goes on working, and a message that was under way may be there twice.

        :raises PublishFailed: the broker did not store all of them.
        """
        self._publish(messages, messages)

    def publish_batch(
        self,
        events: Iterable[bytes | str | DomainEvent | TypedEvent],
        *,
        preserve_order: bool = False,
        chunk_size: int = 1000,
    ) -> BatchAccount:
        """Send events in order, and return the account of what became of each.

        One that the broker refuses does not stop the others. When the broker goes away, those after
        it are not sent. All events are checked before the first one is sent.

        :param preserve_order: send no event after one of the same ``domain_object_id`` that failed;
            each waits for the answer to the one before it.
        :param chunk_size: events on the way at once.
        :raises InvalidEvent: one of them cannot be sent as it is; nothing was sent.
        """
        given = list(events)
        messages = [self.prepare(event) for event in given]
        if self._settings is None:
            return BatchAccount()
        account = _Batch(self, given, messages, preserve_order).send(chunk_size)
        self.stats.batch(account.total, account.published)
        return account

    def prepare(
        self, event: bytes | str | DomainEvent | TypedEvent, routing_key: str | None = None
    ) -> Message:
        """Check an event, and return the message it is sent in.

        :raises InvalidEvent: it cannot be sent as it is.
        """
        made = _to_message(event, routing_key, self._settings)
        if self._settings is None:
            return made
        sealed = bodies_of(self._settings).seal(made)
        return created([sealed], self._settings)[0] if self._settings.tracing else sealed

    def send(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        """Send messages in order; return the broker's answer to each, whatever it is.

        A connection that turns out to be dead is opened anew, once.

        :raises BrokerUnavailable: it did not answer for all of them.
        """
        try:
            return self._send(messages)
        except ConfirmTimeout:
            raise  # it was waited for already
        except BrokerUnavailable:
            return self._send(messages)

    def __enter__(self) -> Publisher:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def _publish(self, given: Sequence[Any], messages: Sequence[Message]) -> None:
        if self._settings is None:
            return
        try:
            outcomes = self.send(messages)
        except ConfirmTimeout:
            self._timed_out(given)
            raise
        _check(messages, outcomes)

    def _timed_out(self, events: Iterable[Any]) -> None:
        """Tell ``on_timeout`` of events that were not confirmed in time."""
        for event in events:
            callbacks.call(self._on_timeout, event)

    def _send(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        self.connect()
        assert self._transport is not None  # noqa: S101 - connect() made it or raised
        try:
            outcomes = self._transport.publish(messages)
        except BrokerUnavailable:
            self.disconnect()
            raise
        answers = [outcome.stored for outcome in outcomes]
        self.stats.published(answers.count(Stored.STORED), answers.count(Stored.UNROUTABLE))
        return outcomes


class _Batch:
    """A batch on its way."""

    def __init__(
        self, publisher: Publisher, given: Sequence[Any], messages: Sequence[Message], preserve_order: bool
    ) -> None:
        self._publisher = publisher
        self._given = given
        self._messages = messages
        self._ordered = preserve_order
        self._tally = Tally()
        self._blocked: set[str | None] = set()
        self._lost = ""

    def send(self, chunk_size: int) -> BatchAccount:
        """Send it in parts, each when the one before has its answers."""
        everything = range(len(self._messages))
        parts = waves(everything, self._key) if self._ordered else [list(everything)]
        for part in parts:
            for chunk in chunks(part, chunk_size):
                self._send_chunk([index for index in chunk if not self._is_held_back(index)])
        return self._tally.account()

    def _send_chunk(self, chunk: Sequence[int]) -> None:
        if not chunk:
            return
        self._tally.chunks += 1
        try:
            outcomes = self._publisher.send([self._messages[index] for index in chunk])
        except BrokerUnavailable as error:
            self._lost = str(error)
            for index in chunk:
                self._failed(index, self._lost, maybe_stored=True)
            if isinstance(error, ConfirmTimeout):
                self._publisher._timed_out([self._given[index] for index in chunk])
            return
        for index, outcome in zip(chunk, outcomes, strict=True):
            if outcome.stored is Stored.REFUSED:
                self._failed(index, outcome.reason)
            else:
                self._tally.published(outcome.stored is Stored.UNROUTABLE)

    def _is_held_back(self, index: int) -> bool:
        if self._lost:
            self._failed(index, f"not sent: {self._lost}")
        elif self._ordered and self._key(index) in self._blocked:
            self._failed(index, "not sent: an earlier event of the same domain_object_id failed")
        else:
            return False
        return True

    def _failed(self, index: int, reason: str, maybe_stored: bool = False) -> None:
        self._tally.failed(self._given[index], self._messages[index], reason, maybe_stored)
        if self._key(index) is not None:
            self._blocked.add(self._key(index))

    def _key(self, index: int) -> str | None:
        return self._messages[index].ordering_key


def to_event(event: DomainEvent | TypedEvent) -> DomainEvent:
    """Return the event that is published for ``event``.

    :raises InvalidEvent: it is neither an event nor a typed one, or cannot be published.
    """
    if isinstance(event, DomainEvent):
        return event
    if not hasattr(event, "to_event") or isinstance(event, type):
        raise InvalidEvent(f"{event!r} is neither a DomainEvent nor an instance of an EventModel")
    return event.to_event()


def apply_options(
    events: Sequence[DomainEvent],
    options: EventOptions | Iterable[EventOptions],
    settings: BrokerSettings | None,
) -> None:
    """Write the options of events, and those of the call, where the broker's transport finds them.

    :raises UnsupportedOption: they are for another broker.
    """
    if options == () and not any(event.options for event in events):
        return
    layers = event_options.listed(options)
    scheme = config.scheme(settings.url[0]) if settings is not None else None
    for event in events:
        event_options.apply(event, layers, scheme)


class DirectRoute:
    """One publisher for each broker, kept open, shared by threads one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._publishers: dict[BrokerSettings, Publisher] = {}
        self._pid = os.getpid()
        self._of_parent: object = None

    def _begin_anew(self) -> None:
        """Forget the publishers, in a forked child.

        It shares its parent's sockets: closing one here would end the parent's connection, so the
        publishers are kept, untouched. A thread of the parent may have held the lock, for good here.
        """
        self._of_parent = self._publishers, self._of_parent
        self._publishers, self._lock, self._pid = {}, threading.Lock(), os.getpid()

    def send(self, settings: BrokerSettings, messages: Sequence[Message]) -> None:
        if self._pid != os.getpid():
            self._begin_anew()
        with self._lock:
            if settings not in self._publishers:
                self._publishers[settings] = _publisher_for(settings)
            self._publishers[settings].publish_many(messages)

    def close(self) -> None:
        if self._pid != os.getpid():
            self._begin_anew()
        with self._lock:
            for publisher in self._publishers.values():
                publisher.disconnect()
            self._publishers = {}


direct = DirectRoute()


def close_connections() -> None:
    """Close the connections that events published without an outbox were sent over."""
    direct.close()


def _publisher_for(settings: BrokerSettings) -> Publisher:
    publisher = Publisher(None)
    publisher._settings = settings  # whole settings, which no URL can say
    return publisher


def _to_message(
    message: bytes | str | DomainEvent | TypedEvent, routing_key: str | None, settings: BrokerSettings | None
) -> Message:
    if isinstance(message, DomainEvent) or hasattr(message, "to_event"):
        event = to_event(message)
        apply_options([event], (), settings)
        limits = () if settings is None else (settings.max_payload_bytes, settings.max_json_depth)
        made = encode(event, *limits)
        return replace(made, routing_key=routing_key) if routing_key else made
    body = message.encode("utf-8") if isinstance(message, str) else bytes(message)
    try:
        event = DomainEvent.from_json(body)
    except MalformedEvent:
        if not routing_key:
            raise
        return Message(routing_key, body, event_id="")
    return Message(
        routing_key or event.routing_key,
        body,
        event.uuid_string,
        event.domain_object_id,
        event.timestamp,
        headers_to_send(event),
    )


def _check(messages: Sequence[Message], outcomes: Sequence[PublishOutcome]) -> None:
    refused = [(m, o) for m, o in zip(messages, outcomes, strict=True) if o.stored is Stored.REFUSED]
    for message, outcome in zip(messages, outcomes, strict=True):
        if outcome.stored is Stored.UNROUTABLE:
            logger.info("no queue is bound for %s", message.routing_key, extra={"event_id": message.event_id})
    if refused:
        message, outcome = refused[0]
        raise PublishFailed(
            f"the broker refused {len(refused)} of {len(messages)} events, first {message.routing_key!r} "
            f"({message.event_id}): {outcome.reason}"
        )
