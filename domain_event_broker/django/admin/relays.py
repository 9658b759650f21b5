"""The relays that are alive, with the outbox they work on."""

from __future__ import annotations

import time
from typing import Any

from django.contrib import admin
from django.db.models import Count, IntegerField, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from domain_event_broker.django.admin import display
from domain_event_broker.django.admin.base import ReadOnlyAdmin, in_words
from domain_event_broker.django.models import BUCKETS, RelayHeartbeat, RelayLease
from domain_event_broker.django.outbox import outbox_alias
from domain_event_broker.django.status import COUNT_LIMIT, SILENT_SECONDS, outbox_status


@admin.register(RelayHeartbeat)
class RelayHeartbeatAdmin(ReadOnlyAdmin):
    """Relays with their heartbeats and their share of the buckets; above them, what they have to do."""

    list_display = ("process", "seen", "buckets", "running_for", "relay")
    ordering = ("host", "pid")
    sortable_by = ()
    fieldsets = ((None, {"fields": ("relay", "host", "pid", "seen", "running_for", "bucket_numbers")}),)
    readonly_fields = ("relay", "host", "pid", "seen", "running_for", "bucket_numbers")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Count the buckets of each relay in the same query."""
        owned = RelayLease.objects.filter(owner=OuterRef("pk"), lease_until__gt=time.time())
        counts = owned.order_by().values("owner").annotate(n=Count("bucket")).values("n")
        count = Coalesce(Subquery(counts, output_field=IntegerField()), 0)
        relays: QuerySet[Any] = super().get_queryset(request).annotate(bucket_count=count)
        return relays

    @in_words
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the figures of the outbox above the list."""
        outbox = outbox_status(outbox_alias())
        context = {
            **(extra_context or {}),
            "title": "Relays",
            "outbox": outbox,
            "pending_capped": outbox.pending >= COUNT_LIMIT,
            "oldest": None if outbox.oldest_seconds is None else display.seconds(outbox.oldest_seconds),
        }
        return super().changelist_view(request, context)

    @admin.display(description="process")
    def process(self, relay: RelayHeartbeat) -> str:
        """Where it runs."""
        return str(relay)

    @admin.display(description="last seen")
    def seen(self, relay: RelayHeartbeat) -> SafeString | str:
        """Time since the last heartbeat; a silent relay stands out."""
        seconds = max(0.0, time.time() - relay.seen_at)
        text = display.seconds(seconds)
        if seconds <= SILENT_SECONDS:
            return f"{text} ago"
        return format_html('<span class="deb-parked">silent for {}</span>', text)

    @admin.display(description="running for")
    def running_for(self, relay: RelayHeartbeat) -> str:
        """Time since the relay started."""
        return display.seconds(time.time() - relay.started_at)

    @admin.display(description=f"buckets of {BUCKETS}")
    def buckets(self, relay: Any) -> int:
        """How many buckets the relay sends from now."""
        return int(relay.bucket_count)

    @admin.display(description="buckets")
    def bucket_numbers(self, relay: RelayHeartbeat) -> str:
        """Which buckets the relay sends from now."""
        leases = RelayLease.objects.using(relay._state.db).filter(owner=relay.pk, lease_until__gt=time.time())
        numbers = leases.order_by("bucket").values_list("bucket", flat=True)
        return ", ".join(map(str, numbers)) or display.EMPTY
