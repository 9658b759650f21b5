"""The promises of a transport, kept by RabbitMQ with quorum and with classic queues."""

from __future__ import annotations

from collections.abc import Sequence

import pika
import pytest

from domain_event_broker.config import BrokerSettings, parse
from domain_event_broker.ports import Subscription, Transport
from domain_event_broker.testing import TransportContract
from domain_event_broker.transports.rabbitmq import RabbitMQTransport, topology
from domain_event_broker.transports.rabbitmq.ladder import LADDER_MS
from tests.harness.rabbitmq import PrivateRabbitMQ


class RabbitMQContract(TransportContract):
    """Runs the suite on the shared broker."""

    queue_type: str
    counts_crashes: bool

    @pytest.fixture(autouse=True)
    def _broker(self, rabbitmq_server: PrivateRabbitMQ, monkeypatch: pytest.MonkeyPatch) -> None:
        self.url = rabbitmq_server.url()
        # The wait guards queues against a broker that is killed within two seconds, which none is here.
        monkeypatch.setattr(topology, "SETTLE_SECONDS", 0.0)

    def open(self) -> Transport:
        """Return a connection to the shared broker."""
        settings = parse(self.url)
        assert isinstance(settings, BrokerSettings)
        return RabbitMQTransport(settings)

    def subscription(self, **overrides: object) -> Subscription:
        """Return a subscription with queues of the type under test."""
        return super().subscription(**{"queue_type": self.queue_type, **overrides})

    def clean_up(self, queues: Sequence[str]) -> None:
        """Delete the queues of the test's handlers."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            channel = connection.channel()
            for queue in queues:
                for name in (queue, f"{queue}-dl", *(f"{queue}-wait-{step}" for step in LADDER_MS)):
                    channel.queue_delete(name)


class TestRabbitMQQuorum(RabbitMQContract):
    title = "RabbitMQ (quorum)"
    queue_type = "quorum"
    counts_crashes = True


class TestRabbitMQClassic(RabbitMQContract):
    title = "RabbitMQ (classic)"
    queue_type = "classic"
    counts_crashes = False
