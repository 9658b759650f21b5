"""Publishing without an outbox: which limits hold, and what a forked process does."""

from __future__ import annotations

import threading

import pytest

from domain_event_broker import DomainEvent, Publisher, config
from domain_event_broker.direct import DirectRoute
from domain_event_broker.errors import InvalidEvent
from domain_event_broker.events import encode
from domain_event_broker.transports import memory


def test_a_publisher_keeps_to_the_limits_of_the_settings() -> None:
    publisher = Publisher(None)
    publisher._settings = config.parse(
        {"URL": "memory://limits", "MAX_PAYLOAD_BYTES": 1000, "MAX_JSON_DEPTH": 3}
    )
    with publisher, pytest.raises(InvalidEvent, match="at most 1000 are allowed"):
        publisher.publish(DomainEvent("a.b", {"text": "x" * 1000}))
    with publisher, pytest.raises(InvalidEvent, match="at most 3 levels"):
        publisher.publish(DomainEvent("a.b", {"a": {"b": {"c": {}}}}))
    memory.forget("limits")


def test_a_forked_process_publishes_although_a_thread_of_its_parent_was_publishing() -> None:
    settings = config.parse("memory://forked")
    route = DirectRoute()
    route._lock.acquire()  # as a thread of the parent does that is not there in the child
    route._pid = -1
    publishing = threading.Thread(
        target=route.send, args=(settings, [encode(DomainEvent("a.b", {}))]), daemon=True
    )
    publishing.start()
    publishing.join(30)
    assert not publishing.is_alive()
    route.close()
    memory.forget("forked")
