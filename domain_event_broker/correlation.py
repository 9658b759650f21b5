"""Which events belong together, and which one led to which.

Every event carries the identity of the story it is part of (``correlation_id``) and of the event
that it is the consequence of (``causation_id``). Both flow by themselves: from an event being
handled to those that its handler publishes, and from a request, with the middleware
``domain_event_broker.django.middleware.CorrelationMiddleware``, to those that its view publishes.

They live in a context variable, so threads and tasks that run side by side don't see each
other's (https://docs.python.org/3/library/contextvars.html).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import NamedTuple

#: Longest identity in bytes: an AMQP 0-9-1 short string.
MAX_BYTES = 255


class Correlation(NamedTuple):
    """What surrounds the code that runs now.

    :param correlation_id: the story; ``None``: each event published now begins its own.
    :param causation_id: the event that is being handled, if one is.
    """

    correlation_id: str | None
    causation_id: str | None


NOTHING = Correlation(None, None)

_around: ContextVar[Correlation] = ContextVar("domain_event_broker_correlation", default=NOTHING)

#: Return the :class:`Correlation` that events published now get.
current = _around.get


def correlation_id() -> str | None:
    """Return the identity of the story that the code running now is part of, if any."""
    return _around.get().correlation_id


def causation_id() -> str | None:
    """Return the identity of the event being handled now, if one is."""
    return _around.get().causation_id


@contextmanager
def correlated(correlation_id: str | None, causation_id: str | None = None) -> Iterator[None]:
    """Let events published within carry these identities.

    For a job or a script whose events belong together::

        with correlated("nightly-import-2026-11-21"):
            ...

    :param correlation_id: 1 to 255 bytes of printable text; ``None``: within, each event begins a
        story of its own.
    :param causation_id: identity of the event that they are the consequence of, if one is.
    :raises ValueError: an identity is empty, too long or not printable.
    """
    for name, value in (("correlation_id", correlation_id), ("causation_id", causation_id)):
        if value is not None and not is_usable(value):
            raise ValueError(
                f"{name}={value!r} is not a printable string of 1 to {MAX_BYTES} bytes; use a UUID"
            )
    token = enter(correlation_id, causation_id)
    try:
        yield
    finally:
        leave(token)


def enter(correlation_id: str | None, causation_id: str | None) -> Token[Correlation]:
    """Begin what :func:`leave` ends: :func:`correlated` without its checks, for each event handled."""
    return _around.set(Correlation(correlation_id, causation_id))


def leave(token: Token[Correlation]) -> None:
    """Go back to what was around before :func:`enter` returned ``token``."""
    _around.reset(token)


def is_usable(identity: object) -> bool:
    """Tell whether every broker and database can carry ``identity``."""
    return (
        isinstance(identity, str)
        and 0 < len(identity) <= MAX_BYTES
        and identity.isprintable()
        and (identity.isascii() or len(identity.encode()) <= MAX_BYTES)
    )


class CorrelationFilter(logging.Filter):
    """Gives each log record ``correlation_id`` and ``causation_id``, empty where there is none.

    For ``LOGGING["filters"]``, so that a format may say ``%(correlation_id)s``. A record that has
    them already, as those of the subscriber have, keeps its own.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the identities; let the record pass."""
        around = _around.get()
        if not hasattr(record, "correlation_id"):
            record.correlation_id = around.correlation_id or ""
        if not hasattr(record, "causation_id"):
            record.causation_id = around.causation_id or ""
        return True
