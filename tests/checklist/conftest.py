"""Where the checklist is gone through: over every transport, unless a row is about one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from domain_event_broker import Subscriber, config
from domain_event_broker.execution import DirectInbox
from domain_event_broker.handlers import Handler, Registry, subscribe
from domain_event_broker.subscriber import install_inbox, installed_inbox, subscription_of
from domain_event_broker.transports import memory
from domain_event_broker.transports.rabbitmq import topology
from tests.djangoapp.databases import database, sqlite_file
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.integration.subscriber.conftest import Bench


@pytest.fixture(autouse=True)
def _without_a_database() -> Iterator[None]:
    """Handlers are called as in a program without Django."""
    inbox = installed_inbox()
    install_inbox(DirectInbox())
    yield
    install_inbox(inbox)


@pytest.fixture
def rabbitmq_url(rabbitmq_server: PrivateRabbitMQ, monkeypatch: pytest.MonkeyPatch) -> str:
    """A RabbitMQ that nobody kills, so that new queues need no time to settle on its disk."""
    monkeypatch.setattr(topology, "SETTLE_SECONDS", 0)
    return rabbitmq_server.url()


@pytest.fixture
def memory_url(fresh_name: Callable[[str], str]) -> Iterator[str]:
    """A broker in this process."""
    name = fresh_name("broker")
    yield f"memory://{name}"
    memory.forget(name)


@pytest.fixture
def database_url(fresh_name: Callable[[str], str], tmp_path: Path, django_db_blocker: Any) -> Iterator[str]:
    """Queues in a database, without the transaction that pytest-django wraps."""
    alias = fresh_name("queues")
    with django_db_blocker.unblock(), database(alias, sqlite_file(tmp_path, "queues")):
        yield f"database:{alias}"


@pytest.fixture(params=["memory", "rabbitmq", "database"])
def url(request: pytest.FixtureRequest) -> str:
    """Each row holds for every transport."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def bench(url: str, fresh_name: Callable[[str], str]) -> Bench:
    """A broker, and what a test does with it."""
    settings = config.parse(url)
    assert settings is not None
    return Bench(settings, fresh_name)


@pytest.fixture
def on_rabbitmq(rabbitmq_url: str, fresh_name: Callable[[str], str]) -> Bench:
    """RabbitMQ alone, for rows about what only it has."""
    settings = config.parse(rabbitmq_url)
    assert settings is not None
    return Bench(settings, fresh_name)


@pytest.fixture
def in_memory(memory_url: str, fresh_name: Callable[[str], str]) -> Bench:
    """The broker in this process alone, for rows that no broker has a part in."""
    settings = config.parse(memory_url)
    assert settings is not None
    return Bench(settings, fresh_name)


def declared(bench: Bench, call: Any, *events: Any, **options: Any) -> Handler:
    """Declare ``call`` as a program does, with ``@subscribe``; its queue exists and is bound afterwards."""
    registry = Registry()
    name = options.pop("name", None) or bench.fresh_name("handler")
    says_itself = hasattr(call, "subscribed_to")
    subscribe(*(events or (() if says_itself else (name,))), name=name, to=registry, **options)(call)
    (handler,) = registry.all()
    with bench.transport() as transport:
        transport.declare(subscription_of(handler, bench.settings.subscriber))
    return handler


@contextmanager
def consuming(subscriber: Subscriber) -> Iterator[None]:
    """Let a subscriber of the older API handle events in a thread while the block runs."""
    thread = threading.Thread(target=subscriber.start_consuming)
    thread.start()
    try:
        yield
    finally:
        subscriber.stop_consuming()
        thread.join(60)
        assert not thread.is_alive()
