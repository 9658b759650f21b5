import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
    ]

    operations = [
        migrations.CreateModel(
            name='Parcel',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('order_number', models.CharField(db_index=True, max_length=32)),
                ('event_id', models.CharField(db_index=True, max_length=64)),
                ('contents', models.CharField(max_length=80)),
                ('destination', models.CharField(max_length=80)),
                ('packed_at', models.DateTimeField(auto_now_add=True)),
            ],
        ),
        migrations.CreateModel(
            name='Shipment',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('order_number', models.CharField(db_index=True, max_length=32)),
                ('event_id', models.CharField(db_index=True, max_length=64)),
                ('carrier', models.CharField(max_length=40)),
                ('sent_at', models.DateTimeField(auto_now_add=True)),
                ('parcel', models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='shipments', to='shipping.parcel')),
            ],
        ),
    ]
