"""The handler: one row for each event; a few events never work."""

from ledger.hopeless import is_hopeless
from ledger.models import Effect


def handle(event_id: str) -> None:
    """Write the effect, or fail."""
    if is_hopeless(event_id):
        raise ValueError("never works")
    Effect.objects.create(event_id=event_id)
