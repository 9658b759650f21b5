"""Publishing: step one of an event's way.

With an outbox installed (the Django app does that) events are written beside the business
rows, in the caller's transaction, and a relay sends them. Without one they are sent at once,
and the call returns when the broker has confirmed them.
"""

from __future__ import annotations

import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, overload

from domain_event_broker import config
from domain_event_broker import options as event_options
from domain_event_broker.codecs import bodies_of
from domain_event_broker.config import BrokerSettings
from domain_event_broker.errors import BrokerUnavailable, InvalidEvent, MalformedEvent, PublishFailed
from domain_event_broker.events import DomainEvent, Message, TypedEvent, encode
from domain_event_broker.options import EventOptions
from domain_event_broker.ports import Outbox, PublishOutcome, Stored, Transport
from domain_event_broker.transports import open_transport

logger = logging.getLogger("domain_event_broker.publisher")

#: Opens a connection to a broker.
Connector = Callable[[BrokerSettings], Transport]

#: Options of events, one or several.
Options = EventOptions | Iterable[EventOptions]

#: What ``inspect`` takes for "no default": with a routing key ``data`` must be given, and the signature
#: says so; a typed event has its own.
_REQUIRED: Any = inspect.Parameter.empty

_outbox: Outbox | None = None
_connect: Connector = open_transport


def install_outbox(outbox: Outbox | None) -> None:
    """Let events go through ``outbox`` from now on; ``None``: send them directly again."""
    global _outbox
    _outbox = outbox


def installed_outbox() -> Outbox | None:
    """Return the outbox that events go through; ``None``: they are sent directly."""
    return _outbox


def install_connector(connect: Connector | None) -> Connector:
    """Let publishers connect with ``connect`` from now on; return what they connected with before.

    Those that events are published through without an outbox connect anew; other ones that are
    connected keep their connection.
    """
    global _connect
    before, _connect = _connect, connect or open_transport
    close_connections()
    return before


@overload
def publish_domain_event(
    routing_key: str,
    data: Any,
    domain_object_id: str | None = None,
    uuid_string: str | None = None,
    timestamp: float | None = None,
    connection_settings: str | None = "",
    *,
    using: str | None = None,
    deliver_at: datetime | None = None,
    options: Options = (),
) -> DomainEvent: ...


@overload
def publish_domain_event(
    routing_key: TypedEvent | DomainEvent,
    *,
    domain_object_id: str | None = None,
    uuid_string: str | None = None,
    timestamp: float | None = None,
    connection_settings: str | None = "",
    using: str | None = None,
    deliver_at: datetime | None = None,
    options: Options = (),
) -> DomainEvent: ...


def publish_domain_event(
    routing_key: str | TypedEvent | DomainEvent,
    data: Any = _REQUIRED,
    domain_object_id: str | None = None,
    uuid_string: str | None = None,
    timestamp: float | None = None,
    connection_settings: str | None = "",
    *,
    using: str | None = None,
    deliver_at: datetime | None = None,
    options: Options = (),
) -> DomainEvent:
    """Publish that something happened.

    In Django the event is stored in the caller's database transaction: if that commits, the
    event reaches every handler bound to it at least once, whatever dies in between; if it
    rolls back, none ever sees it. Without Django, or for another broker than the default
    one, it is sent at once, and this returns when the broker has confirmed it.

    :param routing_key: of the form ``<DOMAIN>.<EVENT_TYPE>``, such as ``"user.registered"``. Or a
        typed event, which has key and data: see :class:`domain_event_broker.EventModel`.
    :param data: what happened; must be JSON serialisable, or a dataclass.
    :param domain_object_id: the object it happened to. Events with the same one leave the
        outbox in the order in which they were published.
    :param uuid_string: identity of the event; a new one if ``None``.
    :param timestamp: Unix time in seconds; now if ``None``.
    :param connection_settings: URL of the broker; by default the configured one. ``None``:
        the event is made and checked, and not published.
    :param using: alias of the Django database whose transaction the event belongs to.
    :param deliver_at: not sent before this time (aware datetime; needs the outbox).
    :param options: what the broker is asked to do with it: see :mod:`domain_event_broker.options`.
    :return: the event.
    :raises InvalidEvent: it cannot be sent as it is; nothing was stored.
    :raises UnsupportedOption: the options are for another broker than the one it goes to.
    :raises OutboxUnavailable: it could not be stored; the transaction cannot commit.
    :raises PublishFailed: (sent at once) the broker did not store it.
    :raises BrokerUnavailable: (sent at once) the broker did not confirm it; it may have it.
    """
    event = _event(routing_key, data, domain_object_id, uuid_string, timestamp)
    _publish([event], connection_settings, using, deliver_at, options)
    return event


