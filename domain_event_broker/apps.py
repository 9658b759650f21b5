"""Lets ``INSTALLED_APPS`` say ``"domain_event_broker"``; the app is in ``domain_event_broker.django``."""

from __future__ import annotations

from domain_event_broker.django.apps import DomainEventBrokerConfig

__all__ = ["DomainEventBrokerConfig"]
