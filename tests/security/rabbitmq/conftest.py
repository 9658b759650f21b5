"""Brokers with users, permissions and certificates."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

import pika
import pytest

from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.integration.rabbitmq.conftest import (
    Connect,
    _queues_settle_at_once,
    channel,
    connect,
    handler,
)

__all__ = ["Connect", "_queues_settle_at_once", "channel", "connect", "handler"]


@dataclass(frozen=True)
class Users:
    """Makes users as the page "Operating RabbitMQ" does, in a virtual host of their own."""

    server: PrivateRabbitMQ
    vhost: str
    added: list[str] = field(default_factory=list)

    def url(self, user: str) -> str:
        return self.server.url(user, f"password-of-{user}", self.vhost)

    def add(self, user: str, configure: str, write: str, read: str, topics: str | None = None) -> str:
        """Add a user; return the URL to come with."""
        self.added.append(user)
        self.server.ctl("add_user", user, f"password-of-{user}")
        self.server.ctl("set_permissions", "-p", self.vhost, user, configure, write, read)
        if topics is not None:
            arguments = ("-p", self.vhost, user, "domain-events", topics, "")
            self.server.ctl("set_topic_permissions", *arguments)
        return self.url(user)


@pytest.fixture(scope="module")
def users(rabbitmq_server: PrivateRabbitMQ) -> Iterator[Users]:
    """A virtual host with the exchange of the events in it, for the tests of a module."""
    vhost = f"users-{secrets.token_hex(4)}"
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_server.add_vhost(vhost))) as connection:
        connection.channel().exchange_declare("domain-events", "topic", durable=True)
    made = Users(rabbitmq_server, vhost)
    yield made
    rabbitmq_server.ctl("delete_vhost", vhost)
    for user in made.added:
        rabbitmq_server.ctl("delete_user", user)
