"""Decoding what other programs write into headers, also where Python has no value for it.

AMQP knows timestamps of 64 bits; a ``datetime`` ends with the year 9999. pika raises in the middle
of reading from the socket when a producer writes one in milliseconds: the connection is lost, the
broker delivers the message again, and so on for ever. Nobody could even look at it in the dead
letters.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pika.data

#: How a timestamp is written after the letter of its type (AMQP 0-9-1, section 4.2.5.4). Signed, for
#: a header with a larger number could not be written again; such are times before 1970.
_TIMESTAMP, _NUMBER = b"T", struct.Struct(">q")

Decoder = Callable[[bytes, int], tuple[Any, int]]


def tolerate_any_timestamp() -> None:
    """Let pika decode timestamps that no ``datetime`` can hold as plain integers.

    It changes ``pika.data.decode_value`` for the whole process, and there nothing but timestamps
    on which pika raises an error. May be called any number of times.
    """
    if not isinstance(pika.data.decode_value, _Tolerant):
        setattr(pika.data, "decode_value", _Tolerant(pika.data.decode_value))  # noqa: B010


class _Tolerant:
    """pika's decoder of one value, with a second try."""

    def __init__(self, decode: Decoder) -> None:
        self._decode = decode

    def __call__(self, encoded: bytes, offset: int) -> tuple[Any, int]:
        """Return the value at ``offset``, and the offset after it."""
        try:
            return self._decode(encoded, offset)
        except (ValueError, OverflowError, OSError):
            if encoded[offset : offset + 1] != _TIMESTAMP:
                raise
            return _NUMBER.unpack_from(encoded, offset + 1)[0], offset + 1 + _NUMBER.size
