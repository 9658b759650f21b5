"""Reliable domain events for Django and for plain programs: the public names.

Each is imported when it is first used: who publishes loads nothing of what subscribers need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from domain_event_broker._version import __version__

if TYPE_CHECKING:
    from domain_event_broker.background import BackgroundPublisher as BackgroundPublisher
    from domain_event_broker.correlation import causation_id, correlated, correlation_id
    from domain_event_broker.errors import DomainEventBrokerError, Reject, Retry
    from domain_event_broker.events import DomainEvent
    from domain_event_broker.groups import HandlerGroup
    from domain_event_broker.handlers import DeadLetter, subscribe
    from domain_event_broker.injection import Depends, RoutingKeySegment
    from domain_event_broker.options import EventOptions, KafkaOptions, RabbitMQOptions, RedisOptions
    from domain_event_broker.publisher import (
        Publisher,
        apublish_domain_event,
        publish_domain_event,
        publish_domain_events,
    )
    from domain_event_broker.replay import DISCARD, LEAVE, RETRY, replay_all, replay_event
    from domain_event_broker.retry import Backoff
    from domain_event_broker.subscriber import Subscriber
    from domain_event_broker.typed import EventModel as EventModel

__all__ = [
    "DISCARD",
    "LEAVE",
    "RETRY",
    "BackgroundPublisher",
    "Backoff",
    "DeadLetter",
    "Depends",
    "DomainEvent",
    "DomainEventBrokerError",
    "EventOptions",
    "HandlerGroup",
    "KafkaOptions",
    "Publisher",
    "RabbitMQOptions",
    "RedisOptions",
    "Reject",
    "Retry",
    "RoutingKeySegment",
    "Subscriber",
    "__version__",
    "apublish_domain_event",
    "causation_id",
    "correlated",
    "correlation_id",
    "publish_domain_event",
    "publish_domain_events",
    "replay_all",
    "replay_event",
    "subscribe",
]

#: The modules, with the public names that each has. ``EventModel`` needs an optional package, and is
#: not among the names of ``import *``, which must work without it.
_NAMES: dict[str, tuple[str, ...]] = {
    "background": ("BackgroundPublisher",),
    "config": (),
    "correlation": ("causation_id", "correlated", "correlation_id"),
    "errors": ("DomainEventBrokerError", "Reject", "Retry"),
    "events": ("DomainEvent",),
    "groups": ("HandlerGroup",),
    "handlers": ("DeadLetter", "subscribe"),
    "injection": ("Depends", "RoutingKeySegment"),
    "options": ("EventOptions", "KafkaOptions", "RabbitMQOptions", "RedisOptions"),
    "publisher": (
        "Publisher",
        "apublish_domain_event",
        "publish_domain_event",
        "publish_domain_events",
    ),
    "replay": ("DISCARD", "LEAVE", "RETRY", "replay_all", "replay_event"),
    "retry": ("Backoff",),
    "settings": (),
    "subscriber": ("Subscriber",),
    "typed": ("EventModel",),
}
_LAZY = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # The modules themselves, too: ``import domain_event_broker`` used to be enough to have them.
    if name not in _LAZY and name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_LAZY.get(name, name)}")
    value = globals()[name] = getattr(module, name) if name in _LAZY else module
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
