"""Tracing, where it is switched on: see docs/how-to/trace.rst.

This module is always there; OpenTelemetry is imported when a program with ``TRACING`` on does the first
thing worth a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, cast

from domain_event_broker import config
from domain_event_broker.config import BrokerSettings
from domain_event_broker.errors import ConfigurationError, MissingDependency
from domain_event_broker.events import Message
from domain_event_broker.ports import Transport

if TYPE_CHECKING:
    from domain_event_broker.telemetry.spans import Tracing

#: What to install for it.
REQUIREMENT = "django-domain-event-broker[tracing]"
#: Longest time that the spans of a process that ends are waited for, in seconds.
FLUSH_SECONDS = 5.0


def tracing_of(settings: BrokerSettings) -> Tracing | None:
    """Return what makes the spans of a program with these settings; ``None``: tracing is off.

    :raises MissingDependency: it is on, and OpenTelemetry is not installed.
    """
    return _tracing(settings.url, settings.exchange) if settings.tracing else None


def tracing_now() -> Tracing | None:
    """Return what makes spans under the settings in force; ``None``: nothing does, for whatever reason."""
    try:
        settings = config.current()
        return tracing_of(settings) if settings is not None else None
    except (ConfigurationError, MissingDependency):
        return None  # whoever publishes or starts next is told


def created(messages: Sequence[Message], settings: BrokerSettings) -> list[Message]:
    """Return messages that carry the trace of the code that publishes them, each with a span of its own.

    :param settings: where they go. For settings with tracing on; see :func:`tracing_of`.
    """
    tracing = tracing_of(settings)
    return list(messages) if tracing is None else [tracing.created(message) for message in messages]


def traced(transport: Transport, settings: BrokerSettings) -> Transport:
    """Return ``transport`` as it is, or one that does the same with a span for each batch."""
    tracing = tracing_of(settings)
    if tracing is None:
        return transport
    from domain_event_broker.telemetry.sending import TracedTransport

    return cast(Transport, TracedTransport(transport, tracing))


def flush(settings: BrokerSettings) -> None:
    """Hand over the spans that wait to be exported, in a process whose end nobody else is told of.

    Waits a few seconds at most, and never raises.
    """
    tracing = tracing_of(settings)
    if tracing is not None:
        tracing.flush(FLUSH_SECONDS)


@lru_cache(maxsize=32)
def _tracing(urls: tuple[str, ...], exchange: str) -> Tracing:
    try:
        from domain_event_broker.telemetry.spans import Tracing
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        raise MissingDependency(
            f"DOMAIN_EVENT_BROKER['TRACING'] is on, and OpenTelemetry is not installed; "
            f"install it with: pip install '{REQUIREMENT}'"
        ) from error
    return Tracing(urls, exchange)
