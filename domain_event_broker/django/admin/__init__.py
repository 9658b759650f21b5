"""The admin: an overview, events that wait, are held or were sent, relays, and dead letters of handlers.

Django imports this package when a project has ``django.contrib.admin``; importing its modules
registers their classes.
"""

from __future__ import annotations

from domain_event_broker.django.admin import backfills, events, letters, overview, relays

__all__ = ["backfills", "events", "letters", "overview", "relays"]
