"""Where the database of the project is, in the ways that operations say it."""

from __future__ import annotations

import os
from typing import Any

from tests.djangoapp.databases import settings_for

#: A server that fell silent is given up within seconds, as operations should have it everywhere.
IMPATIENT = {
    "connect_timeout": 3,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 6000,
}


def from_environment() -> dict[str, Any]:
    """Return the entry of ``DATABASES``: one server, several ports of it, or a SQLite file."""
    entry = settings_for(os.environ["FAULTS_DATABASE"])
    if entry["ENGINE"].endswith("sqlite3"):
        # A transaction that began by reading could not wait for the lock that it needs to write.
        entry["OPTIONS"]["transaction_mode"] = "IMMEDIATE"
        return entry
    entry["OPTIONS"] |= IMPATIENT
    if ports := os.environ.get("FAULTS_PORTS"):
        entry["PORT"] = ports
        entry["HOST"] = ",".join([entry["HOST"]] * len(ports.split(",")))
        entry["OPTIONS"]["target_session_attrs"] = "read-write"
    if level := os.environ.get("FAULTS_ISOLATION"):
        from psycopg import IsolationLevel

        entry["OPTIONS"]["isolation_level"] = IsolationLevel[level]
    return entry
