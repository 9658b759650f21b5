"""The index by which the archive, of any size, is searched for a story."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models


class AddIndexMeanwhile(migrations.AddIndex):
    """Builds an index while the table is written to, where that is not the usual way.

    PostgreSQL would make relays wait for it, and with them all events. A build that was cut short
    leaves an index that serves nobody, so what is there is dropped first
    (https://www.postgresql.org/docs/current/sql-createindex.html#SQL-CREATEINDEX-CONCURRENTLY).
    """

    atomic = False

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Build it."""
        model = to_state.apps.get_model(app_label, self.model_name)
        connection = schema_editor.connection
        if not self.allow_migrate_model(connection.alias, model):
            return
        if connection.vendor != "postgresql" or connection.in_atomic_block:
            schema_editor.add_index(model, self.index)
            return
        schema_editor.execute(
            f"DROP INDEX CONCURRENTLY IF EXISTS {schema_editor.quote_name(self.index.name)}"
        )
        schema_editor.add_index(model, self.index, concurrently=True)


class Migration(migrations.Migration):
    """Not in a transaction: PostgreSQL builds no index beside others in one."""

    atomic = False

    dependencies = [("domain_event_broker", "0003_correlation")]

    operations = [
        AddIndexMeanwhile("ArchivedEvent", models.Index(fields=["correlation_id"], name="deb_archive_story")),
    ]
