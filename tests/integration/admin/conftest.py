"""Users of the admin, and the brokers that dead letters are tested on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from domain_event_broker import handlers
from domain_event_broker.transports import memory
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.integration.admin import stage

SECRET = "correct-horse"


@pytest.fixture
def superuser(db: None) -> User:
    """Return somebody who may do everything."""
    return User.objects.create_superuser("root", password="root")


@pytest.fixture
def admin(superuser: User) -> Client:
    """Return a client in which the superuser has logged in; CSRF tokens are checked as in production."""
    return _client(superuser)


@pytest.fixture
def client_with(db: None) -> Callable[..., Client]:
    """Return a function that logs in somebody with the given permissions and no others."""

    def make(*permissions: str) -> Client:
        return _client(stage.user(f"staff-{len(permissions)}", *permissions))

    return make


def _client(user: User) -> Client:
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> handlers.Registry:
    """Return the registry of the program, emptied for the length of the test."""
    monkeypatch.setattr(handlers.registry, "_handlers", {})
    return handlers.registry


@pytest.fixture(params=["memory", "database", "rabbitmq"])
def broker(request: pytest.FixtureRequest, settings: Any, fresh_name: Callable[[str], str]) -> Iterator[str]:
    """Configure each broker in turn; return the word for it."""
    url = {
        "memory": lambda: f"memory://{fresh_name('admin')}",
        "database": lambda: "database:",
        "rabbitmq": lambda: _rabbitmq(request.getfixturevalue("rabbitmq_server")),
    }[request.param]()
    settings.DOMAIN_EVENT_BROKER = url
    yield request.param
    if request.param == "memory":
        memory.forget(url.removeprefix("memory://"))


def _rabbitmq(server: PrivateRabbitMQ) -> str:
    return server.url()
