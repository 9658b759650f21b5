"""Payments in the admin."""

from __future__ import annotations

from django.contrib import admin

from payments.models import Payment, ProviderSwitch


@admin.register(Payment)
class PaymentAdmin(admin.ModelAdmin):
    """What the provider answered."""

    list_display = ("order_number", "amount_cents", "status", "attempts", "reference", "made_at")
    list_filter = ("status", "attempts")
    search_fields = ("order_number", "event_id")
    ordering = ("-pk",)


@admin.register(ProviderSwitch)
class ProviderSwitchAdmin(admin.ModelAdmin):
    """The switch of the fake provider."""

    list_display = ("__str__", "broken")
