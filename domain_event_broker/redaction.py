"""What may be shown of an event: in the admin, by commands, in a terminal.

Where the project has a function for it (setting ``REDACT``), nothing of a body is shown but what
that returns; where it fails, nothing at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from domain_event_broker import config
from domain_event_broker.codecs import bodies_of, load
from domain_event_broker.config import BrokerSettings
from domain_event_broker.errors import ConfigurationError, MalformedEvent
from domain_event_broker.events import HEADER_CODEC, DomainEvent

#: Makes of an event what is shown of its data.
Redact = Callable[[DomainEvent], object]


def shown(body: bytes, headers: Mapping[str, Any]) -> str:
    """Return what may be shown of a body, under the settings in force; never raises.

    :param headers: those beside the body: they say whether it is sealed.
    """
    try:
        settings = config.current()
        redact = redact_of(settings)
    except ConfigurationError as error:
        return f"(hidden: {error})"
    if redact is None or settings is None:
        return _unredacted(body, headers)
    return _redacted(redact, body, headers, settings)


def redact_of(settings: BrokerSettings | None) -> Redact | None:
    """Return the function that the setting ``REDACT`` names, if it names one.

    :raises ConfigurationError: it cannot be imported, or is no function.
    """
    if settings is None or settings.redact is None:
        return None
    redact = load(settings.redact, "REDACT")
    if not callable(redact):
        raise ConfigurationError(
            f"DOMAIN_EVENT_BROKER['REDACT'] names {settings.redact!r}, which is no function"
        )
    found: Redact = redact
    return found


def _unredacted(body: bytes, headers: Mapping[str, Any]) -> str:
    if HEADER_CODEC in headers:
        return f"(sealed with {headers[HEADER_CODEC]!r}, {len(body):,} bytes)"
    return body.decode("utf-8", "backslashreplace")


def _redacted(redact: Redact, body: bytes, headers: Mapping[str, Any], settings: BrokerSettings) -> str:
    try:
        event = bodies_of(settings).decode(body, headers)
    except MalformedEvent:
        return f"(hidden: {len(body):,} bytes that are no event, or cannot be opened here)"
    except ConfigurationError as error:
        return f"(hidden: {error})"
    try:
        value = redact(event)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except Exception as error:
        # Not its text: it may hold what was to be hidden.
        return f"(hidden: {settings.redact} raised {type(error).__name__})"
    return "(hidden)" if value is None else text