def publish_domain_events(
    events: Iterable[DomainEvent | TypedEvent],
    connection_settings: str | None = "",
    *,
    using: str | None = None,
    deliver_at: datetime | None = None,
    options: Options = (),
) -> list[DomainEvent]:
    """Publish many events at once, in order: one statement on the outbox, one batch to the broker.

    All of them are checked before the first is stored. Parameters, guarantees and errors are
    those of :func:`publish_domain_event`.

    :return: the events.
    """
    listed = [to_event(event) for event in events]
    if listed:
        _publish(listed, connection_settings, using, deliver_at, options)
    return listed


@overload
async def apublish_domain_event(
    routing_key: str,
    data: Any,
    domain_object_id: str | None = None,
    uuid_string: str | None = None,
    timestamp: float | None = None,
    connection_settings: str | None = "",
    *,
    using: str | None = None,
    deliver_at: datetime | None = None,
    options: Options = (),
) -> DomainEvent: ...


@overload
async def apublish_domain_event(
    routing_key: TypedEvent | DomainEvent,
    *,
    domain_object_id: str | None = None,
    uuid_string: str | None = None,
    timestamp: float | None = None,
    connection_settings: str | None = "",
    using: str | None = None,
    deliver_at: datetime | None = None,
    options: Options = (),
) -> DomainEvent: ...


async def apublish_domain_event(
    routing_key: str | TypedEvent | DomainEvent,
    data: Any = _REQUIRED,
    domain_object_id: str | None = None,
    uuid_string: str | None = None,
    timestamp: float | None = None,
    connection_settings: str | None = "",
    *,
    using: str | None = None,
    deliver_at: datetime | None = None,
    options: Options = (),
) -> DomainEvent:
    """Publish from a coroutine; as :func:`publish_domain_event` otherwise.

    Django has no transactions in async code: there the event is stored in a transaction of
    its own. To publish together with other rows, put both into one function, and call that
    with ``sync_to_async``.
    """
    event = _event(routing_key, data, domain_object_id, uuid_string, timestamp)
    publish = partial(_publish, [event], connection_settings, using, deliver_at, options)
    if _outbox is not None:
        await _outbox.in_async(publish)()
    else:
        # Whoever calls this has it loaded; whoever does not shall not wait for it.
        from asyncio import to_thread

        await to_thread(publish)
    return event


def to_event(event: DomainEvent | TypedEvent) -> DomainEvent:
    """Return the event that is published for ``event``.

    :raises InvalidEvent: it is neither an event nor a typed one, or cannot be published.
    """
    if isinstance(event, DomainEvent):
        return event
    if not hasattr(event, "to_event") or isinstance(event, type):
        raise InvalidEvent(f"{event!r} is neither a DomainEvent nor an instance of an EventModel")
    return event.to_event()


