"""The domain event, and the message it travels in.

The body is one JSON object with the five fields of the older library (``routing_key``,
``data``, ``domain_object_id``, ``uuid_string``, ``timestamp``), so that its publishers feed
our subscribers and the reverse. Everything else travels in headers beside the body.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from itertools import accumulate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Protocol

from domain_event_broker import correlation
from domain_event_broker.errors import InvalidEvent, MalformedEvent
from domain_event_broker.routing import check_routing_key

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    Data = TypeVar("Data", default=Any)
else:
    from typing import TypeVar

    Data = TypeVar("Data")

#: Header values that every transport can carry.
Headers = Mapping[str, "str | int"]

#: Deliveries of this event to this handler that failed so far.
HEADER_ATTEMPT = "event-attempt"
#: The routing key the event was published with: moving through queues replaces the broker's own.
HEADER_ROUTING_KEY = "event-routing-key"
#: Unix time in milliseconds before which a retried event shall not reach its handler.
HEADER_NOT_BEFORE = "event-not-before"
#: How often the event was put back from the dead letters.
HEADER_REPLAYS = "event-replays"
#: The story an event is part of; absent: the event began it, and its own identity is that of the
#: story. AMQP has a property for it.
HEADER_CORRELATION_ID = "event-correlation-id"
#: Identity of the event whose handler published this one.
HEADER_CAUSATION_ID = "event-causation-id"
#: Version of the class of a typed event.
HEADER_SCHEMA_VERSION = "event-schema-version"
#: What a publisher asks of the broker for this event, as JSON, until a transport does it.
HEADER_OPTIONS = "event-options"
#: Name of the codec that the body was sealed with; absent: the body is plain.
HEADER_CODEC = "event-codec"

#: What is written of failures: of the last one, and of those before a replay.
_FAILURE_HEADERS = ("event-error-", "event-history-")
_STORY = (HEADER_CORRELATION_ID, HEADER_CAUSATION_ID)
#: What is written on the envelope on the way to one handler, and means nothing on another way.
_IN_TRANSIT = frozenset({HEADER_ATTEMPT, HEADER_ROUTING_KEY, HEADER_NOT_BEFORE, HEADER_REPLAYS, HEADER_CODEC})
_NO_HEADERS: Headers = MappingProxyType({})

#: Largest body that is published unless the setting ``MAX_PAYLOAD_BYTES`` says otherwise: the
#: limit of RabbitMQ 4, which closes the channel on anything larger
#: (https://www.rabbitmq.com/docs/configure, ``max_message_size``).
MAX_PAYLOAD_BYTES = 16 * 1024 * 1024

#: Deepest nesting of arrays and objects in a body, the body itself included, unless the setting
#: ``MAX_JSON_DEPTH`` says otherwise: far below what Python's parser bears before it gives up.
MAX_JSON_DEPTH = 200

_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}

_REQUIRED_FIELDS = ("routing_key", "data", "uuid_string")
_NO_DATA: dict[str, Any] = {}


class DomainEvent(Generic[Data]):
    """Something that happened in a domain, and that others may want to know.

    :param routing_key: of the form ``<DOMAIN>.<EVENT_TYPE>``, such as ``"user.registered"``.
    :param data: what happened, JSON serialisable; a dict by convention. Dataclasses and pydantic
        models are sent as the dicts of their fields.
    :param domain_object_id: identifies the object it happened to. Events with the same one
        leave the outbox in the order in which they were published.
    :param uuid_string: identity of the event; a new UUID (version 7, RFC 9562) if ``None``.
        Handlers with an inbox take effect once per identity.
    :param timestamp: Unix time in seconds; now if ``None``.
    :param retries: how often handling this event was tried before and failed.
    :param extra: further fields, kept in the body: a newer publisher may send more than this
        version knows.
    """

    __hash__ = None  # type: ignore[assignment]

    #: What the broker is asked to do with it: see :mod:`domain_event_broker.options`. They are for
    #: publishing; who receives the event does not see them.
    options: tuple[Any, ...] = ()

    def __init__(
        self,
        routing_key: str = "",
        data: Any = _NO_DATA,
        domain_object_id: str | None = None,
        uuid_string: str | None = None,
        timestamp: float | None = None,
        retries: int = 0,
        **extra: Any,
    ) -> None:
        self.routing_key = routing_key
        self.data: Any = {} if data is _NO_DATA else data
        self.domain_object_id = domain_object_id
        self.uuid_string = uuid_string if uuid_string is not None else new_event_id()
        self.timestamp = timestamp if timestamp is not None else time.time()
        self.retries = retries
        self.extra = extra
        #: What is written on the envelope, beside the body.
        self.headers: Mapping[str, Any] = _NO_HEADERS

    @property
    def correlation_id(self) -> str:
        """Identity of the story that the event is part of; its own, where it began one."""
        found = self.headers.get(HEADER_CORRELATION_ID)
        return str(found) if correlation.is_usable(found) else self.uuid_string

    @property
    def causation_id(self) -> str | None:
        """Identity of the event that this one is the consequence of: it was published by its handler."""
        found = self.headers.get(HEADER_CAUSATION_ID)
        return str(found) if correlation.is_usable(found) else None

    @property
    def domain(self) -> str:
        """The routing key's first word: ``"user"`` of ``"user.registered"``."""
        return self.routing_key.partition(".")[0]

    @property
    def event_type(self) -> str:
        """What follows the domain: ``"registered"`` of ``"user.registered"``."""
        return self.routing_key.partition(".")[2]

    @property
    def event_data(self) -> dict[str, Any]:
        """The fields of the body, as the older library has them: for the ``extra`` of a log line."""
        return {
            "routing_key": self.routing_key,
            "data": self.data,
            "domain_object_id": self.domain_object_id,
            "uuid_string": self.uuid_string,
            "timestamp": self.timestamp,
        }

    def to_json(self) -> str:
        """Return the body this event is sent with: ASCII JSON, one object.

        :raises InvalidEvent: ``data`` holds something JSON cannot; the message says where.
        """
        fields = {**self.extra, **self.event_data}
        try:
            return _to_json(fields)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidEvent(
                f"event {self.routing_key!r} is not JSON serialisable: {_json_problem(fields, error)}"
            ) from error

    @classmethod
    def from_json(cls, json_data: str | bytes) -> DomainEvent:
        """Read an event from the body it was sent with.

        Fields that this version does not know are kept in :attr:`extra`; missing ones take
        the defaults of the constructor.

        :raises MalformedEvent: the body is not a JSON object in UTF-8, or a field has the
            wrong type.
        """
        fields = _read_object(json_data)
        _check_types(fields)
        fields.pop("self", None)
        return cls(**fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DomainEvent) and _content(self) == _content(other)

    def __repr__(self) -> str:
        return f"DomainEvent({self.routing_key!r}, {self.data!r}, uuid_string={self.uuid_string!r})"


