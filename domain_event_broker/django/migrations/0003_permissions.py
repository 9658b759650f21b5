"""Permissions for what the admin does to held and sent events."""

from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('domain_event_broker', '0002_tune_tables'),
    ]

    operations = [
        migrations.AlterModelOptions(
            name='archivedevent',
            options={'permissions': [('replay_archivedevent', 'Can publish sent events again')], 'verbose_name': 'sent event', 'verbose_name_plural': 'sent events'},
        ),
        migrations.AlterModelOptions(
            name='heldevent',
            options={'permissions': [('replay_heldevent', 'Can send held events now'), ('discard_heldevent', 'Can discard held events')], 'verbose_name': 'held event', 'verbose_name_plural': 'held events'},
        ),
    ]
