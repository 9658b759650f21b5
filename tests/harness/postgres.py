"""A PostgreSQL of our own."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.harness import binaries
from tests.harness.server import PrivateServer, ServerError, descendants, is_alive

#: A killed process loses nothing that the kernel has: only a power cut would need fsync.
SETTINGS = {"fsync": "off", "max_connections": "200", "log_min_messages": "warning"}


class PrivatePostgreSQL(PrivateServer):
    """A database server with one superuser, ``postgres``, who needs no password.

    ``settings`` are server settings (as in postgresql.conf) beside or instead of ``SETTINGS``.
    """

    kind = "postgresql"
    user_name = "postgres"
    stop_signal = signal.SIGINT  # "fast": SIGTERM would wait for the last client to leave
    demote_to = ("postgres", "nobody")

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._binary = binaries.POSTGRESQL.require()
        super().__init__()
        self._settings = {**SETTINGS, **(settings or {})}

    def url(self, dbname: str = "postgres") -> str:
        """Return the ``postgresql://`` URL of a database of this server."""
        return f"postgresql://{self.user_name}@127.0.0.1:{self.port}/{dbname}"

    def dsn(self, dbname: str = "postgres") -> str:
        """Return the same as a libpq connection string."""
        return f"host=127.0.0.1 port={self.port} user={self.user_name} dbname={dbname}"

    def create_database(self, name: str) -> str:
        """Create an empty database and return its URL."""
        self._client_tool("createdb", name)
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, also when clients are still connected to it."""
        self._client_tool("dropdb", "--force", name)

    def prepare(self) -> None:
        """Make the data directory."""
        places = ["-D", str(self._data), "-U", self.user_name]
        self.run_tool(
            self._binary.with_name("initdb"), *places, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"
        )

    def command(self) -> Sequence[str | Path]:
        """Return the postmaster itself: run through pg_ctl it wouldn't be our child."""
        settings = {
            **self._settings,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self._binary, "-D", self._data, "-p", str(self.port), *options]

    def is_ready(self) -> bool:
        """Tell whether a client may connect."""
        try:
            self._client_tool("pg_isready", "-q")
        except ServerError:
            return False
        return True

    def limit_files(self, size: int | None) -> None:
        """Let the files of the server grow to so many bytes and no further; ``None``: without a limit.

        As on a disk that is full, but for files that are there already, such as the write-ahead
        log in its segments of 16 MB. It holds for the sessions that are open and for new ones.
        """
        soft = "unlimited" if size is None else str(size)
        for pid in [self.pid, *descendants(self.pid)]:
            try:
                self.run_tool("prlimit", "--pid", str(pid), f"--fsize={soft}:")
            except ServerError:
                if is_alive(pid):
                    raise

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _client_tool(self, name: str, *arguments: str) -> str:
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", self.user_name]
        return self._tool(name, *where, *arguments)

    def _tool(self, name: str, *arguments: str | Path) -> str:
        return self.run_tool(self._binary.with_name(name), *arguments)


class PrivateStandby(PrivatePostgreSQL):
    """A replica of a running server that streams from it, until :meth:`promote` makes it one of its own.

    :param primary: commits there return when this one has written them, once it was named in
        ``synchronous_standby_names`` of the primary: it is as ``standby``.
    """

    kind = "standby"

    def __init__(self, primary: PrivatePostgreSQL, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(settings)
        self._primary = primary

    def prepare(self) -> None:
        """Copy the primary."""
        source = f"{self._primary.dsn()} application_name=standby".replace(" dbname=postgres", "")
        self._tool("pg_basebackup", "-d", source, "-D", self._data, "-R", "-X", "stream", "-c", "fast")

    def sever(self) -> None:
        """Receive nothing more from the primary."""
        for statement in ("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"):
            self._client_tool("psql", "-q", "-d", "postgres", "-c", statement)

    def promote(self) -> None:
        """Take over; return when it takes writes."""
        self._tool("pg_ctl", "promote", "-w", "-D", self._data)


class ClockedPostgreSQL(PrivatePostgreSQL):
    """A server whose wall clock can be set, by way of libfaketime."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self._library = binaries.faketime_library()
        super().__init__(settings)
        self._clock = self.directory / "clock"
        self.set_clock(0)

    def set_clock(self, seconds: float) -> None:
        """Let the clock be so many seconds ahead of the right time from now on; negative: behind."""
        new = self.directory / "clock.new"
        new.write_text(f"{seconds:+g}\n")
        new.chmod(0o644)
        new.rename(self._clock)

    def environment(self) -> Mapping[str, str]:
        """Return the environment of the server and its tools."""
        return {
            **os.environ,
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
