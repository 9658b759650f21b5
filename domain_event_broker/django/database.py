"""What the databases do each in their own way: clocks, errors, lists of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from datetime import timezone as timezones
from typing import Any

from django.conf import settings
from django.db import Error
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from domain_event_broker.errors import OutboxNotMigrated, OutboxUnavailable

#: Unix time by the clock of the database, with its fraction, untouched by any time zone.
_UNIX_TIME = {
    "postgresql": "SELECT extract(epoch FROM clock_timestamp())::float8",
    "mysql": "SELECT TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(6)) / 1000000e0",
    "sqlite": "SELECT (julianday('now') - 2440587.5) * 86400.0",
}

#: Whether this session may write nothing: a standby, a database that was switched to reading. On others the
#: answer is not sure, since privileges decide.
_READS_ONLY = {"postgresql": "SHOW transaction_read_only", "sqlite": "PRAGMA query_only"}

#: "The table does not exist", "the column does not exist": SQLSTATEs of PostgreSQL, numbers of
#: MySQL, words of SQLite.
_MISSING_STATES = ("42P01", "42703")
_MISSING_NUMBERS = (1146, 1054)
_MISSING_WORDS = re.compile("no such table|no such column|has no column named")

#: Deadlock, serialization failure, lock timeout.
_PASSING_STATES = ("40P01", "40001", "55P03")
_PASSING_NUMBERS = (1205, 1213)


def unix_time(connection: BaseDatabaseWrapper) -> float:
    """Return the Unix time by the clock of the database."""
    with connection.cursor() as cursor:
        cursor.execute(_UNIX_TIME[connection.vendor])
        return float(cursor.fetchone()[0])


def reads_only(connection: BaseDatabaseWrapper) -> bool:
    """Tell whether the database is known to refuse whatever writes.

    Source: https://www.postgresql.org/docs/current/runtime-config-client.html, ``transaction_read_only``;
    https://www.sqlite.org/pragma.html#pragma_query_only.
    """
    if connection.vendor not in _READS_ONLY:
        return False
    with connection.cursor() as cursor:
        cursor.execute(_READS_ONLY[connection.vendor])
        return cursor.fetchone()[0] in ("on", 1)


def to_field(moment: datetime) -> datetime:
    """Return an aware datetime as model fields want it: naive and local if ``USE_TZ`` is off."""
    return moment if settings.USE_TZ else timezone.make_naive(moment)


def to_parameter(connection: BaseDatabaseWrapper, unix: float) -> Any:
    """Return a Unix time as the parameter for a datetime column in raw SQL."""
    moment = to_field(datetime.fromtimestamp(unix, timezones.utc))
    return connection.ops.adapt_datetimefield_value(moment)


def numbers(values: Iterable[int]) -> str:
    """Return integers as the inside of ``IN (...)``; no limit on parameters counts them."""
    return ", ".join(str(int(value)) for value in values) or "NULL"


def to_text(foreign: str) -> str:
    """Return a text that a broker or an exception wrote as every database can store it.

    MySQL connections of Django before 5.0 speak ``utf8mb3``, which ends where emojis begin.
    """
    text = foreign.encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")
    return re.sub("[^\x01-\uffff]", lambda found: f"\\U{ord(found[0]):08x}", text)


def is_missing_table(error: BaseException) -> bool:
    """Tell whether a statement of ours failed because its table, or a column of it, does not exist."""
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    first = error.args[0] if error.args else None
    missing = state in _MISSING_STATES or first in _MISSING_NUMBERS
    return missing or _MISSING_WORDS.search(str(error)) is not None


def is_locked(error: BaseException) -> bool:
    """Tell whether SQLite gave up waiting for another connection: trying again is all it takes."""
    return "is locked" in str(error)


def is_passing(error: BaseException) -> bool:
    """Tell whether the same transaction may well succeed if it is tried again at once.

    Deadlocks and serialization failures are such, and SQLite when it gave up waiting for
    another connection.
    """
    state = getattr(error.__cause__, "sqlstate", None) or getattr(error.__cause__, "pgcode", None)
    first = error.args[0] if error.args else None
    return state in _PASSING_STATES or first in _PASSING_NUMBERS or is_locked(error)


def not_migrated(alias: str) -> OutboxNotMigrated:
    """Return the error for an outbox whose tables do not exist, or are those of an older release."""
    return OutboxNotMigrated(
        f"database {alias!r} lacks tables or columns of the outbox: run "
        f"'manage.py migrate --database {alias}' (with 'domain_event_broker' in INSTALLED_APPS)"
    )


def unavailable(alias: str, error: Error) -> OutboxUnavailable:
    """Return the error of this package for one of Django's."""
    if is_missing_table(error):
        return not_migrated(alias)
    detail = " ".join(str(error).split()) or type(error).__name__
    return OutboxUnavailable(f"the outbox in database {alias!r} cannot be used now: {detail}")
