"""Install what the tests start privately: RabbitMQ, PostgreSQL, PgBouncer, MariaDB, Redis, Chromium.

    python3 -m tests.install_servers            # install those that are missing
    python3 -m tests.install_servers --list     # only say what is there

Works on Debian and Ubuntu, through sudo where the user isn't root. The machine's own services are neither
started nor enabled, no database cluster is made, and software that is there already isn't touched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from tests.harness import apt, binaries
from tests.harness.binaries import ServerSoftware


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python3 -m tests.install_servers",
        description="Install the servers that the tests start privately.",
    )
    parser.add_argument(
        "--list", action="store_true", help="only say what is there; exit 1 if something is missing"
    )
    options = parser.parse_args(arguments)
    missing = report()
    if not missing or options.list:
        return 1 if missing else 0
    try:
        install(missing)
    except apt.CannotInstall as error:
        print(f"Cannot install the servers: {error}", file=sys.stderr)
        return 1
    return 1 if report() else 0


def report() -> list[ServerSoftware]:
    """Print where each server is; return those that are missing."""
    missing = []
    for software in binaries.ALL:
        path = software.find()
        print(f"  {software.name:<11} {path or 'missing: package ' + software.package}", flush=True)
        if path is None and binaries.is_snap_only(software):
            print(f"  {'':<11} (optional here: snap install {software.package})", flush=True)
        elif path is None:
            missing.append(software)
    return missing


def install(missing: Sequence[ServerSoftware]) -> None:
    """Install what is missing with apt."""
    packages = [software.package for software in missing]
    print(f"Installing {', '.join(packages)} ...", flush=True)
    apt.install(packages, [service for software in missing for service in software.services])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
