"""System checks: what is wrong with the settings, said before the first event is lost to it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from django.core.checks import CheckMessage, Error, Tags, Warning, register

from domain_event_broker import config
from domain_event_broker.config import BrokerSettings, scheme
from domain_event_broker.django.database_checks import TAG, check_databases, check_tables
from domain_event_broker.django.discovery import discover
from domain_event_broker.errors import DomainEventBrokerError, UnsupportedOption
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import Capabilities
from domain_event_broker.subscriber import check_supported, subscription_of
from domain_event_broker.telemetry.tracing import REQUIREMENT
from domain_event_broker.transports import transport_class

__all__ = ["check_databases", "check_handlers", "check_settings", "check_tables", "register_all"]

#: Transports that no other program reaches: what this one does not handle is handled by nobody.
_PRIVATE = ("memory", "database")


def register_all() -> None:
    """Register the checks; those that only matter in production run with ``check --deploy``."""
    register(check_settings, TAG)
    register(check_handlers, TAG)
    register(check_databases, TAG)
    register(check_tables, TAG, Tags.database)
    register(check_production, TAG, deploy=True)


def check_settings(**_: Any) -> list[CheckMessage]:
    """``DOMAIN_EVENT_BROKER`` must be readable, and name a transport that is installed."""
    try:
        broker = config.current()
        if broker is not None:
            transport_class(broker.url)
    except DomainEventBrokerError as error:
        return [Error(str(error), id=f"{TAG}.E001")]
    return [*_check_celery(broker), *_check_tracing(broker)]


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


def check_production(**_: Any) -> list[CheckMessage]:
    """Events must outlive the process that published them, and somebody should handle them."""
    try:
        broker = config.current()
        durable = broker is None or transport_class(broker.url).capabilities.durable
        handlers = [] if broker is None else discover().all()
    except Exception:
        return []  # the other checks say so
    if broker is None:
        return []
    found: list[CheckMessage] = [] if durable else [_not_durable(broker)]
    if not handlers and scheme(broker.url[0]) in _PRIVATE:
        found.append(_nobody_handles(broker))
    return found


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


def _not_durable(broker: BrokerSettings) -> CheckMessage:
    return Warning(
        f"{broker.masked_url} keeps events in the memory of one process: they end with it, and other "
        "processes never see them",
        hint="Set DOMAIN_EVENT_BROKER to 'database:' or to the URL of a RabbitMQ; memory: is for tests.",
        id=f"{TAG}.W008",
    )


def _nobody_handles(broker: BrokerSettings) -> CheckMessage:
    return Warning(
        f"nobody handles what is published: no installed app declares a handler, and {broker.masked_url} is "
        "reached by this project alone",
        hint="Declare handlers with @subscribe in the subscribers.py of an app in INSTALLED_APPS: modules of "
        "other names are not looked for. Or silence this check if events are only kept.",
        id=f"{TAG}.W007",
    )
