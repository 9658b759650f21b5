"""A MariaDB of our own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.harness import binaries
from tests.harness.server import PrivateServer, ServerError

#: A killed process loses nothing that the kernel has, so the log needn't reach the disk at each commit.
SETTINGS = {
    "innodb-flush-log-at-trx-commit": "2",
    "innodb-buffer-pool-size": "64M",
    "max-connections": "200",
    "character-set-server": "utf8mb4",
}


class PrivateMariaDB(PrivateServer):
    """A database server whose user ``root`` needs no password.

    ``settings`` are server options (without the leading dashes) beside or instead of ``SETTINGS``.
    """

    kind = "mariadb"
    user_name = "root"
    demote_to = ("mysql", "nobody")

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._binary = binaries.MARIADB.require()
        super().__init__()
        self._settings = {**SETTINGS, **(settings or {})}

    def url(self, dbname: str = "mysql") -> str:
        """Return the ``mysql://`` URL of a database of this server."""
        return f"mysql://{self.user_name}@127.0.0.1:{self.port}/{dbname}"

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self._execute(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database."""
        self._execute(f"DROP DATABASE `{name}`")

    def prepare(self) -> None:
        """Make the data directory."""
        self.run_tool(
            binaries.MARIADB.require("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={self.directory / 'data'}",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )

    def command(self) -> Sequence[str | Path]:
        """Return the server itself, not the script that restarts it."""
        return [
            self._binary,
            "--no-defaults",
            f"--datadir={self.directory / 'data'}",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.directory / 'socket'}",
            f"--pid-file={self.directory / 'pid'}",
            *(f"--{name}={value}" for name, value in self._settings.items()),
        ]

    def is_ready(self) -> bool:
        """Tell whether a client may connect."""
        try:
            self._execute("SELECT 1")
        except ServerError:
            return False
        return True

    def _execute(self, sql: str) -> str:
        where = ["--no-defaults", "--host=127.0.0.1", f"--port={self.port}", f"--user={self.user_name}"]
        return self.run_tool(binaries.MARIADB.require("mariadb"), *where, "--execute", sql)
