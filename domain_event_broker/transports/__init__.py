"""Transports: one module or folder each, found by the scheme of a URL.

They never import each other. A third party adds one with an entry point of the group
``domain_event_broker.transports`` whose name is the scheme.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, cast

from domain_event_broker.config import BrokerSettings, mask, scheme
from domain_event_broker.errors import ConfigurationError, MissingDependency
from domain_event_broker.ports import Subscription, Transport
from domain_event_broker.telemetry.tracing import traced, tracing_of

#: Where the built-in transports are written. They are imported when first opened, so that a
#: program pays for the driver of its own broker only.
BUILT_IN = {
    "amqp": "domain_event_broker.transports.rabbitmq:RabbitMQTransport",
    "amqps": "domain_event_broker.transports.rabbitmq:RabbitMQTransport",
    "memory": "domain_event_broker.transports.memory:MemoryTransport",
    "database": "domain_event_broker.django.transport:DatabaseTransport",
}

#: Package and extra behind each scheme, for the message when it is not installed.
_EXTRAS = {"amqp": "pika", "amqps": "pika", "database": "django-domain-event-broker[django]"}

#: The entry-point group of third-party transports.
ENTRY_POINT_GROUP = "domain_event_broker.transports"


def open_transport(settings: BrokerSettings) -> Transport:
    """Connect to the broker that ``settings`` name.

    :raises ConfigurationError: no transport has this scheme, or its package is missing.
    :raises BrokerUnavailable: no URL answered.
    """
    tracing_of(settings)  # says what is missing before there is a connection that nobody would close
    return traced(cast(Transport, transport_class(settings.url)(settings)), settings)


def declare_all(transport: Transport, subscriptions: Sequence[Subscription]) -> None:
    """Declare what several handlers need, in one go where the transport has a faster way for that."""
    if hasattr(transport, "declare_all"):
        transport.declare_all(subscriptions)
        return
    for subscription in subscriptions:
        transport.declare(subscription)


def transport_class(urls: Sequence[str]) -> Any:
    """Return the class that serves ``urls``, which must share one scheme; connects to nothing."""
    schemes = {scheme(url) for url in urls}
    name = next(iter(schemes))
    if schemes > {name} and schemes != {"amqp", "amqps"}:
        raise ConfigurationError(
            f"URLs of one broker must share one scheme; these have {', '.join(sorted(schemes))}"
        )
    if name in BUILT_IN:
        return _load(name, BUILT_IN[name])
    # Looking for packages takes a while to import, and the transports of most are built in.
    from importlib.metadata import entry_points

    for found in entry_points(group=ENTRY_POINT_GROUP, name=name):
        return found.load()
    raise ConfigurationError(
        f"no transport for {mask(urls[0])!r}: the scheme must be one of {', '.join(sorted(BUILT_IN))}, "
        f"or that of an installed package with an entry point in {ENTRY_POINT_GROUP!r}"
    )


def _load(name: str, target: str) -> Any:
    module, _, attribute = target.partition(":")
    try:
        return getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("domain_event_broker"):
            raise
        wanted = _EXTRAS.get(name, error.name)
        raise MissingDependency(
            f"'{name}:' needs the package {error.name!r}; install it with: pip install '{wanted}'"
        ) from error
