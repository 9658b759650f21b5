"""Bodies of events: how large and deep they may be, and how they are sealed and opened.

A codec of the project (setting ``CODEC``) seals a body before it is stored for the first time, and
opens it right before the handler. In between, in the outbox, its archive, queues and dead letters,
only the sealed bytes exist, and the name of the codec beside them. Routing key, event id and
``domain_object_id`` stay readable: brokers, relays and the inbox work with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol

from domain_event_broker.config import PLAIN, BrokerSettings
from domain_event_broker.errors import BodyNotOpened, ConfigurationError, InvalidEvent
from domain_event_broker.events import (
    HEADER_CODEC,
    MAX_JSON_DEPTH,
    MAX_PAYLOAD_BYTES,
    DomainEvent,
    Message,
    decode,
    encode,
)

#: Longest name of a codec, in characters.
_MAX_NAME = 64


class Codec(Protocol):
    """An object that makes bodies unreadable for those who store and carry them.

    Its members are called from many threads at once.
    """

    #: Written beside each body that it seals: 1 to 64 printable characters. A codec keeps its name
    #: as long as there are bodies with it.
    name: str

    def seal(self, body: bytes) -> bytes:
        """Return ``body`` sealed, in ASCII without NUL: the outbox keeps it as text."""

    def open(self, body: bytes) -> bytes:
        """Return what was sealed; raise anything if that cannot be done."""


class Bodies:
    """Writes and reads bodies as the settings say.

    :param codecs: the first seals, all of them open; ``None`` among them stands for plain bodies.
    :param accept_plain: whether a body that is not sealed is read although there are codecs.
    :param max_bytes: largest body, in bytes, both before and after it is sealed.
    :param max_depth: deepest nesting of arrays and objects.
    """

    def __init__(
        self,
        codecs: Sequence[Codec | None] = (),
        accept_plain: bool = True,
        max_bytes: int = MAX_PAYLOAD_BYTES,
        max_depth: int = MAX_JSON_DEPTH,
    ) -> None:
        self._sealing = codecs[0] if codecs else None
        self._opening = {codec.name: codec for codec in codecs if codec is not None}
        self._accept_plain = accept_plain or not self._opening
        self._max_bytes = max_bytes
        self._max_depth = max_depth

    def encode(self, event: DomainEvent) -> Message:
        """Check an event, and put it into the message it is sent in, sealed where that is asked for.

        :raises InvalidEvent: it cannot be sent; nothing has been stored yet.
        """
        message = encode(event, self._max_bytes, self._max_depth)
        return message if self._sealing is None else self.seal(message)

    def seal(self, message: Message) -> Message:
        """Return ``message`` with its body sealed, unless it is already or plain bodies are asked for.

        :raises InvalidEvent: the codec failed, or returned what cannot be stored.
        """
        codec = self._sealing
        if codec is None or HEADER_CODEC in message.headers:
            return message
        sealed = self._sealed(codec, message)
        return replace(message, body=sealed, headers={**message.headers, HEADER_CODEC: codec.name})

    def decode(
        self, body: bytes, headers: Mapping[str, Any], event_id: str = "", retries: int = 0
    ) -> DomainEvent:
        """Read a delivered body.

        :param headers: those it was delivered with.
        :raises BodyNotOpened: it is sealed and cannot be opened, or is not and should be.
        :raises MalformedEvent: what is in it is not an event.
        """
        return decode(self.open(body, headers), event_id, retries, self._max_depth, headers)

    def open(self, body: bytes, headers: Mapping[str, Any]) -> bytes:
        """Return the body as it was before it was sealed; a plain one as it is.

        :raises BodyNotOpened: it is sealed and cannot be opened, or is not and should be.
        """
        name = headers.get(HEADER_CODEC)
        if name is None:
            if not self._accept_plain:
                raise BodyNotOpened("the body is not sealed, and ACCEPT_PLAIN is False")
            return body
        codec = self._opening.get(str(name))
        if codec is None:
            known = ", ".join(map(repr, self._opening)) or "none"
            raise BodyNotOpened(
                f"the body is sealed with codec {name!r}, and this program has no such codec (setting CODEC; "
                f"known: {known})"
            )
        return _opened(codec, body)

    def _sealed(self, codec: Codec, message: Message) -> bytes:
        try:
            sealed: Any = codec.seal(message.body)
        except Exception as error:
            raise InvalidEvent(
                f"event {message.routing_key!r} was not sealed: codec {codec.name!r} raised "
                f"{type(error).__name__}"
            ) from error
        if not isinstance(sealed, bytes) or not sealed.isascii() or b"\0" in sealed:
            raise InvalidEvent(
                f"event {message.routing_key!r} was not sealed: codec {codec.name!r} must return bytes, in "
                "ASCII and without NUL, as base64 is"
            )
        if len(sealed) > self._max_bytes:
            raise InvalidEvent(
                f"event {message.routing_key!r} is {len(sealed)} bytes long when it is sealed; at most "
                f"{self._max_bytes} are allowed (setting MAX_PAYLOAD_BYTES)"
            )
        return sealed


#: Bodies that are not sealed, with the limits that hold unless settings say otherwise.
PLAIN_BODIES = Bodies()


def bodies_of(settings: BrokerSettings) -> Bodies:
    """Return what writes and reads bodies under ``settings``.

    :raises ConfigurationError: a codec cannot be imported, or is none.
    """
    return _bodies(settings.codec, settings.accept_plain, settings.max_payload_bytes, settings.max_json_depth)


def load(path: str, setting: str) -> Any:
    """Return what a dotted path names.

    :param setting: the key that has the path, for the error.
    :raises ConfigurationError: it cannot be imported.
    """
    module, _, attribute = path.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(
            f"DOMAIN_EVENT_BROKER[{setting!r}] is {path!r}, which cannot be imported: {error}"
        ) from error
    except Exception as error:
        # A module of the project may do anything, such as look for a key. Its text may have it.
        raise ConfigurationError(
            f"DOMAIN_EVENT_BROKER[{setting!r}] is {path!r}, which cannot be imported: its module raised "
            f"{type(error).__name__}"
        ) from error


@lru_cache(maxsize=32)
def _bodies(paths: tuple[str, ...], accept_plain: bool, max_bytes: int, max_depth: int) -> Bodies:
    codecs = [None if path == PLAIN else _codec(path) for path in paths]
    names = [codec.name for codec in codecs if codec is not None]
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"DOMAIN_EVENT_BROKER['CODEC'] lists codecs of one name ({', '.join(names)}): the name tells "
            "which of them opens a body"
        )
    return Bodies(codecs, accept_plain, max_bytes, max_depth)


def _codec(path: str) -> Codec:
    codec = load(path, "CODEC")
    name = getattr(codec, "name", None)
    complete = callable(getattr(codec, "seal", None)) and callable(getattr(codec, "open", None))
    if isinstance(codec, type) or not complete or not _is_name(name):
        raise ConfigurationError(
            f"DOMAIN_EVENT_BROKER['CODEC'] names {path!r}, which is no codec: an object with the methods "
            "seal(body) and open(body) and a name of 1 to 64 printable characters"
        )
    found: Codec = codec
    return found


def _is_name(name: object) -> bool:
    return (
        isinstance(name, str) and 1 <= len(name) <= _MAX_NAME and name.isprintable() and name.isascii()
    ) and name != PLAIN


def _opened(codec: Codec, body: bytes) -> bytes:
    try:
        opened: Any = codec.open(body)
    except Exception as error:
        # Its text is left out of the message: nobody knows what a codec says of its keys.
        raise BodyNotOpened(
            f"codec {codec.name!r} could not open the body ({type(error).__name__}): it was sealed with "
            "another key, or changed on its way"
        ) from error
    if not isinstance(opened, bytes):
        raise BodyNotOpened(f"codec {codec.name!r} opened the body as {type(opened).__name__}, not as bytes")
    return opened
