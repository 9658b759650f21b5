"""What is written on the envelope: AMQP properties and headers, in both directions. No connection.

A copy of a message (retry, dead letter, replay) gets properties of its own, never those of the
original: ``CC`` would leak it into other queues, ``user_id`` and ``expiration`` would have it
refused or dropped, ``x-death`` belongs to the broker.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Any

import pika

from domain_event_broker.events import (
    HEADER_ATTEMPT,
    HEADER_CODEC,
    HEADER_CORRELATION_ID,
    HEADER_NOT_BEFORE,
    HEADER_OPTIONS,
    HEADER_REPLAYS,
    HEADER_ROUTING_KEY,
    Message,
)
from domain_event_broker.failures import Failure, History, without_failure
from domain_event_broker.options import MAX_EXPIRATION, RabbitMQOptions, read
from domain_event_broker.retry import MAX_DELAY

#: Written to disk by durable queues (AMQP 0-9-1, basic class, delivery-mode).
PERSISTENT = 2

#: Headers by which a publisher sends copies elsewhere (https://www.rabbitmq.com/docs/sender-selected).
_SENDER_SELECTED = ("CC", "BCC")

#: An AMQP timestamp is a number of 64 bits; what does not fit is in the body all the same.
_LATEST = 2.0**63

#: No number that this library writes into a header is greater; Unix time in milliseconds is less.
_GREATEST = 2**53
#: Milliseconds that a retry waits at most, and a day, for clocks that differ. Who asks for more is not us,
#: and would hide an event for ever.
_LONGEST_WAIT = int(MAX_DELAY * 1000) + 86_400_000

#: Headers that subscribers write on copies, never publishers.
_ON_COPIES = frozenset({HEADER_ATTEMPT, HEADER_NOT_BEFORE, HEADER_REPLAYS, HEADER_ROUTING_KEY})
#: Bytes of the longest short string.
_SHORT = 255

#: Properties that a copy keeps besides its headers.
_KEPT = (
    "content_type",
    "content_encoding",
    "correlation_id",
    "message_id",
    "timestamp",
    "type",
    "app_id",
    "priority",
    "reply_to",
)

#: Headers of ours that AMQP has properties for.
_IN_PROPERTIES = frozenset({HEADER_CORRELATION_ID, HEADER_OPTIONS})
#: Options that are properties as they are.
_PROPERTIES = (
    "delivery_mode",
    "priority",
    "content_type",
    "content_encoding",
    "reply_to",
    "timestamp",
    "type",
    "app_id",
    "user_id",
)


def for_message(message: Message) -> pika.BasicProperties:
    """Return the properties an event is published with: ours, and those that its publisher asked for."""
    properties = pika.BasicProperties(
        content_type="application/json",
        content_encoding=text_of(message.headers[HEADER_CODEC]) if HEADER_CODEC in message.headers else None,
        delivery_mode=PERSISTENT,
        correlation_id=message.headers.get(HEADER_CORRELATION_ID) or message.event_id,
        message_id=message.event_id,
        timestamp=int(message.timestamp) if 0 < message.timestamp < _LATEST else None,
        type=message.routing_key,
        app_id="domain_event_broker",
        headers=_headers_beside_properties(message.headers) or None,
    )
    if HEADER_OPTIONS in message.headers:
        _apply(properties, read(message.headers, RabbitMQOptions.backend))
    return properties


def for_one_handler(message: Message) -> pika.BasicProperties:
    """Return the properties with which an event goes into the queue of one handler, past the exchange.

    As with all copies, nothing in them sends it elsewhere, or lets it expire.
    """
    return copied(for_message(message), message.routing_key)


def received_headers(properties: pika.BasicProperties) -> dict[str, Any]:
    """Return all headers of a delivery, with those of ours that travel as properties."""
    headers: dict[str, Any] = properties.headers or {}
    story = properties.correlation_id
    if not story or story == properties.message_id:
        return headers
    return {**headers, HEADER_CORRELATION_ID: text_of(story)}


def as_published(properties: pika.BasicProperties) -> pika.BasicProperties:
    """Return properties less the headers that only subscribers write on their copies.

    Copies go through the default exchange. What came through another one was written by a publisher,
    who may have the permission for no more than that: it cannot say how often a handler failed, when it
    may be called, or which routing key it was allowed to use.
    """
    headers = properties.headers
    if not headers or _ON_COPIES.isdisjoint(headers):
        return properties
    kept = {name: getattr(properties, name) for name in _KEPT}
    return pika.BasicProperties(
        **kept, headers={name: value for name, value in headers.items() if name not in _ON_COPIES}
    )


def copied(
    properties: pika.BasicProperties, routing_key: str, changes: Mapping[str, Any] = MappingProxyType({})
) -> pika.BasicProperties:
    """Return properties for a copy.

    :param routing_key: the one the event was published with: moving through queues replaces it.
    :param changes: headers to set; ``None`` removes one.
    """
    headers = {**safe_headers(properties.headers), HEADER_ROUTING_KEY: routing_key, **changes}
    kept = {name: getattr(properties, name) for name in _KEPT}
    return pika.BasicProperties(
        **kept,
        delivery_mode=PERSISTENT,
        headers={name: value for name, value in headers.items() if value is not None},
    )


def for_retry(
    properties: pika.BasicProperties, routing_key: str, retries: int, not_before_ms: int
) -> pika.BasicProperties:
    """Return properties for an event that comes back to its handler later."""
    changes = {HEADER_ATTEMPT: retries, HEADER_NOT_BEFORE: not_before_ms}
    return copied(_without_failure(properties), routing_key, changes)


def for_dead_letter(
    properties: pika.BasicProperties, routing_key: str, retries: int, failure: Failure | None
) -> pika.BasicProperties:
    """Return properties for an event that goes to the dead letters."""
    described = failure.to_headers() if failure is not None else {}
    changes = {HEADER_ATTEMPT: retries, HEADER_NOT_BEFORE: None, **described}
    return copied(_without_failure(properties), routing_key, changes)


def for_replay(properties: pika.BasicProperties, routing_key: str, queue: str) -> pika.BasicProperties:
    """Return properties for a dead letter that goes back to work, with its retries starting anew.

    :param queue: name of the handler.
    """
    headers = properties.headers or {}
    changes = {
        HEADER_ATTEMPT: None,
        HEADER_NOT_BEFORE: None,
        HEADER_REPLAYS: replays_of(properties) + 1,
        **History.after(headers, failure_of(properties, queue)).to_headers(),
    }
    return copied(_without_failure(properties), routing_key, changes)


def slim(properties: pika.BasicProperties) -> pika.BasicProperties:
    """Return what a copy cannot do without, for one whose headers cannot be encoded or are too large.

    It can be encoded, whatever a foreign producer wrote: else the event would be delivered for ever.
    """
    headers = {
        name: value[:1000] if isinstance(value, str) else value
        for name, value in (properties.headers or {}).items()
        if _is_ours(name) and isinstance(value, (str, int)) and _can_be_encoded(value)
    }
    return pika.BasicProperties(
        delivery_mode=PERSISTENT, message_id=_short(event_id_of(properties)), headers=headers
    )


def safe_headers(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the headers that may go on: not the broker's own, and not those that address copies.

    pika leaves a name that is not UTF-8 as bytes.
    """
    return {
        name: value
        for name, value in (headers or {}).items()
        if not text_of(name).startswith("x-") and name not in _SENDER_SELECTED
    }


