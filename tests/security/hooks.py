"""What tests name in the settings CODEC and REDACT."""

from __future__ import annotations

import base64
from typing import Any

from cryptography.fernet import Fernet, MultiFernet

from domain_event_broker import DomainEvent


class Vault:
    """A codec as the documentation has it."""

    def __init__(self, name: str, *keys: bytes) -> None:
        self.name = name
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def seal(self, body: bytes) -> bytes:
        return self._fernet.encrypt(body)

    def open(self, body: bytes) -> bytes:
        return self._fernet.decrypt(body)


OLD_KEY, NEW_KEY = Fernet.generate_key(), Fernet.generate_key()
vault = Vault("vault", OLD_KEY)
rotated = Vault("vault", NEW_KEY, OLD_KEY)
changed = Vault("vault", NEW_KEY)
newer = Vault("vault-2", NEW_KEY)


class Faulty:
    """A codec that does as it is told, which no codec should."""

    name = "faulty"

    def __init__(self, sealed: Any = b"sealed", opened: Any = b"{}") -> None:
        self._sealed = sealed
        self._opened = opened

    def seal(self, body: bytes) -> bytes:
        return self._answer(self._sealed)

    def open(self, body: bytes) -> bytes:
        return self._answer(self._opened)

    def _answer(self, value: Any) -> bytes:
        if isinstance(value, Exception):
            raise value
        answer: bytes = value
        return answer


binary = Faulty(sealed=b"\xff\xfe")
with_nul = Faulty(sealed=b"a\0b")
no_bytes = Faulty(sealed="text")
raising = Faulty(sealed=RuntimeError("key is t0p-s3cret"))
huge = Faulty(sealed=b"x" * 1000)
opens_text = Faulty(opened="text")
nameless = object()


class Reversing:
    """A codec of few bytes."""

    name = "reversing"

    def seal(self, body: bytes) -> bytes:
        return base64.b64encode(body[::-1])

    def open(self, body: bytes) -> bytes:
        return base64.b64decode(body)[::-1]


reversing = Reversing()


def redact(event: DomainEvent) -> object:
    """Show the total, and nothing else."""
    return {"total": event.data.get("total")}


def redact_to_text(event: DomainEvent) -> object:
    return f"an order of {event.data['total']}"


def redact_to_nothing(event: DomainEvent) -> object:
    return None


def redact_badly(event: DomainEvent) -> object:
    raise ValueError(f"cannot redact {event.data}")


def redact_to_what_json_cannot_hold(event: DomainEvent) -> object:
    return {"data": {1, 2}, "event": event}


no_function = 5
