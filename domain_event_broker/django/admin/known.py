"""The handlers of the project, as far as they can be loaded: pages are for the days when they cannot."""

from __future__ import annotations

from domain_event_broker.django.admin import display
from domain_event_broker.django.discovery import discover
from domain_event_broker.errors import DomainEventBrokerError
from domain_event_broker.handlers import Handler


def discovered_handlers() -> tuple[list[Handler], str]:
    """Return the handlers of the project and ``""``, or none and what is wrong with them, in words."""
    try:
        return discover().all(), ""
    except Exception as error:  # a module of the project may fail in any way when it is imported
        known = isinstance(error, DomainEventBrokerError)
        return [], display.told(error) if known else f"{type(error).__name__}: {display.told(error)}"
