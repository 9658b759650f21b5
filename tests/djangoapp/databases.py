"""Databases for tests: an alias to a fresh one, migrated, for as long as a test needs it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from django.core.management import call_command
from django.db import connections


def settings_for(url: str, **options: Any) -> dict[str, Any]:
    """Return the ``DATABASES`` entry for a URL of a private server, or the path of a SQLite file."""
    parts = urlsplit(url)
    engine = {"postgresql": "postgresql", "mysql": "mysql"}.get(parts.scheme, "sqlite3")
    entry: dict[str, Any] = {"ENGINE": f"django.db.backends.{engine}", "OPTIONS": options}
    if engine == "sqlite3":
        return {**entry, "NAME": url}
    server = {"HOST": parts.hostname, "PORT": parts.port, "USER": parts.username}
    return {**entry, **server, "NAME": parts.path.lstrip("/")}


@contextmanager
def database(alias: str, url: str, migrate: bool = True, **entry: Any) -> Iterator[str]:
    """Add ``alias`` to the databases of the project while the block runs.

    Connections that other threads made and left open are theirs to close.
    """
    add_alias(alias, url, **entry)
    try:
        if migrate:
            call_command("migrate", database=alias, verbosity=0)
        yield alias
    finally:
        connections[alias].close()
        remove_alias(alias)


def add_alias(alias: str, url: str, **entry: Any) -> None:
    """Let ``connections[alias]`` be the database at ``url``; also for use in a child process."""
    connections.settings[alias] = connections.configure_settings(
        {"default": {}, alias: {**settings_for(url), **entry}}
    )[alias]


def remove_alias(alias: str) -> None:
    """Forget the alias."""
    connections.settings.pop(alias, None)
    if hasattr(connections._connections, alias):
        delattr(connections._connections, alias)


def run_in_thread(work: Any, alias: str) -> threading.Thread:
    """Start ``work`` in a thread that closes its connection to ``alias`` at the end."""

    def run() -> None:
        try:
            work()
        finally:
            connections[alias].close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def sqlite_file(directory: Path, name: str) -> str:
    """Return the path of a new SQLite file as a string: the URL of such a database."""
    return str(directory / f"{name}.sqlite3")