def plain_headers(properties: pika.BasicProperties) -> dict[str, str | int]:
    """Return the safe headers whose values every transport can carry."""
    headers = safe_headers(received_headers(properties)).items()
    return {text_of(name): value for name, value in headers if isinstance(value, (str, int))}


def event_id_of(properties: pika.BasicProperties) -> str:
    """Return the identity on the envelope, or ``""``."""
    return text_of(properties.message_id or "")


def original_routing_key(properties: pika.BasicProperties, routing_key: str, queue: str) -> str:
    """Return the key the event was published with, of one that was moved into the queue that it is in.

    One that came through an exchange of events has its key still, whatever its headers say.

    :param routing_key: the key it has now: the name of a queue, if it was moved there.
    :param queue: name of the handler. What the broker itself dead-lettered from it has no header
        of ours, and the key in the broker's record of it. Before RabbitMQ 4 the broker goes on with a
        record that a publisher has forged; nothing else knows the key then.
    """
    written = (properties.headers or {}).get(HEADER_ROUTING_KEY)
    death = _death(properties, queue)
    if isinstance(written, str) and not death.get("exchange"):
        return written
    keys = death.get("routing-keys")
    return text_of(keys[0] if isinstance(keys, list) and keys else routing_key)


def failure_of(properties: pika.BasicProperties, queue: str) -> Failure | None:
    """Return why a dead letter of the handler ``queue`` is there: as we wrote it, or as the broker did."""
    headers = properties.headers or {}
    death = _death(properties, queue)
    # Letters of ours carry no record of the broker's; beside one, ours would be somebody else's.
    written = None if death else Failure.from_headers(headers)
    if written is not None:
        return written
    reason = death.get("reason") or headers.get("x-first-death-reason")
    if not reason:
        return None
    return Failure(
        reason=str(reason),
        message="dead-lettered by the broker, not by a handler",
        attempts=header_number(properties, HEADER_ATTEMPT) + 1,
        failed_at=_seconds(death.get("time")),
    )


