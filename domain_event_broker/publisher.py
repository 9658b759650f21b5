"""Publishing: step one of an event's way.

With an outbox installed (the Django app does that) events are written beside the business
rows, in the caller's transaction, and a relay sends them. Without one they are sent at once,
and the call returns when the broker has confirmed them.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any, overload

from domain_event_broker import config
from domain_event_broker.codecs import bodies_of
from domain_event_broker.config import BrokerSettings
from domain_event_broker.direct import (
    Publisher,
    apply_options,
    close_connections,
    direct,
    install_connector,
    to_event,
)
from domain_event_broker.errors import InvalidEvent
from domain_event_broker.events import DomainEvent, TypedEvent, encode
from domain_event_broker.options import EventOptions
from domain_event_broker.ports import Outbox
from domain_event_broker.telemetry.tracing import created

__all__ = [
    "Publisher",
    "apublish_domain_event",
    "close_connections",
    "install_connector",
    "install_outbox",
    "installed_outbox",
    "publish_domain_event",
    "publish_domain_events",
    "to_event",
]

#: Options of events, one or several.
Options = EventOptions | Iterable[EventOptions]

#: What ``inspect`` takes for "no default": with a routing key ``data`` must be given, and the signature
#: says so; a typed event has its own.
_REQUIRED: Any = inspect.Parameter.empty

_outbox: Outbox | None = None


def install_outbox(outbox: Outbox | None) -> None:
    """Let events go through ``outbox`` from now on; ``None``: send them directly again."""
    global _outbox
    _outbox = outbox


def installed_outbox() -> Outbox | None:
    """Return the outbox that events go through; ``None``: they are sent directly."""
    return _outbox


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


def _publish(
    events: Sequence[DomainEvent],
    connection_settings: str | None,
    using: str | None,
    deliver_at: datetime | None,
    options: Options,
) -> None:
    settings = config.resolve(connection_settings)
    apply_options(events, options, settings)
    if settings is None:
        for event in events:
            encode(event)
        return
    bodies = bodies_of(settings)
    messages = [bodies.encode(event) for event in events]
    if settings.tracing:
        messages = created(messages, settings)
    if _outbox is not None and _is_default(connection_settings, settings):
        _outbox.store(messages, using=using, deliver_at=deliver_at)
    elif deliver_at is not None:
        raise InvalidEvent(
            "deliver_at needs the outbox, which only the Django app has, for the default broker"
        )
    else:
        direct.send(settings, messages)


def _event(
    what: Any,
    data: Any,
    domain_object_id: str | None,
    uuid_string: str | None,
    timestamp: float | None,
) -> DomainEvent:
    """Return the event that the arguments of :func:`publish_domain_event` describe."""
    if isinstance(what, str) or not (isinstance(what, DomainEvent) or hasattr(what, "to_event")):
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


def _is_default(connection_settings: str | None, settings: BrokerSettings) -> bool:
    if connection_settings == "":
        return True
    default = config.current()
    return default is not None and default.url == settings.url
