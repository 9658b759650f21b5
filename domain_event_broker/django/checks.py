"""System checks: what is wrong with the settings, said before the first event is lost to it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DEFAULT_DB_ALIAS, DatabaseError, InterfaceError, connections

from domain_event_broker import config
from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.conf import outbox_alias
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.models import InboxEntry, OutboxEvent
from domain_event_broker.errors import ConfigurationError, DomainEventBrokerError, UnsupportedOption
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import Capabilities
from domain_event_broker.subscriber import check_supported, subscription_of
from domain_event_broker.telemetry.tracing import REQUIREMENT
from domain_event_broker.transports import transport_class

TAG = "domain_event_broker"


def register_all() -> None:
    """Register the checks."""
    register(check_settings, TAG)
    register(check_handlers, TAG)
    register(check_databases, TAG)
    register(check_tables, TAG, Tags.database)


def check_settings(**_: Any) -> list[CheckMessage]:
    """``DOMAIN_EVENT_BROKER`` must be readable, and name a transport that is installed."""
    try:
        broker = config.current()
        if broker is not None:
            transport_class(broker.url)
    except DomainEventBrokerError as error:
        return [Error(str(error), id=f"{TAG}.E001")]
    return [*_check_celery(broker), *_check_tracing(broker)]


def _check_celery(broker: BrokerSettings | None) -> list[CheckMessage]:
    if broker is None or not broker.outbox.relay_task or find_spec("celery") is not None:
        return []
    return [
        Error(
            "OUTBOX.RELAY_TASK is on, and Celery is not installed: no commit starts the relay task",
            hint="pip install 'django-domain-event-broker[celery]', or run manage.py run_relay instead",
            id=f"{TAG}.E006",
        )
    ]


def _check_tracing(broker: BrokerSettings | None) -> list[CheckMessage]:
    if broker is None or not broker.tracing or find_spec("opentelemetry") is not None:
        return []
    return [
        Error(
            "TRACING is on, and OpenTelemetry is not installed: nothing can be published",
            hint=f"pip install '{REQUIREMENT}', or switch it off",
            id=f"{TAG}.E007",
        )
    ]


def check_handlers(**_: Any) -> list[CheckMessage]:
    """Handlers must be callable as they are declared, and the broker able to do what they ask for."""
    try:
        broker = config.current()
        if broker is None:
            return []
        capabilities = transport_class(broker.url).capabilities
    except DomainEventBrokerError:
        return []  # check_settings says so
    try:
        handlers = discover().all()
    except DomainEventBrokerError as error:
        return [Error(str(error), id=f"{TAG}.E004")]
    except Exception as error:
        # No error, which would keep the very command from running that mends it, such as migrate.
        return [_not_imported(error)]
    return [message for each in handlers for message in _check_handler(each, broker, capabilities)]


def check_databases(**_: Any) -> list[CheckMessage]:
    """The outbox should live where the business rows do, and relays be able to hear of it."""
    try:
        broker = config.current()
    except ConfigurationError:
        return []  # check_settings says so
    if broker is None:
        return []
    alias = outbox_alias()
    if alias not in settings.DATABASES:
        return [_unknown_alias(alias)]
    return [*_check_distance(alias), *_check_listening(alias, broker)]


def check_tables(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """The tables must exist, in a database that knows transactions."""
    alias = _alias_or_none()
    if alias is None or alias not in (databases or ()):
        return []
    connection = connections[alias]
    try:
        present = connection.introspection.table_names()
    except (DatabaseError, InterfaceError):
        return []  # a database that is away has its own errors, from whatever needs it
    missing = {OutboxEvent._meta.db_table, InboxEntry._meta.db_table} - set(present)
    messages: list[CheckMessage] = [_no_tables(alias)] if missing else []
    if connection.vendor == "mysql" and not connection.features.supports_transactions:
        messages.append(_no_transactions(alias))
    return messages


def _check_handler(
    handler: Handler, broker: BrokerSettings, capabilities: Capabilities
) -> list[CheckMessage]:
    try:
        check_supported(subscription_of(handler, broker.subscriber), capabilities)
    except UnsupportedOption as error:
        return [Error(str(error), id=f"{TAG}.E005")]
    return []


def _not_imported(error: Exception) -> CheckMessage:
    return Warning(
        f"a 'subscribers' module of an installed app cannot be imported: {type(error).__name__}: {error}",
        hint="run_subscriber will not start before they can. They should do nothing at import but declare.",
        id=f"{TAG}.W004",
    )


def _alias_or_none() -> str | None:
    try:
        return outbox_alias() if config.current() is not None else None
    except ConfigurationError:
        return None


def _check_distance(alias: str) -> list[CheckMessage]:
    if alias == DEFAULT_DB_ALIAS:
        return []
    return [
        Warning(
            f"the outbox is in database {alias!r}, not in {DEFAULT_DB_ALIAS!r}: an event that belongs to a "
            f"transaction on {DEFAULT_DB_ALIAS!r} is written after that has committed, and lost if the "
            "process ends in between",
            hint="Keep the outbox in the database of the business rows: leave out "
            "DOMAIN_EVENT_BROKER['OUTBOX']['DATABASE'], or publish with using= inside transactions on "
            f"{alias!r}. If all of your business rows are in {alias!r}, silence this check.",
            id=f"{TAG}.W001",
        )
    ]


def _check_listening(alias: str, broker: BrokerSettings) -> list[CheckMessage]:
    database = settings.DATABASES[alias]
    if not (broker.outbox.listen and database.get("DISABLE_SERVER_SIDE_CURSORS")):
        return []
    return [
        Warning(
            f"database {alias!r} has DISABLE_SERVER_SIDE_CURSORS, as behind a pooler such as PgBouncer: "
            "where that shares sessions, LISTEN hears nothing",
            hint="Set DOMAIN_EVENT_BROKER['OUTBOX']['LISTEN'] = False; relays then look for events every "
            "POLL_SECONDS at the latest. Or silence this check if the pooler keeps sessions apart.",
            id=f"{TAG}.W002",
        )
    ]


def _unknown_alias(alias: str) -> CheckMessage:
    return Error(
        f"DOMAIN_EVENT_BROKER['OUTBOX']['DATABASE'] is {alias!r}, which is not in DATABASES; "
        f"known are {', '.join(sorted(settings.DATABASES))}",
        id=f"{TAG}.E002",
    )


def _no_transactions(alias: str) -> CheckMessage:
    return Error(
        f"the tables of database {alias!r} know no transactions: events would outlive a rollback",
        hint="On MySQL use the InnoDB storage engine.",
        id=f"{TAG}.E003",
    )


def _no_tables(alias: str) -> CheckMessage:
    # No error, which would keep the command that it asks for from running.
    return Warning(
        f"database {alias!r} has no tables of domain_event_broker yet: nothing can be published",
        hint=f"Run: manage.py migrate --database {alias}",
        id=f"{TAG}.W003",
    )