class TypedEvent(Protocol):
    """What knows how to become an event: see :class:`domain_event_broker.typed.EventModel`."""

    def to_event(self) -> DomainEvent:
        """Return the event that is published for this.

        :raises InvalidEvent: it cannot be published as it is.
        """


@dataclass(frozen=True, slots=True)
class Message:
    """An event on its way: the exact bytes of the body, and what is written on the envelope.

    The outbox stores these bytes and the relay sends them as they are, so an event looks the
    same however many releases lie between writing and sending it.
    """

    routing_key: str
    body: bytes
    event_id: str
    ordering_key: str | None = None
    timestamp: float = 0.0
    headers: Headers = field(default_factory=dict)


def encode(
    event: DomainEvent, max_bytes: int = MAX_PAYLOAD_BYTES, max_depth: int = MAX_JSON_DEPTH
) -> Message:
    """Check an event and put it into the message it is sent in.

    :param max_bytes: largest body allowed, in bytes.
    :param max_depth: deepest nesting of arrays and objects allowed, the body itself included.
    :raises InvalidEvent: routing key, data, identity, size or depth cannot be sent. Nothing has
        been stored yet when this is raised.
    """
    check_routing_key(event.routing_key)
    _check_identity(event)
    body = event.to_json().encode("ascii")
    if len(body) > max_bytes:
        raise InvalidEvent(
            f"event {event.routing_key!r} is {len(body)} bytes long; at most {max_bytes} are allowed "
            "(setting MAX_PAYLOAD_BYTES). Publish a reference to large content, not the content itself."
        )
    if is_too_deep(body, max_depth):
        raise InvalidEvent(
            f"event {event.routing_key!r} is nested too deeply: at most {max_depth} levels are allowed "
            "(setting MAX_JSON_DEPTH)"
        )
    event.headers = headers = headers_to_send(event)
    key = event.domain_object_id or None
    return Message(event.routing_key, body, event.uuid_string, key, event.timestamp, headers)


