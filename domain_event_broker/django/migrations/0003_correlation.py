"""Events can be found by the story that they belong to.

The columns may be null, so that a release which knows nothing of them goes on publishing while
this one is being deployed. No table is rewritten for them.
"""

from __future__ import annotations

from django.db import migrations, models


def _column() -> models.CharField:
    return models.CharField("correlation id", max_length=255, null=True, blank=True)


class Migration(migrations.Migration):
    """One column in each home of an event."""

    dependencies = [("domain_event_broker", "0002_tune_tables")]

    operations = [
        migrations.AddField("OutboxEvent", "correlation_id", _column()),
        migrations.AddField("HeldEvent", "correlation_id", _column()),
        migrations.AddField("ArchivedEvent", "correlation_id", _column()),
        migrations.AddIndex("HeldEvent", models.Index(fields=["correlation_id"], name="deb_held_story")),
    ]
