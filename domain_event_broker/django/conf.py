"""The setting ``DOMAIN_EVENT_BROKER`` of a project."""

from __future__ import annotations

from django.apps import apps
from django.conf import settings
from django.db import connections, router

from domain_event_broker import config
from domain_event_broker import settings as defaults
from domain_event_broker.config import OutboxSettings, SubscriberSettings
from domain_event_broker.errors import ConfigurationError

#: The default broker, before :func:`mirror_setting` writes what the project says in its place.
_DEFAULT = defaults.BROKER


def raw_setting() -> object:
    """Return ``settings.DOMAIN_EVENT_BROKER`` as it is now; absent: the default broker."""
    return getattr(settings, "DOMAIN_EVENT_BROKER", _DEFAULT)


def mirror_setting() -> None:
    """Let ``domain_event_broker.settings.BROKER`` say what the project does, as the older library did.

    For code that passes it on as ``connection_settings``; only the setting itself counts.
    """
    raw = getattr(settings, "DOMAIN_EVENT_BROKER", defaults.BROKER)
    url = raw.get("URL", defaults.BROKER) if isinstance(raw, dict) else raw
    if url is None or isinstance(url, str):
        defaults.BROKER = url


def outbox_settings() -> OutboxSettings:
    """Return the settings of the outbox, or their defaults while the broker is switched off."""
    broker = config.current()
    return OutboxSettings() if broker is None else broker.outbox


def subscriber_settings() -> SubscriberSettings:
    """Return the defaults of handlers, also while the broker is switched off."""
    broker = config.current()
    return SubscriberSettings() if broker is None else broker.subscriber


def outbox_alias() -> str:
    """Return the alias of the database whose outbox is used where nothing else is said."""
    return outbox_settings().database or router.db_for_write(
        apps.get_model("domain_event_broker", "OutboxEvent")
    )


def known_alias(alias: str) -> str:
    """Return ``alias`` if the project has such a database.

    :raises ConfigurationError: it does not; the message lists those that it has.
    """
    if alias not in connections.settings:
        known = ", ".join(sorted(connections.settings))
        raise ConfigurationError(f"there is no database {alias!r} in DATABASES; known are {known}")
    return alias
