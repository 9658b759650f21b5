"""The outbox on each database: an alias to it, a relay's view of it, and what its tables hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db import connections

from domain_event_broker.config import OutboxSettings
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from tests.djangoapp.databases import database, sqlite_file

VENDORS = ("sqlite", "postgresql", "mariadb")


@pytest.fixture(scope="session")
def unblocked(django_db_blocker: Any) -> Iterator[None]:
    with django_db_blocker.unblock():
        yield


@pytest.fixture(scope="session")
def sqlite_alias(unblocked: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the alias of a SQLite file."""
    path: Path = tmp_path_factory.mktemp("sqlite")
    with database("outbox_sqlite", sqlite_file(path, "outbox")) as alias:
        yield alias


@pytest.fixture(scope="session")
def postgresql_alias(unblocked: None, request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the alias of a database on PostgreSQL."""
    server = request.getfixturevalue("postgres_server")
    with database("outbox_postgresql", server.create_database("outbox")) as alias:
        yield alias


@pytest.fixture(scope="session")
def mariadb_alias(unblocked: None, request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the alias of a database on MariaDB."""
    server = request.getfixturevalue("mariadb_server")
    with database("outbox_mariadb", server.create_database("outbox")) as alias:
        yield alias


@pytest.fixture(params=VENDORS)
def alias(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the alias of an empty outbox, on each kind of database in turn."""
    name: str = request.getfixturevalue(f"{request.param}_alias")
    yield from _emptied(name)


@pytest.fixture
def postgresql(postgresql_alias: str) -> Iterator[str]:
    """Return the alias of an empty outbox on PostgreSQL."""
    yield from _emptied(postgresql_alias)


@pytest.fixture
def sqlite(sqlite_alias: str) -> Iterator[str]:
    """Return the alias of an empty outbox in a SQLite file."""
    yield from _emptied(sqlite_alias)


@pytest.fixture
def make_relay() -> Iterator[Callable[..., DjangoRelayOutbox]]:
    """Return a function that makes a relay's view of an outbox, with short times."""
    made: list[DjangoRelayOutbox] = []

    def make(alias: str, **options: Any) -> DjangoRelayOutbox:
        settings = OutboxSettings(**{"lease_seconds": 2.0, "poll_seconds": 0.2, **options})
        made.append(DjangoRelayOutbox(alias, settings))
        return made[-1]

    yield make
    for relay in made:
        relay.leave()


def _emptied(alias: str) -> Iterator[str]:
    _empty(alias)
    yield alias
    connections[alias].close()


def _empty(alias: str) -> None:
    for label in ("domain_event_broker", "shop"):
        for model in apps.get_app_config(label).get_models():
            model._default_manager.using(alias).all().delete()