def decode(
    body: bytes,
    event_id: str = "",
    retries: int = 0,
    max_depth: int = MAX_JSON_DEPTH,
    headers: Mapping[str, Any] = _NO_HEADERS,
) -> DomainEvent:
    """Read a delivered body, more strictly than :meth:`DomainEvent.from_json`.

    :param event_id: identity on the envelope, used where the body has none.
    :param headers: what else is on the envelope.
    :param max_depth: deepest nesting of arrays and objects allowed, the body itself included.
    :raises MalformedEvent: it is not an event, is nested too deeply, or lacks a field no handler
        can do without.
    """
    if is_too_deep(body, max_depth):
        raise MalformedEvent(
            f"the body is nested too deeply: at most {max_depth} levels are allowed (setting MAX_JSON_DEPTH)"
        )
    fields = _read_object(body)
    if fields.get("uuid_string") in (None, ""):
        # Without one that stays, each delivery would be another event for the inbox.
        fields["uuid_string"] = event_id
    missing = [name for name in _REQUIRED_FIELDS if fields.get(name, "") == ""]
    if missing:
        raise MalformedEvent(f"the body lacks the field {missing[0]!r}; it has {_listed(fields)}")
    _check_types(fields)
    fields.pop("self", None)
    fields["retries"] = retries
    event: DomainEvent = DomainEvent(**fields)
    event.headers = headers
    if HEADER_OPTIONS in headers:
        # They were for the way to here. Published again with the event, they would act for somebody
        # else, who may have written anything into them.
        event.headers = {name: value for name, value in headers.items() if name != HEADER_OPTIONS}
    return event


def is_too_deep(body: bytes, limit: int) -> bool:
    """Tell whether arrays and objects in ``body`` are nested more than ``limit`` deep.

    It takes one pass, and next to nothing for a body with no more than ``limit`` brackets; what a
    parser does with nesting takes the stack of its thread. The body need not be valid JSON.
    """
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    # Without escapes a quotation mark always begins or ends a string.
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside_strings = b"".join(unescaped.split(b'"')[::2])
    brackets = outside_strings.translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) > limit


