"""django-outbox-pattern: its relay is ``manage.py publish``, its subscriber ``manage.py subscribe``."""

from typing import Any

from django.db import transaction
from ledger.handling import handle

DESTINATION = "/topic/ledger.written"


def publish(event_id: str) -> None:
    """Write to its outbox in the transaction at hand."""
    from django_outbox_pattern.models import Published

    Published.objects.create(destination=DESTINATION, body={"uuid_string": event_id})


def callback(payload: Any) -> None:
    """Handle, and let the library know of it, in one transaction."""
    with transaction.atomic():
        handle(payload.body["uuid_string"])
        payload.save()


def persistent_headers(message: Any) -> dict[str, Any]:
    """Return its usual headers and the one of STOMP that lets a broker write messages to disk."""
    from django_outbox_pattern.headers import generate_headers

    return {**generate_headers(message), "persistent": "true"}
