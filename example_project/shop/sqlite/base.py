"""SQLite for several processes, on a Django older than 5.1: see ``shop.database.sqlite``."""

from __future__ import annotations

from typing import Any

from django.db.backends.sqlite3 import base


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's own, with a write-ahead log and transactions that take the write lock at once."""

    def get_new_connection(self, conn_params: dict[str, Any]) -> Any:
        """Connect, and see to the write-ahead log."""
        connection = super().get_new_connection(conn_params)
        connection.execute("PRAGMA journal_mode=WAL")
        return connection

    def _start_transaction_under_autocommit(self) -> None:
        self.cursor().execute("BEGIN IMMEDIATE")
