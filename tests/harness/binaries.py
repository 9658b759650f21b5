"""Where the servers' programs are, and which Debian package brings them. Standard library only."""

from __future__ import annotations

import glob
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path


class ServerMissing(RuntimeError):
    """A server that the tests need isn't on this machine. Tests fail with it; they are never skipped."""


@dataclass(frozen=True)
class ServerSoftware:
    """One kind of server: how to recognise it and how to get it."""

    name: str
    program: str
    #: Folders looked into before PATH, as glob patterns; the highest version wins.
    folders: tuple[str, ...]
    #: The package of Debian and Ubuntu.
    package: str
    #: Services which that package would start at boot; the installer disables them.
    services: tuple[str, ...]
    #: Overrules everything else when set: the folder that holds the program.
    variable: str

    def find(self, program: str | None = None) -> Path | None:
        """Return the path of the server's program, or of another that belongs to it, if it is there."""
        name = program or self.program
        for folder in self._folders():
            path = folder / name
            if os.access(path, os.X_OK):
                return path
        on_path = shutil.which(name)
        return Path(on_path) if on_path else None

    def require(self, program: str | None = None) -> Path:
        """Return the program's path, or raise ``ServerMissing`` which says how to get it."""
        path = self.find(program)
        if path is None:
            raise ServerMissing(
                f"{self.name}: the program {program or self.program!r} was not found. "
                f"On Debian and Ubuntu install the package {self.package!r} "
                "(`python3 -m tests.install_servers` does so without starting a service); "
                f"elsewhere set {self.variable} to the folder that holds the program."
            )
        return path

    def _folders(self) -> list[Path]:
        if chosen := os.environ.get(self.variable):
            return [Path(chosen)]
        found = [
            match
            for pattern in self.folders
            for match in sorted(glob.glob(pattern), key=_version, reverse=True)
        ]
        return [Path(match) for match in found]


def _version(path: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", path)]


# /usr/sbin/rabbitmq-server of Debian is a wrapper around `su rabbitmq`: its pid isn't the broker's, so it
# can't be killed honestly. The script below /usr/lib replaces itself by the Erlang machine.
RABBITMQ = ServerSoftware(
    name="RabbitMQ",
    program="rabbitmq-server",
    folders=("/usr/lib/rabbitmq/bin", "/opt/homebrew/opt/rabbitmq/sbin", "/usr/local/opt/rabbitmq/sbin"),
    package="rabbitmq-server",
    services=("rabbitmq-server.service", "epmd.service", "epmd.socket"),
    variable="TEST_RABBITMQ_BIN",
)
POSTGRESQL = ServerSoftware(
    name="PostgreSQL",
    program="postgres",
    folders=("/usr/lib/postgresql/*/bin", "/opt/homebrew/opt/postgresql@*/bin", "/usr/pgsql-*/bin"),
    package="postgresql",
    services=("postgresql.service",),
    variable="TEST_POSTGRESQL_BIN",
)
MARIADB = ServerSoftware(
    name="MariaDB",
    program="mariadbd",
    folders=("/usr/sbin", "/usr/bin", "/opt/homebrew/opt/mariadb/bin"),
    package="mariadb-server",
    services=("mariadb.service",),
    variable="TEST_MARIADB_BIN",
)
REDIS = ServerSoftware(
    name="Redis",
    program="redis-server",
    folders=(),
    package="redis-server",
    services=("redis-server.service",),
    variable="TEST_REDIS_BIN",
)

PGBOUNCER = ServerSoftware(
    name="PgBouncer",
    program="pgbouncer",
    folders=("/usr/sbin",),
    package="pgbouncer",
    services=("pgbouncer.service",),
    variable="TEST_PGBOUNCER_BIN",
)

# No servers, but found and installed like them.
FAKETIME = ServerSoftware(
    name="faketime",
    program="faketime",
    folders=("/usr/bin",),
    package="faketime",
    services=(),
    variable="TEST_FAKETIME_BIN",
)
CHROMIUM = ServerSoftware(
    name="Chromium",
    program="chromium",
    folders=("/usr/bin", "/snap/bin"),
    package="chromium",
    services=(),
    variable="TEST_CHROMIUM_BIN",
)

ALL = (RABBITMQ, POSTGRESQL, MARIADB, REDIS, PGBOUNCER, FAKETIME, CHROMIUM)


def faketime_library() -> Path:
    """Return the path of libfaketime, or raise ``ServerMissing`` which says how to get it."""
    FAKETIME.require()
    for pattern in ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1"):
        for match in sorted(glob.glob(pattern)):
            return Path(match)
    raise ServerMissing("faketime: libfaketime.so.1 was not found below /usr/lib")


def is_snap_only(software: ServerSoftware) -> bool:
    """Tell whether this system has the software as a snap and not as a package, as Ubuntu has Chromium."""
    release = Path("/etc/os-release")
    return software is CHROMIUM and release.exists() and "ID=ubuntu" in release.read_text().splitlines()