def header_number(properties: pika.BasicProperties, name: str) -> int:
    """Return the number in a header; 0 where there is none, or one that nobody counted."""
    value = (properties.headers or {}).get(name)
    return value if isinstance(value, int) and 0 < value < _GREATEST else 0


def replays_of(properties: pika.BasicProperties) -> int:
    """Return how often the event was put back from the dead letters."""
    return header_number(properties, HEADER_REPLAYS)


def wait_ms(properties: pika.BasicProperties) -> int:
    """Return the milliseconds for which a retried event shall not reach its handler yet."""
    not_before = header_number(properties, HEADER_NOT_BEFORE)
    wait = not_before - now_ms()
    return wait if 0 < wait <= _LONGEST_WAIT else 0


def now_ms() -> int:
    """Return Unix time in milliseconds."""
    return time.time_ns() // 1_000_000


def _without_failure(properties: pika.BasicProperties) -> pika.BasicProperties:
    kept = {name: getattr(properties, name) for name in _KEPT}
    return pika.BasicProperties(**kept, headers=without_failure(properties.headers or {}))


def _headers_beside_properties(headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the headers of a message that is published, without those that become properties."""
    return {name: value for name, value in safe_headers(headers).items() if name not in _IN_PROPERTIES}


def _apply(properties: pika.BasicProperties, options: Mapping[str, Any]) -> None:
    for name in _PROPERTIES:
        if name in options:
            setattr(properties, name, options[name])
    if "expires_in" in options:
        properties.expiration = str(options["expires_in"])
    elif "expires_at" in options:
        # From when the relay sends it; too late already, it expires in the queue, where that is seen.
        left = max(0, options["expires_at"] - now_ms())
        properties.expiration = str(min(left, MAX_EXPIRATION))


def _death(properties: pika.BasicProperties, queue: str) -> dict[str, Any]:
    """Return the broker's own record of how the message left ``queue`` (https://www.rabbitmq.com/docs/dlx)."""
    deaths = (properties.headers or {}).get("x-death")
    for death in deaths if isinstance(deaths, list) else ():
        if isinstance(death, dict) and death.get("queue") == queue:
            return death
    return {}


def _is_ours(name: object) -> bool:
    return isinstance(name, str) and name.startswith("event-") and len(name) < 64


def _can_be_encoded(value: str | int) -> bool:
    return isinstance(value, str) or -_GREATEST < value < _GREATEST


def _short(text: str) -> str:
    """Return a text that fits into a short string (AMQP 0-9-1, section 4.2.5.3), or else its digest."""
    encoded = text.encode("utf-8", "backslashreplace")
    return encoded.decode() if len(encoded) <= _SHORT else hashlib.sha256(encoded).hexdigest()


def text_of(value: object) -> str:
    """Return what pika makes of a string: bytes, where it is not UTF-8."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _seconds(moment: object) -> float:
    """Return Unix time of what pika makes of an AMQP timestamp: a datetime in UTC, which may not say so."""
    return moment.replace(tzinfo=timezone.utc).timestamp() if isinstance(moment, datetime) else 0.0
