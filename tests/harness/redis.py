"""A Redis of our own."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path

from tests.harness import binaries
from tests.harness.server import PrivateServer


class PrivateRedis(PrivateServer):
    """A Redis that has written each command to its log before it answers."""

    kind = "redis"

    def __init__(self) -> None:
        self._binary = binaries.REDIS.require()
        super().__init__()

    def url(self, database: int = 0) -> str:
        """Return the ``redis://`` URL of a numbered database."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        """Nothing to prepare: the options say all."""

    def command(self) -> Sequence[str | Path]:
        """Return the server with everything on its command line."""
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory)]
        return [self._binary, *place, "--save", "", "--appendonly", "yes", "--appendfsync", "always"]

    def is_ready(self) -> bool:
        """Tell whether it answers; while it loads its data it answers with an error."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
        except OSError:
            return False
