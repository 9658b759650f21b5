"""What our library finds by itself; the others are told of the handler in ``libraries``."""

import os

from ledger.handling import handle

if os.environ["PEER"] == "ours":
    from django.db import Error

    from domain_event_broker import Backoff, DomainEvent, subscribe

    @subscribe("ledger.#", name="steady", max_retries=1000, backoff=Backoff.fixed(1.0), retry_on=(Error,))
    def steady(event: DomainEvent) -> None:
        """Handle; what the database raises is tried again."""
        handle(event.uuid_string)
