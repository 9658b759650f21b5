"""The admin: events that wait, are held or were sent, the relays, and the dead letters of handlers.

Django imports this package when a project has ``django.contrib.admin``; importing its modules
registers their classes.
"""

from __future__ import annotations

from domain_event_broker.django.admin import events, letters, relays

__all__ = ["events", "letters", "relays"]
