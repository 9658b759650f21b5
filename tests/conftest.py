"""Fixtures that every test may use: private servers, names of its own, and a look for what was left behind.

The servers start when the first test asks for one, once per worker of pytest-xdist. A test that kills or
freezes a server makes one for itself (``with PrivateRabbitMQ() as broker:``); the shared ones stay up.
"""

from __future__ import annotations

import gc
import itertools
import secrets
import threading
from collections.abc import Callable, Iterator

import pytest
from asgiref.sync import SyncToAsync

from tests.harness.mariadb import PrivateMariaDB
from tests.harness.postgres import PrivatePostgreSQL
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.redis import PrivateRedis
from tests.harness.waiting import wait_until

#: The table of transports and promises at the end of a run; the testing kit, where it is not installed.
pytest_plugins = ["tests.contract.promises", "domain_event_broker.pytest_plugin"]

#: Seconds in which threads and connections that a test gave up may come to their end.
PATIENCE = 5.0


@pytest.fixture(scope="session")
def rabbitmq_server() -> Iterator[PrivateRabbitMQ]:
    """A running RabbitMQ, shared: use ``fresh_name`` for whatever is declared on it."""
    with PrivateRabbitMQ() as server:
        yield server
        if server.is_running:
            wait_until(
                lambda: not server.connections(), PATIENCE, lambda: f"all closed: {server.connections()}"
            )


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PrivatePostgreSQL]:
    """A running PostgreSQL, shared: give each purpose a database of its own with ``create_database``."""
    with PrivatePostgreSQL() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[PrivateMariaDB]:
    """A running MariaDB, shared: give each purpose a database of its own with ``create_database``."""
    with PrivateMariaDB() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[PrivateRedis]:
    """A running Redis, shared: use ``fresh_name`` for its keys."""
    with PrivateRedis() as server:
        yield server


@pytest.fixture
def fresh_name() -> Callable[[str], str]:
    """Return a function that makes unique names: ``fresh_name("orders")`` -> ``orders-5f1c09ab-1``."""
    test, numbers = secrets.token_hex(4), itertools.count(1)
    return lambda prefix: f"{prefix}-{test}-{next(numbers)}"


@pytest.fixture(autouse=True)
def _no_thread_left_behind() -> Iterator[None]:
    """Fail a test whose threads go on after it: they would disturb the next one, far from their cause."""
    before = _threads()
    yield

    def all_ended() -> bool:
        if _threads() <= before:
            return True
        gc.collect()  # the thread of an executor that nobody shut down ends when that is collected
        return _threads() <= before

    wait_until(all_ended, PATIENCE, lambda: f"ended: {_threads() - before}")


def _threads() -> set[threading.Thread]:
    """All threads but the one that asgiref keeps for the life of the process."""
    return set(threading.enumerate()) - set(getattr(SyncToAsync.single_thread_executor, "_threads", ()))
