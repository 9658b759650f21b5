"""The Django app: outbox, inbox, relay, commands and admin.

This module is imported before the models may be, and by programs that were written for the
older library, so it holds no more than :func:`publish_on_commit`.
"""

from __future__ import annotations

from typing import Any

from django.db import transaction

from domain_event_broker import config
from domain_event_broker.events import DomainEvent, encode
from domain_event_broker.publisher import publish_domain_events

__all__ = ["publish_on_commit"]


def publish_on_commit(
    routing_key: str,
    data: dict[str, Any],
    domain_object_id: str | None = None,
    uuid_string: str | None = None,
    timestamp: float | None = None,
    connection_settings: str | None = "",
    *,
    using: str | None = None,
) -> DomainEvent:
    """Publish an event if, and only if, the current transaction commits.

    For code written against the older library, which sent the event after the commit and lost
    it when the process ended in between. Here it is stored in the transaction, as
    :func:`~domain_event_broker.publish_domain_event` does, so new code can call that. For
    another broker than the default one there is no outbox: the event is sent after the commit,
    as it used to be.

    Parameters, return value and errors are those of ``publish_domain_event``.
    """
    event = DomainEvent(routing_key, data, domain_object_id, uuid_string, timestamp)
    if _has_outbox(connection_settings):
        publish_domain_events([event], connection_settings, using=using)
    else:
        encode(event)  # what cannot be sent is refused here, while the transaction can be rolled back

        def send() -> None:
            publish_domain_events([event], connection_settings)

        transaction.on_commit(send, using=using)
    return event


def _has_outbox(connection_settings: str | None) -> bool:
    if connection_settings in ("", None):
        return True
    settings, default = config.resolve(connection_settings), config.current()
    return settings is not None and default is not None and settings.url == default.url
