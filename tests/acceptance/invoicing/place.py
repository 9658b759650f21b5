"""Publishes orders, as a web process does: ``python -m invoicing.place STORY COUNT``."""

from __future__ import annotations

import os
import sys

import django
from django.db import transaction

from domain_event_broker import publish_domain_event
from domain_event_broker.correlation import correlated


def main(story: str, count: int) -> None:
    """Publish each order in a transaction of its own; print its id."""
    for number in range(count):
        with correlated(story), transaction.atomic():
            event = publish_domain_event("order.placed", {"total": 25}, domain_object_id=f"order-{number}")
        sys.stdout.write(f"{event.uuid_string}\n")


if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "invoicing.settings")
    django.setup()
    main(sys.argv[1], int(sys.argv[2]))
