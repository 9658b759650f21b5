"""Reliable domain events for Django and for plain programs: the public names."""

from domain_event_broker._version import __version__
from domain_event_broker.errors import DomainEventBrokerError, Reject, Retry
from domain_event_broker.events import DomainEvent
from domain_event_broker.handlers import subscribe
from domain_event_broker.publisher import (
    Publisher,
    apublish_domain_event,
    publish_domain_event,
    publish_domain_events,
)
from domain_event_broker.replay import DISCARD, LEAVE, RETRY, replay_all, replay_event
from domain_event_broker.retry import Backoff
from domain_event_broker.subscriber import Subscriber

__all__ = [
    "DISCARD",
    "LEAVE",
    "RETRY",
    "Backoff",
    "DomainEvent",
    "DomainEventBrokerError",
    "Publisher",
    "Reject",
    "Retry",
    "Subscriber",
    "__version__",
    "apublish_domain_event",
    "publish_domain_event",
    "publish_domain_events",
    "replay_all",
    "replay_event",
    "subscribe",
]
