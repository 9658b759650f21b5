"""Brokers that the subscriber is tested on, and a consumer in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from domain_event_broker import DomainEvent, config
from domain_event_broker.config import BrokerSettings
from domain_event_broker.events import Message, encode
from domain_event_broker.execution import DirectInbox
from domain_event_broker.handlers import Handler
from domain_event_broker.ports import DeadLetter, Inbox, QueueStats, Stored
from domain_event_broker.replay import LetterFilter, browse
from domain_event_broker.subscriber import Consumer, subscription_of
from domain_event_broker.transports import open_transport
from domain_event_broker.transports.rabbitmq import topology
from tests.harness.waiting import wait_until


class Bench:
    """A broker, and what a test does with it."""

    def __init__(self, settings: BrokerSettings, fresh_name: Callable[[str], str]) -> None:
        self.settings = settings
        self.fresh_name = fresh_name

    def handler(self, call: Callable[[DomainEvent], Any], **options: Any) -> Handler:
        """Return a handler of its own queue, which is declared and bound to a key like its name."""
        name = options.pop("name", None) or self.fresh_name("handler")
        handler = Handler(call, name, options.pop("binding_keys", (name,)), **options)
        with self.transport() as transport:
            transport.declare(subscription_of(handler, self.settings.subscriber))
        return handler

    @contextmanager
    def transport(self) -> Iterator[Any]:
        transport = open_transport(self.settings)
        try:
            yield transport
        finally:
            transport.close()

    def publish(self, handler: Handler, *data: Any) -> list[DomainEvent]:
        """Publish an event for each of ``data``, under the handler's name as routing key."""
        events = [DomainEvent(handler.binding_keys[0], {"value": each}) for each in data]
        self.send([encode(event) for event in events])
        return events

    def send(self, messages: list[Message]) -> None:
        with self.transport() as transport:
            assert all(each.stored is Stored.STORED for each in transport.publish(messages))

    @contextmanager
    def consuming(self, *handlers: Handler, inbox: Inbox | None = None, **options: Any) -> Iterator[Consumer]:
        """Run a consumer of ``handlers`` in a thread while the block runs."""
        settings = replace(self.settings, subscriber=replace(self.settings.subscriber, **options))
        consumer = Consumer(handlers, settings, inbox or DirectInbox())
        failures: list[BaseException] = []

        def run() -> None:
            try:
                consumer.run()
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield consumer
        finally:
            consumer.stop()
            thread.join(60)
            assert not thread.is_alive()
        if failures:
            raise failures[0]

    def stats(self, handler: Handler) -> QueueStats:
        with self.transport() as transport:
            stats: QueueStats = transport.stats([handler.name])[handler.name]
            return stats

    def is_empty(self, handler: Handler) -> bool:
        stats = self.stats(handler)
        return not (stats.ready or stats.delayed or stats.in_flight)

    def wait_until_empty(self, handler: Handler) -> None:
        wait_until(lambda: self.is_empty(handler), 30, lambda: f"empty: {self.stats(handler)}")

    def dead_letters(self, handler: Handler, count: int) -> list[DeadLetter]:
        """Wait for so many dead letters and return them."""
        wait_until(
            lambda: self.stats(handler).dead >= count, 30, lambda: f"{count} dead: {self.stats(handler)}"
        )
        with self.transport() as transport:
            return browse(transport.dead_letters(handler.name), LetterFilter())


@pytest.fixture(params=["memory", "rabbitmq"])
def bench(
    request: pytest.FixtureRequest, fresh_name: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> Bench:
    """Each test runs on the memory transport, and on RabbitMQ."""
    if request.param == "memory":
        url = f"memory://{fresh_name('broker')}"
    else:
        url = request.getfixturevalue("rabbitmq_server").url()
        # No broker is killed here, so that new queues need no time to settle on its disk.
        monkeypatch.setattr(topology, "SETTLE_SECONDS", 0)
    settings = config.parse(url)
    assert settings is not None
    return Bench(settings, fresh_name)
