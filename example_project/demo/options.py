"""The command line."""

from __future__ import annotations

import argparse
import os
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
CHECKOUT = PROJECT.parent

#: Above this, orders are not shown one by one.
MANY_ORDERS = 100

DESCRIPTION = """\
A small shop whose apps (orders, payments, shipping) speak to each other only through domain
events. This program makes a virtualenv, installs the library from this checkout, starts web
server, relay and subscriber, and then acts as the visitors: it places orders, breaks and
repairs the payment provider, looks at the dead letters and replays them. It ends with the
account of all events:

    published = handled + waiting + parked + dead-lettered
"""

EPILOG = """\
examples:
  example_project/run                    the show, on SQLite and without any broker
  example_project/run --serve            stay afterwards: open the shop and its admin
  example_project/run --kill             kill -9 relay and subscriber in the middle
  example_project/run --orders 500       more orders, no pauses

on real servers:
  DATABASE_URL=postgres://user:password@localhost:5432/shop \\
  DOMAIN_EVENT_BROKER=amqp://user:password@localhost:5672/%2F  example_project/run

exit codes: 0 the account balances, 1 it does not, 2 something is missing or went wrong,
130 stopped with Ctrl-C. What the processes print is kept in log files, in the state folder.
"""


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for.

    :param python: interpreter that has the library; ``None``: make a virtualenv.
    """

    orders: int
    kill: bool
    serve: bool
    port: int | None
    state: Path
    python: str | None
    database_url: str
    broker_url: str

    @property
    def database_file(self) -> Path:
        """The SQLite file, made anew for each run; not used with a ``DATABASE_URL``."""
        return self.state / "shop.sqlite3"

    @property
    def many(self) -> bool:
        """Whether there are too many orders to show each."""
        return self.orders > MANY_ORDERS


def parse(arguments: list[str] | None = None) -> Options:
    """Read the command line and the environment."""
    parser = argparse.ArgumentParser(
        prog="example_project/run",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--orders", type=_count, default=36, metavar="N", help="orders to place (default: 36)"
    )
    parser.add_argument(
        "--kill",
        action="store_true",
        help="kill -9 the relay and the subscriber in the middle, start new ones",
    )
    parser.add_argument(
        "--serve", action="store_true", help="keep the shop running afterwards, with a user for its admin"
    )
    parser.add_argument(
        "--port", type=_port, metavar="P", help="port of the web server (default: a free one)"
    )
    parser.add_argument(
        "--state",
        type=Path,
        default=PROJECT / "state",
        metavar="DIR",
        help="folder for database file and logs (default: example_project/state)",
    )
    parser.add_argument(
        "--python",
        metavar="PATH",
        help="use this Python, which has Django and the library, instead of making a virtualenv",
    )
    given = parser.parse_args(arguments)
    return Options(
        orders=given.orders,
        kill=given.kill,
        serve=given.serve,
        port=given.port,
        state=given.state.resolve(),
        python=given.python,
        database_url=os.environ.get("DATABASE_URL", ""),
        broker_url=os.environ.get("DOMAIN_EVENT_BROKER", "") or "database:",
    )


def masked(url: str) -> str:
    """Return a URL without its password."""
    return re.sub(r"(?<=://)([^/@:]*):[^@/]*@", r"\1:***@", url)


def shown(path: Path) -> str:
    """Return a path as short as it can be said from where the user is."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith(os.path.join("..", "..")) else relative


def indented(text: str, by: str = "    ") -> str:
    """Return text moved to the right."""
    return textwrap.indent(text.rstrip(), by)


def _count(text: str) -> int:
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number <= 100_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of orders from 0 to 100000")
    return number


def _port(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port")
    return number
