"""What a handler is called with: the event, its data, words of its routing key, and dependencies."""

from domain_event_broker.injection.compiler import bind, binding_key_of, is_async, name_in
from domain_event_broker.injection.markers import Depends, RoutingKeySegment
from domain_event_broker.injection.plans import Injected, refuse_undone

__all__ = [
    "Depends",
    "Injected",
    "RoutingKeySegment",
    "bind",
    "binding_key_of",
    "is_async",
    "name_in",
    "refuse_undone",
]
