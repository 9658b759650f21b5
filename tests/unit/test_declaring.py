"""A subscriber that declares many queues is not taken for one that is stuck."""

from __future__ import annotations

from typing import Any

import pytest

from domain_event_broker.config import BrokerSettings
from domain_event_broker.handlers import Handler
from domain_event_broker.observer import Observer
from domain_event_broker.subscriber import DECLARE_SECONDS, Consumer
from domain_event_broker.transports import open_transport


def test_the_observer_is_told_before_that_declaring_may_take_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []

    class Watcher(Observer):
        def alive(self, seconds: float = 0.0) -> None:
            told.append(seconds)

    settings = BrokerSettings(("memory://declaring",))
    transport = open_transport(settings)
    subscribe = transport.subscribe

    def declare(subscription: Any) -> None:
        told.append(subscription.name)
        subscribe(subscription)

    monkeypatch.setattr(transport, "subscribe", declare)
    handler = Handler(lambda event: None, "declaring", ("#",))
    Consumer([handler], settings, observer=Watcher()).run(timeout=0.1, transport=transport)
    assert told[:3] == [DECLARE_SECONDS, "declaring", 0.0]
