"""The overview of the admin has a permission of its own; no table changes."""

from __future__ import annotations

from django.db import migrations


class Migration(migrations.Migration):
    """A name for permissions to belong to."""

    dependencies = [("domain_event_broker", "0004_archive_by_correlation")]

    operations = [
        migrations.CreateModel(
            name="BrokerOverview",
            fields=[],
            options={
                "verbose_name": "broker overview",
                "verbose_name_plural": "at a glance",
                "default_permissions": ("view",),
                "proxy": True,
                "indexes": [],
                "constraints": [],
            },
            bases=("domain_event_broker.relayheartbeat",),
        ),
    ]
