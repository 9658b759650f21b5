"""Orders in the admin: to look at, for events make them."""

from __future__ import annotations

from django.contrib import admin

from orders.models import Note, Order, TimelineEntry


class TimelineInline(admin.TabularInline):
    """The timeline below an order."""

    model = TimelineEntry
    extra = 0
    can_delete = False
    readonly_fields = ("happened_at", "routing_key", "text", "event_id")
    fields = readonly_fields


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    """Orders with their timelines."""

    list_display = ("number", "product", "quantity", "total", "destination", "status", "placed_at")
    list_filter = ("status", "destination")
    ordering = ("-pk",)
    inlines = (TimelineInline,)


@admin.register(Note)
class NoteAdmin(admin.ModelAdmin):
    """Notes of visitors."""

    list_display = ("order", "text", "written_at")
