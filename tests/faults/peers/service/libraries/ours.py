"""This library; its subscriber is ``manage.py run_subscriber``, its relay ``manage.py run_relay``."""

from domain_event_broker import publish_domain_event


def publish(event_id: str) -> None:
    """Publish in the transaction at hand."""
    publish_domain_event("ledger.written", {}, uuid_string=event_id)
