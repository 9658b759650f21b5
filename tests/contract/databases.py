"""Databases for tests: an alias for each, migrated, while the tests of a module run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.core.management import call_command
from django.db import connections

from tests.harness.mariadb import PrivateMariaDB
from tests.harness.postgres import PrivatePostgreSQL


def sqlite_settings(directory: Path) -> dict[str, object]:
    """Return the settings of a new SQLite database."""
    return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(directory / "broker.sqlite3")}


def postgres_settings(server: PrivatePostgreSQL, name: str) -> dict[str, object]:
    """Return the settings of a PostgreSQL database."""
    place = {"HOST": "127.0.0.1", "PORT": str(server.port), "USER": server.user_name}
    return {"ENGINE": "django.db.backends.postgresql", "NAME": name, **place}


def mariadb_settings(server: PrivateMariaDB, name: str) -> dict[str, object]:
    """Return the settings of a MariaDB database."""
    place = {"HOST": "127.0.0.1", "PORT": str(server.port), "USER": server.user_name}
    return {"ENGINE": "django.db.backends.mysql", "NAME": name, **place}


@contextmanager
def database_alias(alias: str, settings: dict[str, object], migrate: bool = True) -> Iterator[str]:
    """Add a database to those of the project."""
    connections.databases[alias] = connections.configure_settings(
        {"default": {}, alias: {"CONN_MAX_AGE": None, **settings}}
    )[alias]
    try:
        if migrate:
            call_command("migrate", database=alias, verbosity=0)
        yield alias
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.databases[alias]
