"""The Django app: joins the core to the settings, the database and the checks of a project."""

from __future__ import annotations

from django.apps import AppConfig

from domain_event_broker import config
from domain_event_broker.django import conf


class DomainEventBrokerConfig(AppConfig):
    """One app for both spellings, ``"domain_event_broker"`` and ``"domain_event_broker.django"``.

    ``name`` decides where Django looks for models, migrations, commands and templates; the
    label is what tables and ``migrate`` go by. With both spellings in ``INSTALLED_APPS``,
    Django itself refuses to start: the label is there twice.
    """

    name = "domain_event_broker.django"
    label = "domain_event_broker"
    verbose_name = "Domain events"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Let the settings of the project speak. Opens no connection and reads no table."""
        config.set_provider(conf.raw_setting)
