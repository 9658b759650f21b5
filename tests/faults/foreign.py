"""What foreign producers send: values of every type that AMQP has, written byte by byte.

pika itself writes only some of the types, and nothing that is wrong
(https://www.rabbitmq.com/amqp-0-9-1-errata, "Field types").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pika
import pika.exceptions

#: Bits that say which properties follow (AMQP 0-9-1, section 4.2.6.1).
_HEADERS, _DELIVERY_MODE, _MESSAGE_ID = 1 << 13, 1 << 12, 1 << 7


def text(value: bytes) -> bytes:
    """A long string."""
    return b"S" + struct.pack(">I", len(value)) + value


def table(entries: Mapping[bytes, bytes]) -> bytes:
    """A table, as the properties hold it."""
    content = b"".join(bytes([len(name)]) + name + value for name, value in entries.items())
    return struct.pack(">I", len(content)) + content


def array(*values: bytes) -> bytes:
    """An array."""
    content = b"".join(values)
    return b"A" + struct.pack(">I", len(content)) + content


def nested(levels: int, kind: bytes) -> bytes:
    """Tables or arrays in each other."""
    value = b"V"
    for _ in range(levels):
        value = b"F" + table({b"": value}) if kind == b"F" else array(value)
    return value


#: A value of each type, and the worst of them.
VALUES = {
    "true": b"t\x01",
    "signed 8 bits": b"b\x80",
    "unsigned 8 bits": b"B\xff",
    "signed 16 bits": b"s\x80\x00",
    "unsigned 16 bits": b"u\xff\xff",
    "signed 32 bits": b"I\x80\x00\x00\x00",
    "unsigned 32 bits": b"i\xff\xff\xff\xff",
    "least of 64 bits": b"l" + struct.pack(">q", -(2**63)),
    "greatest of 64 bits": b"l" + struct.pack(">q", 2**63 - 1),
    "float": b"f" + struct.pack(">f", 1.5),
    "not a number": b"f" + struct.pack(">f", float("nan")),
    "double": b"d" + struct.pack(">d", 1e308),
    "infinity": b"d" + struct.pack(">d", float("-inf")),
    "double that is no number": b"d" + struct.pack(">d", float("nan")),
    "decimal": b"D\x02\x00\x00\x30\x39",
    "decimal of most places": b"D\xff\x7f\xff\xff\xff",
    "long string": text("größe".encode()),
    "long string that is not UTF-8": text(b"\xff\xfe\x00"),
    "long string with NUL": text(b"a\x00b"),
    "bytes": b"x" + struct.pack(">I", 4) + b"\x00\xff\x00\xff",
    "now": b"T" + struct.pack(">Q", 1_800_000_000),
    "milliseconds": b"T" + struct.pack(">Q", 1_800_000_000_000),
    "the last time there is": b"T" + b"\xff" * 8,
    "nothing": b"V",
    "table": b"F" + table({b"a": b"F" + table({b"b": array(b"V", b"t\x00")})}),
    "empty table": b"F" + table({}),
    "empty array": array(),
    "array": array(text(b"a"), b"F" + table({b"x": b"V"}), array(b"t\x01")),
    "deep tables": nested(3000, b"F"),
    "deep arrays": nested(3000, b"A"),
    "long": text(b"x" * 100_000),
}

#: Headers that are ours or the broker's, with what nobody expects there.
FORGED = {
    b"x-death": array(b"F" + table({b"queue": text(b"HANDLER"), b"routing-keys": b"I\x00\x00\x00\x05"})),
    b"x-delivery-count": b"l" + struct.pack(">q", 2**62),
    b"x-first-death-reason": array(),
    b"x-last-death-queue": b"V",
    b"event-attempt": b"l" + struct.pack(">q", 2**63 - 1),
    b"event-not-before": b"l" + struct.pack(">q", 2**63 - 1),
    b"event-replays": text(b"many"),
    b"event-routing-key": array(text(b"a")),
    b"event-error-reason": b"F" + table({}),
    b"event-error-time": b"l" + struct.pack(">q", 2**63 - 1),
    b"event-error-attempts": b"d" + struct.pack(">d", float("nan")),
    b"event-history-error": text(b"\xff"),
    b"event-history-time": b"l" + struct.pack(">q", 2**62),
    b"traceparent": b"x" + struct.pack(">I", 1) + b"\xff",
    b"CC": array(text(b"nowhere")),
    b"\xff\xfe": text(b"a name that is not UTF-8"),
}


class Envelope(pika.BasicProperties):
    """Properties with headers that are written as they are given."""

    def __init__(self, headers: bytes, message_id: bytes | None = None) -> None:
        super().__init__(delivery_mode=2)
        self._headers, self._message_id = headers, message_id

    def encode(self) -> list[bytes]:
        """Return the flags and the properties, in the order of their bits."""
        flags = _HEADERS | _DELIVERY_MODE | (_MESSAGE_ID if self._message_id is not None else 0)
        pieces = [struct.pack(">H", flags), self._headers, b"\x02"]
        if self._message_id is not None:
            pieces.append(bytes([len(self._message_id)]) + self._message_id)
        return pieces


class Producer:
    """A program that publishes with pika and nothing of ours; each message is confirmed."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.sent = 0
        self.connect()

    def connect(self) -> None:
        """Connect, anew."""
        self._connection = pika.BlockingConnection(pika.URLParameters(self._url))
        self.channel = self._connection.channel()
        self.channel.confirm_delivery()

    def send(
        self,
        body: bytes,
        routing_key: Any,
        exchange: str = "domain-events",
        properties: pika.BasicProperties | None = None,
    ) -> bool:
        """Publish one message that some queue must take; tell whether the broker could read it."""
        try:
            self.channel.basic_publish(exchange, routing_key, body, properties, mandatory=True)
        except (pika.exceptions.ConnectionClosedByBroker, pika.exceptions.ChannelClosedByBroker):
            self.close()
            self.connect()
            return False
        self.sent += 1
        return True

    def close(self) -> None:
        """Disconnect."""
        if self._connection.is_open:
            self._connection.close()


@contextmanager
def producer(url: str) -> Iterator[Producer]:
    """Connect a producer for the time of the block."""
    connected = Producer(url)
    try:
        yield connected
    finally:
        connected.close()
