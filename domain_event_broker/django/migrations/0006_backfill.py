"""Back-fills: the memory of how far they are."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """A table of its own, and nothing else."""

    dependencies = [
        ("domain_event_broker", "0005_overview"),
    ]

    operations = [
        migrations.CreateModel(
            name="Backfill",
            fields=[
                ("id", models.BigAutoField(primary_key=True, serialize=False)),
                ("handler", models.CharField(max_length=255, verbose_name="handler")),
                (
                    "binding_keys",
                    models.TextField(
                        help_text="JSON: binding keys that events must match.", verbose_name="routing keys"
                    ),
                ),
                ("since", models.DateTimeField(blank=True, null=True, verbose_name="sent from")),
                ("until", models.DateTimeField(blank=True, null=True, verbose_name="sent until")),
                (
                    "ordering_key",
                    models.CharField(blank=True, default="", max_length=255, verbose_name="domain object id"),
                ),
                (
                    "correlation_id",
                    models.CharField(blank=True, default="", max_length=255, verbose_name="correlation id"),
                ),
                (
                    "force",
                    models.BooleanField(
                        default=False,
                        help_text="The inbox forgets that the handler took effect before.",
                        verbose_name="anew",
                    ),
                ),
                ("expected", models.BigIntegerField(default=0, verbose_name="events counted")),
                (
                    "up_to",
                    models.BigIntegerField(
                        help_text="The newest sent event when it began.", verbose_name="ends with"
                    ),
                ),
                (
                    "done_to",
                    models.BigIntegerField(
                        default=0, help_text="In the queue, and confirmed.", verbose_name="done up to"
                    ),
                ),
                ("forgotten_to", models.BigIntegerField(default=0, verbose_name="forgotten up to")),
                ("sent", models.BigIntegerField(default=0, verbose_name="events sent")),
                (
                    "begun_by",
                    models.CharField(blank=True, default="", max_length=255, verbose_name="begun by"),
                ),
                ("begun_at", models.DateTimeField(verbose_name="begun")),
                ("moved_at", models.DateTimeField(verbose_name="last progress")),
                ("ended_at", models.DateTimeField(blank=True, null=True, verbose_name="ended")),
                ("given_up", models.BooleanField(default=False, verbose_name="given up")),
            ],
            options={
                "verbose_name": "back-fill",
                "verbose_name_plural": "back-fills",
                "db_table": "domain_event_broker_backfill",
                "permissions": [("run_backfill", "Can put sent events into the queue of a handler")],
                "default_permissions": ("view",),
            },
        ),
    ]
