"""What the tables need beyond their columns, on the databases that know it.

A database that refuses nothing here changes nothing in meaning: only speed and exactness.
"""

from __future__ import annotations

from typing import Any

from django.db import migrations

#: The hot table is appended to and emptied all day: vacuum by number of rows, not by share of
#: a size that is nearly always nought, and without pausing
#: (https://www.postgresql.org/docs/current/runtime-config-autovacuum.html).
HOT_STORAGE = """
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 20000,
    autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0, toast.autovacuum_vacuum_threshold = 5000,
    toast.autovacuum_vacuum_cost_delay = 0"""

#: Leases and heartbeats are renewed every few seconds for ever: room in each page keeps the
#: updates in place (https://www.postgresql.org/docs/current/storage-hot.html).
POSTGRESQL = {
    "domain_event_broker_outbox": HOT_STORAGE,
    "domain_event_broker_delivery": HOT_STORAGE,
    "domain_event_broker_lease": "fillfactor = 50",
    "domain_event_broker_relay": "fillfactor = 50",
}

#: The tables that hold identities and texts as the publisher wrote them.
TEXT_TABLES = (
    "domain_event_broker_outbox",
    "domain_event_broker_held",
    "domain_event_broker_archive",
    "domain_event_broker_inbox",
    "domain_event_broker_queue",
    "domain_event_broker_delivery",
    "domain_event_broker_dead",
)

#: Buckets when the tables are made, and ever after.
BUCKETS = 64


def tune(apps: Any, schema_editor: Any) -> None:
    """Apply what the vendor of this database understands."""
    connection = schema_editor.connection
    if connection.vendor == "postgresql":
        _set_storage(schema_editor, _present_tables(connection))
    elif connection.vendor == "mysql":
        _compare_exactly(schema_editor, _present_tables(connection), connection.mysql_is_mariadb)


def free_leases(apps: Any, schema_editor: Any) -> None:
    """Write the leases that the first relay takes. Lost ones are written again by relays."""
    if "domain_event_broker_lease" in _present_tables(schema_editor.connection):
        leases = apps.get_model("domain_event_broker", "RelayLease")._default_manager
        leases.using(schema_editor.connection.alias).bulk_create(
            [leases.model(bucket=bucket) for bucket in range(BUCKETS)], ignore_conflicts=True
        )


def _present_tables(connection: Any) -> set[str]:
    """A database router may have kept some tables out of this database."""
    with connection.cursor() as cursor:
        return set(connection.introspection.table_names(cursor))


def _set_storage(schema_editor: Any, present: set[str]) -> None:
    for table, parameters in POSTGRESQL.items():
        if table in present:
            schema_editor.execute(f"ALTER TABLE {table} SET ({parameters})")


def _compare_exactly(schema_editor: Any, present: set[str], is_mariadb: bool) -> None:
    """Make MySQL tell ``A1`` from ``a1`` and ``a1`` from ``a1 ``, as all other databases do.

    With its usual collations the inbox would take the one for a duplicate of the other, and an
    event would be lost.
    """
    collation = "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_0900_bin"
    for table in TEXT_TABLES:
        if table in present:
            schema_editor.execute(f"ALTER TABLE {table} CONVERT TO CHARACTER SET utf8mb4 COLLATE {collation}")


class Migration(migrations.Migration):
    """Storage parameters on PostgreSQL, exact comparison on MySQL and MariaDB."""

    dependencies = [("domain_event_broker", "0001_initial")]

    operations = [
        migrations.RunPython(tune, migrations.RunPython.noop, atomic=False),
        migrations.RunPython(free_leases, migrations.RunPython.noop),
    ]
