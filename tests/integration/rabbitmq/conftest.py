"""Connections to the shared broker, and handlers on it, that are gone after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pika
import pytest

from domain_event_broker.config import BrokerSettings, parse
from domain_event_broker.ports import Subscription
from domain_event_broker.transports.rabbitmq import RabbitMQTransport, topology
from domain_event_broker.transports.rabbitmq.ladder import LADDER_MS
from tests.harness.rabbitmq import PrivateRabbitMQ

Connect = Callable[..., RabbitMQTransport]


def settings_of(value: object) -> BrokerSettings:
    """Read a setting that is not ``None``."""
    settings = parse(value)
    assert settings is not None
    return settings


@pytest.fixture(autouse=True)
def _queues_settle_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare tests the wait that guards new queues, unless they kill the broker and ask for it."""
    if "settling" not in request.fixturenames:
        monkeypatch.setattr(topology, "SETTLE_SECONDS", 0.0)


@pytest.fixture
def settling() -> None:
    """Let new queues settle, as outside of tests."""


@pytest.fixture
def connect(request: pytest.FixtureRequest, handler: object) -> Iterator[Connect]:
    """Return a function that opens a transport, by default to the shared broker; all are closed.

    It needs ``handler`` so that it is torn down before the queues are.
    """
    opened: list[RabbitMQTransport] = []

    def open_one(value: object = None) -> RabbitMQTransport:
        target = request.getfixturevalue("rabbitmq_server").url() if value is None else value
        opened.append(RabbitMQTransport(settings_of(target)))
        return opened[-1]

    yield open_one
    for transport in opened:
        transport.close()


@pytest.fixture
def handler(
    fresh_name: Callable[[str], str], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Subscription]]:
    """Return a function that makes a subscription bound to ``<name>.#``; its queues are deleted."""
    names: list[str] = []
    urls: set[str] = set()

    def make(**overrides: object) -> Subscription:
        urls.add(request.getfixturevalue("rabbitmq_server").url())
        name = str(overrides.pop("name", "") or fresh_name("rabbitmq"))
        names.append(name)
        fields: dict[str, object] = {"name": name, "binding_keys": (f"{name}.#",), **overrides}
        return Subscription(**fields)  # type: ignore[arg-type]

    yield make
    for url in urls:
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            for name in names:
                delete_queues(connection, name)


@pytest.fixture
def channel(rabbitmq_server: PrivateRabbitMQ) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    """Return a plain channel, to do what an operator or another program would do."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_server.url())) as connection:
        yield connection.channel()


def delete_queues(connection: pika.BlockingConnection, name: str) -> None:
    """Delete all that a handler may have left behind."""
    channel = connection.channel()
    for base in (name, f"{name}-dl", *(f"{name}-wait-{step}" for step in LADDER_MS)):
        channel.queue_delete(base)
        channel.queue_delete(f"{base}-migrating")
