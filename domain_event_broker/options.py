"""Options of events: what a publisher asks of the broker for one event, or for a class of them.

They can be given on a class of typed events, on an instance, and with the call that publishes;
what is said later wins, option by option::

    class PriceChanged(EventModel, routing_key="price.changed", options=RabbitMQOptions(priority=3)): ...

    publish_domain_event(PriceChanged(...).with_options(RabbitMQOptions(expiration=60)))
    publish_domain_event("price.changed", {...}, options=RabbitMQOptions(priority=9))

They are stored with the event, and travel in one header of its message until a transport applies
them. :func:`read` is for transports.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, ClassVar

from domain_event_broker import correlation
from domain_event_broker.errors import InvalidEvent, UnsupportedOption
from domain_event_broker.events import HEADER_CORRELATION_ID, HEADER_OPTIONS, DomainEvent

#: Longest text of an option, and longest name of a header, in bytes: an AMQP 0-9-1 short string.
MAX_TEXT = 255
#: Most that all headers given for an event may take, in characters. With those that the library
#: adds for a dead letter they must fit into one AMQP frame (128 KiB by default).
MAX_HEADERS = 32_768
#: Longest expiration, in milliseconds: what RabbitMQ takes (https://www.rabbitmq.com/docs/ttl).
MAX_EXPIRATION = 2**32 - 1

#: Names that belong to the library, to the broker, and to the sender's list of further queues.
_FOREIGN_PREFIXES = ("event-", "x-")
_FOREIGN_NAMES = ("CC", "BCC")

#: Schemes of URLs at which every option is accepted: the stand-in for a broker in tests.
_TAKE_ALL = ("memory",)

_AMQP_TEXTS = ("content_type", "content_encoding", "reply_to", "type", "app_id", "user_id")


@dataclass(frozen=True, kw_only=True)
class EventOptions:
    """Options that every broker can serve.

    :param headers: written beside the body; handlers see them in ``event.headers``. Values are str,
        int or bool.
    :param correlation_id: the story that the event belongs to, instead of the one around it.
    """

    #: The broker that they are for, and the schemes of its URLs; empty: any.
    backend: ClassVar[str] = ""
    schemes: ClassVar[tuple[str, ...]] = ()

    headers: Mapping[str, str | int] = field(default_factory=dict)
    correlation_id: str | None = None

    def __post_init__(self) -> None:
        _check_headers(self)
        if self.correlation_id is not None and not correlation.is_usable(self.correlation_id):
            raise _wrong(self, "correlation_id", "printable text of 1 to 255 bytes")

    def for_backend(self) -> dict[str, Any]:
        """Return what only the transport of the backend understands, as JSON can hold it."""
        return {}


@dataclass(frozen=True, kw_only=True)
class BackendOptions(EventOptions):
    """Options that one kind of broker can serve.

    :param optional: publish also to another broker, without them; otherwise that is an error.
    """

    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class RabbitMQOptions(BackendOptions):
    """What RabbitMQ can be asked to do with an event (https://www.rabbitmq.com/docs/publishers#message-properties).

    What is ``None`` is as always. All times given as numbers are seconds.

    :param delivery_mode: 2: written to disk; 1: a classic queue may lose it with a restart.
    :param priority: 0 to 255, higher first, in a queue that knows priorities.
    :param expiration: how long the event waits for a handler, in seconds or as a timedelta, counted
        from when the broker gets it; or, as an aware datetime, until when. One that nobody
        took by then goes to the dead letters of the handler with the reason ``expired``; it is
        deleted where there are none. An event that is retried or replayed does not expire.
    :param content_type: instead of ``application/json``. The body stays JSON.
    :param content_encoding: what the body says of itself; it is not changed.
    :param reply_to: name of a queue that answers are expected in.
    :param message_id: always the identity of the event, by which handlers know duplicates: give
        ``uuid_string`` instead.
    :param type: instead of the routing key.
    :param app_id: instead of ``domain_event_broker``.
    :param user_id: the user that the relay connects as; the broker refuses any other name.
    :param timestamp: instead of that of the event: Unix time in seconds, or an aware datetime.
    """

    backend: ClassVar[str] = "rabbitmq"
    schemes: ClassVar[tuple[str, ...]] = ("amqp", "amqps")

    delivery_mode: int | None = None
    priority: int | None = None
    expiration: int | float | timedelta | datetime | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    reply_to: str | None = None
    message_id: str | None = None
    type: str | None = None
    app_id: str | None = None
    user_id: str | None = None
    timestamp: int | float | datetime | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.message_id is not None:
            raise InvalidEvent(
                f"RabbitMQOptions: message_id={self.message_id!r} would hide the identity of the event, by "
                "which handlers know duplicates; publish the event with that uuid_string instead"
            )
        if self.delivery_mode not in (None, 1, 2):
            raise _wrong(self, "delivery_mode", "1 (transient) or 2 (persistent)")
        _check_number(self, "priority", 0, 255)
        for name in _AMQP_TEXTS:
            _check_text(self, name)
        self.for_backend()

    def for_backend(self) -> dict[str, Any]:
        """See :class:`EventOptions`."""
        plain = {name: getattr(self, name) for name in ("delivery_mode", "priority", *_AMQP_TEXTS)}
        found = {name: value for name, value in plain.items() if value is not None}
        if self.timestamp is not None:
            found["timestamp"] = int(_unix_time(self, "timestamp"))
        if self.expiration is not None:
            found |= self._expiration()
        return found

    def _expiration(self) -> dict[str, int | None]:
        """A period is counted by the broker; a moment is stored, and the relay reckons what is left."""
        if isinstance(self.expiration, datetime):
            expires_at = round(_unix_time(self, "expiration") * 1000)
            if expires_at - time.time_ns() // 1_000_000 > MAX_EXPIRATION:
                raise _wrong(self, "expiration", f"a moment within {MAX_EXPIRATION // 86_400_000} days")
            return {"expires_at": expires_at, "expires_in": None}
        seconds: Any = self.expiration
        if isinstance(seconds, timedelta):
            seconds = seconds.total_seconds()
        if not _is_number(seconds) or not 0 <= seconds * 1000 <= MAX_EXPIRATION:
            raise _wrong(
                self,
                "expiration",
                f"a number of seconds from 0 to {MAX_EXPIRATION // 1000}, a timedelta or an aware datetime",
            )
        return {"expires_at": None, "expires_in": round(seconds * 1000)}


@dataclass(frozen=True, kw_only=True)
class KafkaOptions(BackendOptions):
    """What Kafka can be asked to do with an event.

    :param partition_key: instead of the ``domain_object_id``: events with the same one go to the same
        partition, in order.
    :param partition: number of the partition, whatever the key.
    :param timestamp: instead of that of the event: Unix time in seconds, or an aware datetime.
    """

    backend: ClassVar[str] = "kafka"
    schemes: ClassVar[tuple[str, ...]] = ("kafka",)

    partition_key: str | None = None
    partition: int | None = None
    timestamp: int | float | datetime | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_text(self, "partition_key")
        _check_number(self, "partition", 0, 2**31 - 1)
        self.for_backend()

    def for_backend(self) -> dict[str, Any]:
        """See :class:`EventOptions`."""
        found = {"partition_key": self.partition_key, "partition": self.partition}
        if self.timestamp is not None:
            found["timestamp"] = int(_unix_time(self, "timestamp") * 1000)
        return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class RedisOptions(BackendOptions):
    """What Redis can be asked to do with an event: nothing yet beyond what every broker can.

    Say ``optional=True`` where headers are meant for Redis alone.
    """

    backend: ClassVar[str] = "redis"
    schemes: ClassVar[tuple[str, ...]] = ("redis", "rediss")


def apply(event: DomainEvent, given: EventOptions | Iterable[EventOptions], scheme: str | None) -> None:
    """Write options into the headers of an event: its own, then those ``given`` with the call.

    :param scheme: that of the broker's URL; ``None``: it is not known, and none is refused.
    :raises UnsupportedOption: some are for another broker, and not optional.
    :raises InvalidEvent: what is given is no options.
    """
    layers = [*listed(event.options), *listed(given)]
    if not layers:
        return
    headers = dict(event.headers)
    backends: dict[str, dict[str, Any]] = {}
    for layer in layers:
        if isinstance(layer, BackendOptions):
            # Stored also where they are not for this broker: the relay may send to another one.
            known = backends.setdefault(layer.backend, {})
            known.update(layer.for_backend())
        if _is_served(layer, scheme):
            headers |= layer.headers
            if layer.correlation_id is not None:
                headers[HEADER_CORRELATION_ID] = layer.correlation_id
    backends = {name: _said(options) for name, options in backends.items() if _said(options)}
    _check_size(headers, "all options of an event together")
    if backends:
        headers[HEADER_OPTIONS] = json.dumps(backends, separators=(",", ":"), sort_keys=True)
    event.headers = headers


def read(headers: Mapping[str, Any], backend: str) -> dict[str, Any]:
    """Return the options for ``backend`` that the headers of a message carry, checked when written.

    What somebody else wrote into the header, and is no options, counts as none.
    """
    written = headers.get(HEADER_OPTIONS)
    if not isinstance(written, str):
        return {}
    try:
        options = json.loads(written)[backend]
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return options if isinstance(options, dict) else {}


def listed(given: EventOptions | Iterable[EventOptions]) -> tuple[EventOptions, ...]:
    """Return options given alone or several at once, as a tuple.

    :raises InvalidEvent: something is no options.
    """
    several: Any = given
    layers: tuple[Any, ...] = tuple(several) if isinstance(several, Iterable) else (several,)
    for layer in layers:
        if not isinstance(layer, EventOptions):
            raise InvalidEvent(f"options={layer!r} is none of EventOptions, RabbitMQOptions, ...")
    return layers


def _is_served(layer: EventOptions, scheme: str | None) -> bool:
    if not layer.schemes or scheme is None or scheme in layer.schemes or scheme in _TAKE_ALL:
        return True
    if isinstance(layer, BackendOptions) and layer.optional:
        return False
    raise UnsupportedOption(
        f"{type(layer).__name__} are for {', '.join(f'{each}:' for each in layer.schemes)}, and this event "
        f"goes to {scheme}:; give EventOptions, or say optional=True to publish without them"
    )


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_headers(options: EventOptions) -> None:
    headers: Any = options.headers
    if not isinstance(headers, Mapping):
        raise _wrong(options, "headers", "a dict")
    for name, value in headers.items():
        problem = _header_problem(name, value)
        if problem:
            raise InvalidEvent(f"{type(options).__name__}: the header {name!r} {problem}")
    _check_size(options.headers, type(options).__name__)


def _check_size(headers: Mapping[str, Any], of: str) -> None:
    size = sum(len(name.encode()) + len(str(value).encode()) for name, value in headers.items())
    if size > MAX_HEADERS:
        raise InvalidEvent(
            f"{of}: the headers take {size} bytes; at most {MAX_HEADERS} are allowed. Large content belongs "
            "into the data of the event."
        )


def _header_problem(name: object, value: object) -> str:
    if not isinstance(name, str) or not _fits(name):
        return f"needs a name of 1 to {MAX_TEXT} printable bytes"
    if name.startswith(_FOREIGN_PREFIXES) or name in _FOREIGN_NAMES:
        return "has a name that belongs to the library or to the broker (event-..., x-..., CC, BCC)"
    if isinstance(value, str):
        return "" if _is_encodable(value) else "holds NUL or lone surrogates"
    if isinstance(value, int):
        return "" if -(2**63) <= value < 2**63 else "is a number of more than 64 bits"
    return f"is of type {type(value).__name__}; use str, int or bool"


def _check_text(options: EventOptions, name: str) -> None:
    value = getattr(options, name)
    if value is not None and not (isinstance(value, str) and _fits(value)):
        raise _wrong(options, name, f"printable text of 1 to {MAX_TEXT} bytes")


def _check_number(options: EventOptions, name: str, least: int, most: int) -> None:
    value = getattr(options, name)
    whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (whole and least <= value <= most):
        raise _wrong(options, name, f"an integer from {least} to {most}")


def _unix_time(options: EventOptions, name: str) -> float:
    value: Any = getattr(options, name)
    if isinstance(value, datetime) and value.utcoffset() is not None:
        value = value.timestamp()
    if not _is_number(value) or not 0 <= value < 2**53 / 1000:
        raise _wrong(options, name, "Unix time in seconds, or an aware datetime")
    return float(value)


def _is_number(value: object) -> bool:
    """Tell whether ``value`` is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value - value == 0


def _fits(text: str) -> bool:
    return text.isprintable() and 0 < len(text.encode()) <= MAX_TEXT


def _is_encodable(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


def _wrong(options: EventOptions, name: str, expected: str) -> InvalidEvent:
    known = {item.name for item in fields(options)}
    value = getattr(options, name) if name in known else None
    return InvalidEvent(f"{type(options).__name__}: {name}={value!r} is not {expected}")
