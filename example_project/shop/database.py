"""Where the shop keeps its rows: a SQLite file, or the server that ``DATABASE_URL`` names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import django
from django.core.exceptions import ImproperlyConfigured

#: Seconds for which a process waits until another one has written to the SQLite file.
SQLITE_TIMEOUT = 30

_ENGINES = {"postgres": "django.db.backends.postgresql", "postgresql": "django.db.backends.postgresql"}


def from_environment(default_file: Path) -> dict[str, Any]:
    """Return the value of ``DATABASES["default"]``."""
    url = os.environ.get("DATABASE_URL", "")
    return from_url(url) if url else sqlite(Path(os.environ.get("SHOP_DATABASE", default_file)))


def from_url(url: str) -> dict[str, Any]:
    """Read ``postgres://user:password@host:5432/name?sslmode=require``."""
    parts = urlsplit(url)
    if parts.scheme not in _ENGINES or not parts.path.strip("/"):
        raise ImproperlyConfigured(
            f"DATABASE_URL has the scheme {parts.scheme!r} and names the database {parts.path.strip('/')!r}; "
            "it must look like postgres://user:password@host:5432/name"
        )
    return {
        "ENGINE": _ENGINES[parts.scheme],
        "NAME": unquote(parts.path.strip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
        "OPTIONS": dict(parse_qsl(parts.query)),
        "CONN_MAX_AGE": 60,
        "CONN_HEALTH_CHECKS": True,
    }


def sqlite(path: Path) -> dict[str, Any]:
    """Return the settings of a SQLite file that several processes write to.

    The write-ahead log (WAL) lets readers go on while one process writes. Transactions take
    the write lock when they begin (IMMEDIATE), and so wait for their turn: one that has read
    before it wants to write would be refused at once, whatever the timeout says
    (https://www.sqlite.org/lang_transaction.html).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    database: dict[str, Any] = {"NAME": path, "OPTIONS": {"timeout": SQLITE_TIMEOUT}}
    if django.VERSION >= (5, 1):
        options = {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"}
        return {
            **database,
            "ENGINE": "django.db.backends.sqlite3",
            "OPTIONS": {**database["OPTIONS"], **options},
        }
    # Before 5.1 Django had no options for that; a backend of a few lines does the same.
    return {**database, "ENGINE": "shop.sqlite"}
