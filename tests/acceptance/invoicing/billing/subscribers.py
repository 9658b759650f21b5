"""Orders are invoiced by a task."""

from __future__ import annotations

from invoicing.billing.tasks import send_invoice

from domain_event_broker import subscribe

subscribe("order.placed", name="invoices")(send_invoice)
