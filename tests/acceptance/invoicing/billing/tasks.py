"""What is done for an order, by Celery."""

from __future__ import annotations

from typing import Any

from celery import shared_task

from domain_event_broker import publish_domain_event
from domain_event_broker.celery import event_headers


@shared_task(bind=True)
def send_invoice(self: Any, event: dict[str, Any]) -> None:
    """Tell what the task knows, in an event, and let another task go on."""
    publish_domain_event(
        "invoice.sent",
        {"task_id": self.request.id, "event": event, "headers": event_headers(self)},
        domain_object_id=event["domain_object_id"],
    )
    archive_invoice.delay(event["domain_object_id"])


@shared_task
def archive_invoice(number: str) -> None:
    """A task that a task starts."""
    publish_domain_event("invoice.archived", {}, domain_object_id=number)
