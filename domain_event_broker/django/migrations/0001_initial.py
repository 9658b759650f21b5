"""The tables of outbox, inbox, relays and the ``database:`` transport."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    """All tables, with the columns and indexes that the models name."""

    initial = True

    dependencies = [
    ]

    operations = [
        migrations.CreateModel(
            name='DeadDelivery',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('event_id', models.CharField(max_length=255, verbose_name='event id')),
                ('routing_key', models.CharField(max_length=255, verbose_name='routing key')),
                ('body', models.BinaryField(help_text='The exact bytes that are delivered.', verbose_name='body')),
                ('headers', models.TextField(default='{}', help_text='JSON object.', verbose_name='headers')),
            ],
            options={
                'verbose_name': 'dead letter',
                'verbose_name_plural': 'dead letters',
                'db_table': 'domain_event_broker_dead',
            },
        ),
        migrations.CreateModel(
            name='RelayHeartbeat',
            fields=[
                ('relay', models.CharField(max_length=64, primary_key=True, serialize=False, verbose_name='relay')),
                ('host', models.CharField(max_length=255, verbose_name='host')),
                ('pid', models.IntegerField(verbose_name='process')),
                ('started_at', models.FloatField(help_text='Unix time.', verbose_name='started')),
                ('seen_at', models.FloatField(help_text='Unix time.', verbose_name='last seen')),
            ],
            options={
                'verbose_name': 'relay',
                'verbose_name_plural': 'relays',
                'db_table': 'domain_event_broker_relay',
            },
        ),
        migrations.CreateModel(
            name='RelayLease',
            fields=[
                ('bucket', models.SmallIntegerField(primary_key=True, serialize=False, verbose_name='bucket')),
                ('owner', models.CharField(blank=True, default='', max_length=64, verbose_name='relay')),
                ('epoch', models.BigIntegerField(default=0, verbose_name='changes of hands')),
                ('lease_until', models.FloatField(default=0.0, help_text='Unix time.', verbose_name='lease ends')),
            ],
            options={
                'verbose_name': 'relay lease',
                'verbose_name_plural': 'relay leases',
                'db_table': 'domain_event_broker_lease',
            },
        ),
        migrations.CreateModel(
            name='TransportQueue',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('name', models.CharField(max_length=255, unique=True, verbose_name='handler')),
                ('bindings', models.TextField(default='{}', help_text='JSON object: a list of binding keys for each exchange.', verbose_name='bindings')),
            ],
            options={
                'verbose_name': 'queue',
                'verbose_name_plural': 'queues',
                'db_table': 'domain_event_broker_queue',
            },
        ),
        migrations.CreateModel(
            name='ArchivedEvent',
            fields=[
                ('event_id', models.CharField(max_length=64, verbose_name='event id')),
                ('bucket', models.SmallIntegerField(help_text='Unit of work of relays; all events of a key share one.', verbose_name='bucket')),
                ('ordering_key', models.CharField(max_length=255, null=True, verbose_name='domain object id')),
                ('routing_key', models.CharField(max_length=255, verbose_name='routing key')),
                ('body', models.TextField(help_text='The exact JSON that is sent.', verbose_name='body')),
                ('headers', models.TextField(blank=True, default='', help_text='JSON, or nothing.', verbose_name='headers')),
                ('timestamp', models.FloatField(default=0.0, help_text='Unix time that the event carries.', verbose_name='event timestamp')),
                ('created_at', models.DateTimeField(verbose_name='stored at')),
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('outbox_id', models.BigIntegerField(verbose_name='place in the outbox')),
                ('published_at', models.DateTimeField(verbose_name='sent at')),
                ('unroutable', models.BooleanField(default=False, help_text='No queue was bound for it.', verbose_name='unroutable')),
            ],
            options={
                'verbose_name': 'sent event',
                'verbose_name_plural': 'sent events',
                'db_table': 'domain_event_broker_archive',
                'permissions': [('replay_archivedevent', 'Can publish sent events again')],
                'indexes': [models.Index(fields=['published_at'], name='deb_archive_published'), models.Index(fields=['event_id'], name='deb_archive_event')],
            },
        ),
        migrations.CreateModel(
            name='DeadLetter',
            fields=[
            ],
            options={
                'verbose_name': 'dead letter',
                'verbose_name_plural': 'dead letters',
                'permissions': [('replay_deadletter', 'Can replay dead letters'), ('discard_deadletter', 'Can discard dead letters')],
                'proxy': True,
                'default_permissions': ('view',),
                'indexes': [],
                'constraints': [],
            },
            bases=('domain_event_broker.deaddelivery',),
        ),
        migrations.CreateModel(
            name='HeldEvent',
            fields=[
                ('event_id', models.CharField(max_length=64, verbose_name='event id')),
                ('bucket', models.SmallIntegerField(help_text='Unit of work of relays; all events of a key share one.', verbose_name='bucket')),
                ('ordering_key', models.CharField(max_length=255, null=True, verbose_name='domain object id')),
                ('routing_key', models.CharField(max_length=255, verbose_name='routing key')),
                ('body', models.TextField(help_text='The exact JSON that is sent.', verbose_name='body')),
                ('headers', models.TextField(blank=True, default='', help_text='JSON, or nothing.', verbose_name='headers')),
                ('timestamp', models.FloatField(default=0.0, help_text='Unix time that the event carries.', verbose_name='event timestamp')),
                ('created_at', models.DateTimeField(verbose_name='stored at')),
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('state', models.CharField(choices=[('scheduled', 'scheduled for later'), ('retrying', 'refused, will be tried again'), ('parked', 'parked until somebody decides')], max_length=16, verbose_name='state')),
                ('due_at', models.DateTimeField(blank=True, help_text='When it goes back; empty: parked.', null=True, verbose_name='due at')),
                ('outbox_id', models.BigIntegerField(blank=True, null=True, verbose_name='place in the outbox')),
                ('attempts', models.SmallIntegerField(default=0, verbose_name='refusals so far')),
                ('reason', models.TextField(blank=True, default='', verbose_name='reason')),
                ('blocks_key', models.BooleanField(default=False, help_text='Later events of its key wait for it.', verbose_name='blocks its key')),
                ('held_at', models.DateTimeField(verbose_name='held since')),
            ],
            options={
                'verbose_name': 'held event',
                'verbose_name_plural': 'held events',
                'db_table': 'domain_event_broker_held',
                'permissions': [('replay_heldevent', 'Can send held events now'), ('discard_heldevent', 'Can discard held events')],
                'indexes': [models.Index(fields=['due_at'], name='deb_held_due'), models.Index(fields=['blocks_key', 'ordering_key'], name='deb_held_key'), models.Index(fields=['state', 'id'], name='deb_held_state')],
            },
        ),
        migrations.CreateModel(
            name='InboxEntry',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('consumer', models.CharField(max_length=255, verbose_name='handler')),
                ('event_id', models.CharField(max_length=64, verbose_name='event id')),
                ('handled_at', models.DateTimeField(verbose_name='handled at')),
            ],
            options={
                'verbose_name': 'handled event',
                'verbose_name_plural': 'handled events',
                'db_table': 'domain_event_broker_inbox',
                'indexes': [models.Index(fields=['handled_at'], name='deb_inbox_handled')],
                'constraints': [models.UniqueConstraint(fields=('consumer', 'event_id'), name='deb_inbox_once')],
            },
        ),
        migrations.CreateModel(
            name='OutboxEvent',
            fields=[
                ('event_id', models.CharField(max_length=64, verbose_name='event id')),
                ('bucket', models.SmallIntegerField(help_text='Unit of work of relays; all events of a key share one.', verbose_name='bucket')),
                ('ordering_key', models.CharField(max_length=255, null=True, verbose_name='domain object id')),
                ('routing_key', models.CharField(max_length=255, verbose_name='routing key')),
                ('body', models.TextField(help_text='The exact JSON that is sent.', verbose_name='body')),
                ('headers', models.TextField(blank=True, default='', help_text='JSON, or nothing.', verbose_name='headers')),
                ('timestamp', models.FloatField(default=0.0, help_text='Unix time that the event carries.', verbose_name='event timestamp')),
                ('created_at', models.DateTimeField(verbose_name='stored at')),
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('attempts', models.SmallIntegerField(default=0, verbose_name='refusals so far')),
            ],
            options={
                'verbose_name': 'waiting event',
                'verbose_name_plural': 'waiting events',
                'db_table': 'domain_event_broker_outbox',
                'indexes': [models.Index(fields=['bucket', 'id'], name='deb_outbox_bucket')],
            },
        ),
        migrations.AddField(
            model_name='deaddelivery',
            name='queue',
            field=models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='domain_event_broker.transportqueue', verbose_name='handler'),
        ),
        migrations.CreateModel(
            name='QueuedDelivery',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('event_id', models.CharField(max_length=255, verbose_name='event id')),
                ('routing_key', models.CharField(max_length=255, verbose_name='routing key')),
                ('body', models.BinaryField(help_text='The exact bytes that are delivered.', verbose_name='body')),
                ('headers', models.TextField(default='{}', help_text='JSON object.', verbose_name='headers')),
                ('retries', models.IntegerField(default=0, verbose_name='retries so far')),
                ('crashes', models.IntegerField(default=0, verbose_name='holders that died with it')),
                ('due_at', models.BigIntegerField(default=0, help_text='Unix time in milliseconds by the clock of the database; 0: at once. While a receiver holds it: when its lock ends.', verbose_name='due at')),
                ('holder', models.BigIntegerField(help_text='The receiver that it is with.', null=True, verbose_name='holder')),
                ('queue', models.ForeignKey(db_constraint=False, db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='domain_event_broker.transportqueue', verbose_name='handler')),
            ],
            options={
                'verbose_name': 'queued event',
                'verbose_name_plural': 'queued events',
                'db_table': 'domain_event_broker_delivery',
                'indexes': [models.Index(fields=['queue', 'due_at', 'id'], name='deb_delivery_next')],
            },
        ),
        migrations.AddIndex(
            model_name='deaddelivery',
            index=models.Index(fields=['queue', 'id'], name='deb_dead_queue'),
        ),
    ]
