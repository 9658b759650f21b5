"""A PgBouncer of our own, in front of a PostgreSQL of ours."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.harness import binaries
from tests.harness.postgres import PrivatePostgreSQL
from tests.harness.server import PrivateServer

SETTINGS = {"default_pool_size": "20", "max_client_conn": "200", "server_login_retry": "1"}


class PrivatePgBouncer(PrivateServer):
    """A pooler for all databases of a server.

    :param target: the server.
    :param pool_mode: ``"transaction"``, ``"session"`` or ``"statement"``.
    :param settings: further settings of its section ``[pgbouncer]``.
    """

    kind = "pgbouncer"
    demote_to = ("postgres", "nobody")

    def __init__(
        self,
        target: PrivatePostgreSQL,
        pool_mode: str = "transaction",
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._binary = binaries.PGBOUNCER.require()
        super().__init__()
        self._target = target
        self._settings = {**SETTINGS, **(settings or {}), "pool_mode": pool_mode}

    def url(self, dbname: str) -> str:
        """Return the ``postgresql://`` URL of a database of the server, by way of the pooler."""
        return self._target.url(dbname).replace(f":{self._target.port}/", f":{self.port}/")

    def prepare(self) -> None:
        """Write the configuration (https://www.pgbouncer.org/config.html)."""
        users = self.directory / "users.txt"
        users.write_text(f'"{self._target.user_name}" ""\n')
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(self.port),
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": str(users),
            **self._settings,
        }
        lines = ["[databases]", f"* = host=127.0.0.1 port={self._target.port}", "[pgbouncer]"]
        lines += [f"{name} = {value}" for name, value in settings.items()]
        self._configuration.write_text("\n".join(lines) + "\n")
        for path in (users, self._configuration):
            path.chmod(0o644)

    def command(self) -> Sequence[str | Path]:
        """Return the pooler in the foreground."""
        return [self._binary, self._configuration]

    def is_ready(self) -> bool:
        """Tell whether a client may connect."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return True
        except OSError:
            return False

    @property
    def _configuration(self) -> Path:
        return self.directory / "pgbouncer.ini"