class Publisher:
    """Sends events straight to the broker over one open connection, each of them confirmed.

    For programs without Django, and for sending what another system made. It does not use
    the outbox. Not to be shared between threads.

    :param connection_settings: URL of the broker; by default the configured one. ``None``:
        nothing is sent.
    :param exchange: exchange to publish to.
    :param exchange_type: its type, should it have to be made.
    """

    def __init__(
        self,
        connection_settings: str | None = "",
        exchange: str = "domain-events",
        exchange_type: str = "topic",
    ) -> None:
        settings = config.resolve(connection_settings)
        self._settings = config.with_exchange(settings, exchange, exchange_type) if settings else None
        self._transport: Transport | None = None

    def connect(self) -> None:
        """Connect to the broker, unless connected; publishing does so by itself.

        :raises BrokerUnavailable: it could not be reached.
        """
        if self._transport is None and self._settings is not None:
            self._transport = _connect(self._settings)

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
        made = _to_message(message, routing_key, self._settings)
        self.publish_many([bodies_of(self._settings).seal(made) if self._settings else made])

    def publish_many(self, messages: Sequence[Message]) -> None:
        """Send messages in order, and return when the broker has confirmed them all.

        A connection that turns out to be dead is opened anew, once: so an idle publisher
        goes on working, and a message that was under way may be there twice.

        :raises PublishFailed: the broker did not store all of them.
        """
        if self._settings is None:
            return
        try:
            outcomes = self._send(messages)
        except BrokerUnavailable:
            self.disconnect()
            outcomes = self._send(messages)
        _check(messages, outcomes)

    def __enter__(self) -> Publisher:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.disconnect()

    def _send(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        self.connect()
        assert self._transport is not None  # noqa: S101 - connect() made it or raised
        try:
            return self._transport.publish(messages)
        except BrokerUnavailable:
            self.disconnect()
            raise


class _DirectRoute:
    """One publisher for each broker, kept open, shared by threads one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._publishers: dict[BrokerSettings, Publisher] = {}
        self._pid = 0

    def send(self, settings: BrokerSettings, messages: Sequence[Message]) -> None:
        with self._lock:
            if self._pid != os.getpid():
                # A forked child shares its parent's socket: closing it here would end the
                # parent's connection, so the publishers are left alone.
                self._publishers, self._pid = {}, os.getpid()
            if settings not in self._publishers:
                self._publishers[settings] = _publisher_for(settings)
            self._publishers[settings].publish_many(messages)

    def close(self) -> None:
        with self._lock:
            for publisher in self._publishers.values():
                publisher.disconnect()
            self._publishers = {}


_direct = _DirectRoute()


def close_connections() -> None:
    """Close the connections that events published without an outbox were sent over."""
    _direct.close()


def _publish(
    events: Sequence[DomainEvent],
    connection_settings: str | None,
    using: str | None,
    deliver_at: datetime | None,
    options: Options,
) -> None:
    settings = config.resolve(connection_settings)
    _apply_options(events, options, settings)
    if settings is None:
        for event in events:
            encode(event)
        return
    bodies = bodies_of(settings)
    messages = [bodies.encode(event) for event in events]
    if _outbox is not None and _is_default(connection_settings, settings):
        _outbox.store(messages, using=using, deliver_at=deliver_at)
    elif deliver_at is not None:
        raise InvalidEvent(
            "deliver_at needs the outbox, which only the Django app has, for the default broker"
        )
    else:
        _direct.send(settings, messages)


def _event(
    what: str | TypedEvent | DomainEvent,
    data: Any,
    domain_object_id: str | None,
    uuid_string: str | None,
    timestamp: float | None,
) -> DomainEvent:
    """Return the event that the arguments of :func:`publish_domain_event` describe."""
    if not isinstance(what, DomainEvent) and not hasattr(what, "to_event"):
        if data is _REQUIRED:
            raise TypeError("publish_domain_event() missing 1 required positional argument: 'data'")
        return DomainEvent(what, data, domain_object_id, uuid_string, timestamp)
    if data is not _REQUIRED:
        raise TypeError(f"{type(what).__name__} has data of its own: publish_domain_event() takes no other")
    event = to_event(what)
    given = {"domain_object_id": domain_object_id, "uuid_string": uuid_string, "timestamp": timestamp}
    for name, value in given.items():
        if value is not None:
            setattr(event, name, value)
    return event


def _apply_options(events: Sequence[DomainEvent], options: Options, settings: BrokerSettings | None) -> None:
    layers = event_options.listed(options)
    if layers or any(event.options for event in events):
        scheme = config.scheme(settings.url[0]) if settings is not None else None
        for event in events:
            event_options.apply(event, layers, scheme)


def _is_default(connection_settings: str | None, settings: BrokerSettings) -> bool:
    if connection_settings == "":
        return True
    default = config.current()
    return default is not None and default.url == settings.url


def _publisher_for(settings: BrokerSettings) -> Publisher:
    publisher = Publisher(None)
    publisher._settings = settings  # whole settings, which no URL can say
    return publisher


def _to_message(
    message: bytes | str | DomainEvent | TypedEvent, routing_key: str | None, settings: BrokerSettings | None
) -> Message:
    if isinstance(message, DomainEvent) or hasattr(message, "to_event"):
        event = to_event(message)
        _apply_options([event], (), settings)
        made = encode(event)
        return replace(made, routing_key=routing_key) if routing_key else made
    body = message.encode("utf-8") if isinstance(message, str) else bytes(message)
    try:
        event = DomainEvent.from_json(body)
    except MalformedEvent:
        if not routing_key:
            raise
        return Message(routing_key, body, event_id="")
    return Message(
        routing_key or event.routing_key, body, event.uuid_string, event.domain_object_id, event.timestamp
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
