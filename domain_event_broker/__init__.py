"""Reliable domain events for Django and for plain programs: the public names."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from domain_event_broker._version import __version__
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

if TYPE_CHECKING:
    from domain_event_broker.background import BackgroundPublisher as BackgroundPublisher
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

#: Names that few need, or that need an optional package, with the module that has them: imported
#: when first used. The latter are not among those of ``import *``, which must work without it.
_LAZY = {
    "BackgroundPublisher": "domain_event_broker.background",
    "EventModel": "domain_event_broker.typed",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
