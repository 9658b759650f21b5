"""Finds the handlers of a project: the ``subscribers`` module of each installed app."""

from __future__ import annotations

from django.utils.module_loading import autodiscover_modules

from domain_event_broker.handlers import Registry, registry


def discover() -> Registry:
    """Import the ``subscribers`` modules of all installed apps, and return what they declare.

    :raises HandlerError: a handler cannot be served as it is declared.
    """
    autodiscover_modules("subscribers")
    return registry