def new_event_id() -> str:
    """Return a new UUID of version 7 (RFC 9562, section 5.7).

    Time-ordered, so that the indexes of outbox archive and inbox grow at one end.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    # As str(uuid.UUID(int=value)), in half the time: each event that is published needs one.
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def _check_identity(event: DomainEvent) -> None:
    # Any: what callers give is not always what the signature asks for.
    key: Any = event.domain_object_id
    event_id: Any = event.uuid_string
    timestamp: Any = event.timestamp
    if isinstance(key, (int, uuid.UUID)):
        event.domain_object_id = key = str(key)
    if key is not None and not (isinstance(key, str) and len(key) <= 255 and _is_storable(key)):
        raise InvalidEvent(
            f"event {event.routing_key!r}: domain_object_id={key!r} is not a string of at most 255 "
            "characters without NUL and lone surrogates"
        )
    if not isinstance(event_id, str) or not 1 <= len(event_id) <= 64 or not event_id.isprintable():
        raise InvalidEvent(
            f"event {event.routing_key!r}: uuid_string={event_id!r} is not "
            "a printable string of 1 to 64 characters"
        )
    if isinstance(timestamp, bool) or not isinstance(timestamp, (int, float)):
        raise InvalidEvent(
            f"event {event.routing_key!r}: timestamp={timestamp!r} is not Unix time in seconds"
        )


def headers_to_send(event: DomainEvent) -> Headers:
    """Return the headers of an event with the identities of what surrounds its publisher.

    An event that was received and is published again keeps what belongs to itself. One that
    begins a story needs no header to say so, and costs nothing.
    """
    around = correlation.current()
    if not event.headers and around is correlation.NOTHING:
        return _NO_HEADERS
    headers: dict[str, str | int] = {
        name: value for name, value in event.headers.items() if _goes_along(name, value)
    }
    if around.correlation_id and around.correlation_id != event.uuid_string:
        headers.setdefault(HEADER_CORRELATION_ID, around.correlation_id)
    if around.causation_id and around.causation_id != event.uuid_string:
        headers.setdefault(HEADER_CAUSATION_ID, around.causation_id)
    return headers


def _goes_along(name: str, value: object) -> bool:
    """Tell whether a header belongs to an event itself, and can be sent."""
    if not isinstance(value, (str, int)) or name in _IN_TRANSIT or name.startswith(_FAILURE_HEADERS):
        return False
    return name not in _STORY or correlation.is_usable(value)


def _content(event: DomainEvent) -> dict[str, Any]:
    """Return what makes an event equal to another: what it says, not what its envelope says."""
    return {name: value for name, value in vars(event).items() if name not in ("headers", "options")}


def _fields_of(value: Any) -> dict[str, Any]:
    """Return what JSON can hold of a value that it cannot hold itself."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if hasattr(value, "model_dump") and not isinstance(value, type):
        return dict(value.model_dump(mode="json", by_alias=True))
    raise TypeError(f"{type(value).__name__} is not JSON serialisable")


#: Made once: ``json.dumps`` with arguments makes a new one each time.
_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_fields_of).encode


def _is_storable(text: str) -> bool:
    if "\x00" in text:
        return False
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _read_object(body: str | bytes) -> dict[str, Any]:
    try:
        text = body.decode("utf-8") if isinstance(body, (bytes, bytearray)) else body
        fields = json.loads(text)
    except UnicodeDecodeError as error:
        raise MalformedEvent(f"the body is not UTF-8: {error.reason} at byte {error.start}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise MalformedEvent(f"the body is not JSON: {str(error) or type(error).__name__}") from error
    if not isinstance(fields, dict):
        raise MalformedEvent(f"the body is a JSON {type(fields).__name__}, not an object")
    return fields


def _check_types(fields: Mapping[str, Any]) -> None:
    expected: dict[str, tuple[type, ...]] = {
        "routing_key": (str,),
        "uuid_string": (str, type(None)),
        "domain_object_id": (str, int, type(None)),
        "timestamp": (int, float, type(None)),
        "retries": (int,),
    }
    for name, types in expected.items():
        if name in fields and not isinstance(fields[name], types):
            raise MalformedEvent(f"the field {name!r} is a JSON {type(fields[name]).__name__}")


def _json_problem(fields: Mapping[str, Any], error: Exception) -> str:
    if isinstance(error, RecursionError) or "Circular" in str(error):
        return "it is nested too deeply, or contains itself"
    for path, value in _leaves(fields, ""):
        if isinstance(value, float):
            return f"{path} is {value!r}, which JSON has no number for"
        return f"{path} is of type {type(value).__name__}; convert it first, with str() for example"
    return str(error)


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the places that JSON cannot hold, as ``data['items'][0]``."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        for key, item in value.items():
            place = f"{path}[{key!r}]" if path else str(key)
            if key is not None and not isinstance(key, (str, int, float)):
                yield f"the key {key!r} of {path or 'the event'}", key
            yield from _leaves(item, place)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            yield path, value
    elif value is not None and not isinstance(value, (str, int)):
        yield path, value


def _listed(fields: Mapping[str, Any]) -> str:
    names = sorted(fields)[:10]
    return ", ".join(repr(name) for name in names) or "no fields at all"
