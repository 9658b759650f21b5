"""Decoding what other programs write into headers, also where Python has no value for it.

AMQP knows timestamps of 64 bits; a ``datetime`` ends with the year 9999. It knows floating-point
numbers that are none, and tables in tables up to the length of a frame, ten thousand levels of them.
pika raises in the middle of reading from the socket when a producer writes one of these: the
connection is lost, the broker delivers the message again, and so on for ever. Nobody could even look
at it in the dead letters.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Any

import pika.data

#: Levels of tables and arrays that are read; what lies deeper is skipped.
MAX_DEPTH = 32

#: How values are written after the letter of their type (AMQP 0-9-1, section 4.2.5). Timestamps
#: signed, for a header with a larger number could not be written again; such are times before 1970.
_NUMBERS = {b"T": struct.Struct(">q"), b"f": struct.Struct(">f"), b"d": struct.Struct(">d")}
#: Types that hold values, after the number of their bytes.
_NESTED, _LENGTH = (b"F", b"A"), struct.Struct(">I")

Decoder = Callable[[bytes, int], tuple[Any, int]]


def tolerate_any_value() -> None:
    """Let pika decode what it stumbles over.

    Timestamps that no ``datetime`` can hold become integers, numbers that are none strings, and
    what is nested too deeply ``None``. It changes ``pika.data.decode_value`` for the whole process, and
    there nothing but values on which pika raises an error. May be called any number of times.
    """
    if not isinstance(pika.data.decode_value, _Tolerant):
        setattr(pika.data, "decode_value", _Tolerant(pika.data.decode_value))  # noqa: B010


class _Tolerant(threading.local):
    """pika's decoder of one value, with a second try; pika calls it for each level."""

    def __init__(self, decode: Decoder) -> None:
        self._decode = decode
        self._depth = 0

    def __call__(self, encoded: bytes, offset: int) -> tuple[Any, int]:
        """Return the value at ``offset``, and the offset after it."""
        kind = encoded[offset : offset + 1]
        if self._depth >= MAX_DEPTH and kind in _NESTED:
            return None, offset + 1 + _LENGTH.size + _LENGTH.unpack_from(encoded, offset + 1)[0]
        self._depth += 1
        try:
            return self._decode(encoded, offset)
        except (ValueError, OverflowError, OSError):
            if kind not in _NUMBERS:
                raise
            number = _NUMBERS[kind]
            value = number.unpack_from(encoded, offset + 1)[0]
            return value if kind == b"T" else str(value), offset + 1 + number.size
        finally:
            self._depth -= 1
