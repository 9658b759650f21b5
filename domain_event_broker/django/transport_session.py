"""The way of the ``database:`` transport to its database: errors, conflicts, transactions, time."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TypeVar

from django.db import DataError, Error, IntegrityError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from domain_event_broker.django.database import is_missing_table, is_passing, unix_time
from domain_event_broker.django.transport_models import TransportQueue
from domain_event_broker.errors import BrokerUnavailable, ConfigurationError

Result = TypeVar("Result")

#: Seconds for which a statement that lost against another one is tried again.
CONFLICT_SECONDS = 30.0
#: Seconds between two such tries, at most; SQLite has waited for its own ``timeout`` before.
CONFLICT_PAUSE = 0.05
#: Seconds after which the clock of the database is read again.
CLOCK_SECONDS = 60.0

#: Bytes left over for what a failure adds to the headers of a dead letter.
FAILURE_BYTES = 512 * 1024


class Session:
    """Runs statements on one database, in the thread that made it.

    It uses the connection that Django keeps for this thread, and closes it in the end only if
    it was not open before.

    :param alias: name of the database in ``DATABASES``.
    :raises ConfigurationError: there is no such database.
    """

    def __init__(self, alias: str) -> None:
        if alias not in connections:
            raise ConfigurationError(
                f"'database:{alias}' names no database; DATABASES has {', '.join(sorted(connections))}"
            )
        self.alias = alias
        self._was_open = self.connection.connection is not None
        self._ahead = 0.0
        self._clock_read = -math.inf

    @property
    def connection(self) -> BaseDatabaseWrapper:
        """The connection of this thread."""
        return connections[self.alias]

    @property
    def vendor(self) -> str:
        """``"postgresql"``, ``"mysql"`` (MariaDB, too), ``"sqlite"``, ..."""
        return self.connection.vendor

    def run(self, call: Callable[[], Result]) -> Result:
        """Call ``call`` until it gets past the locks of others, and return what it returns.

        It must be one statement or one transaction: nothing is left of a try that failed.

        :raises ConfigurationError: the tables do not exist.
        :raises BrokerUnavailable: any other trouble; the connection is closed by then. Only
            ``DataError`` and ``IntegrityError``, which concern a row, pass through.
        """
        end = time.monotonic() + CONFLICT_SECONDS
        while True:
            try:
                return call()
            except (DataError, IntegrityError):
                raise
            except Error as error:
                # In a transaction of the caller there is nothing to try again: it has failed.
                lost = not is_passing(error) or self.connection.in_atomic_block
                if lost or time.monotonic() > end:
                    raise self._failure(error) from error
            time.sleep(random.uniform(0, CONFLICT_PAUSE))  # noqa: S311 - spreads tries, no secret

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make what is done inside one transaction.

        SQLite gets its write lock at once: a transaction that began by reading could not wait
        for it (https://www.sqlite.org/lang_transaction.html).
        """
        with transaction.atomic(using=self.alias):
            if self.vendor == "sqlite":
                TransportQueue.objects.using(self.alias).filter(id=-1).update(name="")
            yield

    def refuse_transaction(self, action: str) -> None:
        """Raise ``ConfigurationError`` inside a transaction of the caller.

        What is stored or taken there is neither until it commits, and it may never do so.
        """
        if self.connection.in_atomic_block:
            raise ConfigurationError(
                f"the database: transport cannot {action} inside a transaction on database "
                f"{self.alias!r}: publish through the outbox there, and in tests use 'memory:' or "
                "TransactionTestCase"
            )

    def now(self) -> int:
        """Return the Unix time in milliseconds by the clock of the database.

        It is read from time to time, and counted on with a clock that nobody sets.
        """
        if time.monotonic() - self._clock_read > CLOCK_SECONDS:
            self._ahead = unix_time(self.connection) - time.monotonic()
            self._clock_read = time.monotonic()
        return math.ceil((self._ahead + time.monotonic()) * 1000)

    @cached_property
    def max_event_bytes(self) -> float:
        """Return how large an event may be, headers included.

        MySQL takes no statement longer than ``max_allowed_packet``, and drops the connection
        on one: it would look like a database that is away. Drivers write a byte as two
        (https://mariadb.com/kb/en/server-system-variables/#max_allowed_packet).
        """
        if self.vendor != "mysql":
            return math.inf
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT @@max_allowed_packet")
            return int(cursor.fetchone()[0]) // 2 - FAILURE_BYTES

    def close(self) -> None:
        """Close the connection, if nobody had opened it before us."""
        if not self._was_open and not self.connection.in_atomic_block:
            self.connection.close()

    def _failure(self, error: Error) -> Exception:
        if is_missing_table(error):
            return ConfigurationError(
                f"database {self.alias!r} has no tables for the database: transport: run "
                f"'manage.py migrate --database {self.alias}' (with 'domain_event_broker' in INSTALLED_APPS)"
            )
        if not self.connection.in_atomic_block:
            self.connection.close()
        detail = " ".join(str(error).split()) or type(error).__name__
        return BrokerUnavailable(f"the broker in database {self.alias!r} cannot be used now: {detail}")
