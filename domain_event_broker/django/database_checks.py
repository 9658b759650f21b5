"""System checks of the databases: where events are written, whether relays hear of them, what is migrated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Warning
from django.db import DEFAULT_DB_ALIAS, DatabaseError, InterfaceError, connections, models, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder

from domain_event_broker import config
from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.conf import outbox_alias
from domain_event_broker.django.models import InboxEntry, OutboxEvent
from domain_event_broker.django.waiting import is_pooled
from domain_event_broker.errors import ConfigurationError

TAG = "domain_event_broker"

#: Port that PgBouncer listens on unless told otherwise (https://www.pgbouncer.org/config.html, listen_port).
POOLER_PORTS = frozenset({"6432"})
#: Models and migrations that a message names.
NAMED = 3


def check_databases(**_: Any) -> list[CheckMessage]:
    """The outbox should live where the business rows do, and relays be able to hear of it."""
    broker = _broker()
    if broker is None:
        return []
    alias = outbox_alias()
    if alias not in settings.DATABASES:
        return [_unknown_alias(alias)]
    found = [*_check_distance(alias), *_check_models(alias)]
    if broker.outbox.listen and (sign := _sign_of_a_pooler(alias)):
        found.append(_pooled(alias, sign))
    return found


def check_tables(databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """The tables must exist as this release needs them, in a database that knows transactions."""
    broker = _broker()
    alias = outbox_alias() if broker is not None else None
    if broker is None or alias is None or alias not in (databases or ()):
        return []
    try:
        return list(_check_connection(connections[alias], broker))
    except (DatabaseError, InterfaceError):
        return []  # a database that is away has its own errors, from whatever needs it


def _check_connection(connection: BaseDatabaseWrapper, broker: BrokerSettings) -> Iterator[CheckMessage]:
    alias = connection.alias
    present = set(connection.introspection.table_names())
    if {OutboxEvent._meta.db_table, InboxEntry._meta.db_table} - present:
        yield _no_tables(alias)
    elif missing := _missing_migrations(connection):
        yield _not_migrated(alias, missing)
    if connection.vendor == "mysql" and not connection.features.supports_transactions:
        yield _no_transactions(alias)
    if broker.outbox.listen and not _sign_of_a_pooler(alias) and is_pooled(connection):
        yield _pooled(alias, "is reached through a pooler such as PgBouncer")


def _broker() -> BrokerSettings | None:
    try:
        return config.current()
    except ConfigurationError:
        return None  # the check of the settings says so


def _check_distance(alias: str) -> list[CheckMessage]:
    if alias == DEFAULT_DB_ALIAS or settings.DATABASE_ROUTERS:
        return []  # what routers do is looked at for each model
    return [
        Warning(
            f"the outbox is in database {alias!r}, not in {DEFAULT_DB_ALIAS!r}: an event that belongs to a "
            f"transaction on {DEFAULT_DB_ALIAS!r} is written after that has committed, and lost if the "
            "process ends in between",
            hint="Keep the outbox in the database of the business rows: leave out "
            "DOMAIN_EVENT_BROKER['OUTBOX']['DATABASE'], or publish with using= inside transactions on "
            f"{alias!r}. If all of your business rows are in {alias!r}, silence this check.",
            id=f"{TAG}.W001",
        )
    ]


def _check_models(alias: str) -> list[CheckMessage]:
    """Warn of rows that routers write to another database than that of the outbox."""
    elsewhere: dict[str, list[str]] = defaultdict(list)
    for model in _business_models() if settings.DATABASE_ROUTERS else ():
        home = router.db_for_write(model)
        if home != alias:
            elsewhere[home].append(model._meta.label)
    return [_apart(alias, home, labels) for home, labels in sorted(elsewhere.items())]


def _business_models() -> Iterator[type[models.Model]]:
    """Yield the models that events may tell of: those of the project and its apps, less Django's own."""
    for app in apps.get_app_configs():
        if app.label != TAG and not app.name.startswith("django.contrib."):
            yield from (model for model in app.get_models() if model._meta.managed and not model._meta.proxy)


def _sign_of_a_pooler(alias: str) -> str:
    """Return what in the settings of a database looks like a pooler that shares sessions, or nothing."""
    database = settings.DATABASES[alias]
    if database.get("DISABLE_SERVER_SIDE_CURSORS"):
        return "has DISABLE_SERVER_SIDE_CURSORS, as behind a pooler such as PgBouncer"
    ports = {part.strip() for part in str(database.get("PORT") or "").split(",")}
    if "postg" in database["ENGINE"] and ports & POOLER_PORTS:
        return f"is reached on port {', '.join(sorted(ports & POOLER_PORTS))}, that of PgBouncer"
    return ""


def _missing_migrations(connection: BaseDatabaseWrapper) -> list[str]:
    home, _ = MigrationLoader.migrations_module(TAG)
    if home is None:
        return []  # tables are made without migrations, as tests may have it
    names = {each.name for each in iter_modules(import_module(home).__path__)}
    applied = {name for label, name in MigrationRecorder(connection).applied_migrations() if label == TAG}
    return sorted(names - applied)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _pooled(alias: str, sign: str) -> CheckMessage:
    return Warning(
        f"database {alias!r} {sign}: where that shares sessions, LISTEN hears nothing",
        hint="Set DOMAIN_EVENT_BROKER['OUTBOX']['LISTEN'] = False; relays then look for events every "
        "POLL_SECONDS at the latest. Or silence this check if the pooler keeps sessions apart.",
        id=f"{TAG}.W002",
    )


def _apart(alias: str, home: str, labels: Sequence[str]) -> CheckMessage:
    return Warning(
        f"the outbox is in database {alias!r}, and routers write {_listed(labels)} to {home!r}: an event of "
        f"a transaction on {home!r} is written after that has committed, and lost if the process ends in "
        "between",
        hint=f"Migrate domain_event_broker in {home!r}, too, publish there with using={home!r} (and without "
        f"OUTBOX['DATABASE']), and run a relay with --database {home}. If no event tells of rows in "
        f"{home!r}, silence this check.",
        id=f"{TAG}.W005",
    )


def _unknown_alias(alias: str) -> CheckMessage:
    return Error(
        f"DOMAIN_EVENT_BROKER['OUTBOX']['DATABASE'] is {alias!r}, which is not in DATABASES; "
        f"known are {', '.join(sorted(settings.DATABASES))}",
        hint="Name one of them, or leave it out: the outbox is then where your rows are.",
        id=f"{TAG}.E002",
    )


def _no_transactions(alias: str) -> CheckMessage:
    return Error(
        f"the tables of database {alias!r} know no transactions: events would outlive a rollback",
        hint="On MySQL use the InnoDB storage engine.",
        id=f"{TAG}.E003",
    )


def _no_tables(alias: str) -> CheckMessage:
    # No error, which would keep the command that it asks for from running.
    return Warning(
        f"database {alias!r} has no tables of domain_event_broker yet: nothing can be published",
        hint=f"Run: manage.py migrate --database {alias}",
        id=f"{TAG}.W003",
    )


def _not_migrated(alias: str, names: Sequence[str]) -> CheckMessage:
    return Warning(
        f"database {alias!r} has the tables of an older release of domain_event_broker; not applied: "
        f"{_listed(names)}",
        hint=f"Run: manage.py migrate domain_event_broker --database {alias}",
        id=f"{TAG}.W006",
    )
