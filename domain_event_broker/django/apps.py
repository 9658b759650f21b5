"""The Django app: joins the core to the settings, the database and the checks of a project."""

from __future__ import annotations

from django.apps import AppConfig

from domain_event_broker import config
from domain_event_broker.discovery import install_discovery
from domain_event_broker.django import conf
from domain_event_broker.publisher import install_outbox
from domain_event_broker.subscriber import install_inbox


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
        """Install settings, outbox, inbox and checks. Opens no connection and reads no table."""
        # The one place for late imports: these modules need the models, which exist from here on.
        from domain_event_broker.django import checks, discovery, security_checks
        from domain_event_broker.django.inbox import DjangoInbox
        from domain_event_broker.django.outbox import DjangoOutbox

        config.set_provider(conf.raw_setting)
        conf.mirror_setting()
        install_outbox(DjangoOutbox())
        install_inbox(DjangoInbox())
        install_discovery(discovery.discover)
        checks.register_all()
        security_checks.register_all()
