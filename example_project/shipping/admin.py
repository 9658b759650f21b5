"""Parcels and shipments in the admin."""

from __future__ import annotations

from django.contrib import admin

from shipping.models import Parcel, Shipment


@admin.register(Parcel)
class ParcelAdmin(admin.ModelAdmin):
    """What is packed."""

    list_display = ("order_number", "contents", "destination", "packed_at")
    search_fields = ("order_number",)
    ordering = ("-pk",)


@admin.register(Shipment)
class ShipmentAdmin(admin.ModelAdmin):
    """What was sent."""

    list_display = ("order_number", "carrier", "sent_at")
    search_fields = ("order_number",)
    ordering = ("-pk",)
