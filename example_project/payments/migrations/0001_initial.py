from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
    ]

    operations = [
        migrations.CreateModel(
            name='Payment',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('order_number', models.CharField(db_index=True, max_length=32)),
                ('event_id', models.CharField(db_index=True, max_length=64)),
                ('amount_cents', models.PositiveIntegerField()),
                ('status', models.CharField(choices=[('charged', 'charged'), ('declined', 'declined')], max_length=16)),
                ('reference', models.CharField(blank=True, max_length=40)),
                ('attempts', models.PositiveSmallIntegerField()),
                ('made_at', models.DateTimeField(auto_now_add=True)),
            ],
        ),
        migrations.CreateModel(
            name='ProviderSwitch',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('broken', models.BooleanField(default=False)),
            ],
            options={
                'verbose_name': 'payment provider',
                'verbose_name_plural': 'payment provider',
            },
        ),
    ]
