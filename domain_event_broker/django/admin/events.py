"""The three homes of an event: waiting, held, sent; and what one can do to those in the last two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from domain_event_broker.django.admin import audit, display, moves
from domain_event_broker.django.admin.base import StoredEventAdmin, name_of
from domain_event_broker.django.admin.filters import SINCE, UNTIL, TimeFilter, UnroutableFilter
from domain_event_broker.django.admin.paging import SEARCH_WINDOW
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, OutboxEvent
from domain_event_broker.django.outbox import outbox_alias
from domain_event_broker.errors import OutboxUnavailable

#: Events that a confirmation page names one by one.
_LISTED = 20
#: Digits that every database takes as an id, and more than any has; Python refuses to read thousands of them.
_ID_DIGITS = 18

Move = Callable[[QuerySet[Any], moves.Witness], int]

_EVENT: Any = ("Event", {"fields": ("routing_key", "shown_id", "key", "payload", "shown_headers")})


@admin.register(OutboxEvent)
class OutboxEventAdmin(StoredEventAdmin):
    """Events that wait to be sent: the oldest first, since its age is the lag of the outbox."""

    ordering = ("pk",)
    list_display = ("event", "key", "created_at", "age", "refusals")
    list_filter = (TimeFilter,)
    filterable = (SINCE, UNTIL)
    fieldsets = (
        ("Waiting", {"fields": ("created_at", "age", "attempts", "bucket")}),
        _EVENT,
    )


class _ActingAdmin(StoredEventAdmin):
    """Actions on events: confirmed where it matters, logged, and counted in a message."""

    def _act(
        self,
        request: HttpRequest,
        queryset: QuerySet[Any],
        move: Move,
        done: str,
        flag: int = audit.CHANGE,
    ) -> None:
        """Do ``move``, write the admin log, and say how many events it was."""

        def witness(rows: Sequence[Any]) -> None:
            stays = isinstance(rows[0], ArchivedEvent)
            entries = [(str(row.pk) if stays else None, name_of(row)) for row in rows]
            audit.record(request, self.model, entries, flag, f"{done} in the admin.")

        limit = moves.ACTION_LIMIT
        try:
            count = move(queryset.using(outbox_alias()), witness)
        except OutboxUnavailable as error:
            self.message_user(request, str(error), messages.ERROR)
            return
        noun = "1 event was" if count == 1 else f"{count:,} events were"
        level = messages.SUCCESS if count else messages.WARNING
        note = f" These are the oldest {limit:,}; repeat it for the rest." if count == limit else ""
        gone = "" if count else " Those selected are gone, or a relay is working on them."
        self.message_user(request, f"{noun} {done.lower()}.{gone}{note}", level)

    def _confirmed(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        """Return the events that the user saw on the confirmation page, or ``None`` before that.

        Events that came after the page was made are not among them.
        """
        up_to = request.POST.get("up_to", "")
        is_id = up_to.isdecimal() and len(up_to) <= _ID_DIGITS
        if request.POST.get("confirmed") != "yes" or not is_id:
            return None
        return queryset.filter(pk__lte=int(up_to))

    def _ask(self, request: HttpRequest, queryset: QuerySet[Any], texts: dict[str, Any]) -> HttpResponse:
        """Return the page that asks before an action is done."""
        # The oldest first, along the index that the list is ordered by.
        rows = list(queryset.reverse()[:_LISTED])
        count = queryset[: moves.ACTION_LIMIT].count()
        table = self.model._default_manager.using(outbox_alias())
        up_to = table.order_by("-pk").values_list("pk", flat=True).first() or 0
        context = {
            **texts,
            "action_name": request.POST.get("action", ""),
            "checkbox_name": ACTION_CHECKBOX_NAME,
            "selected": request.POST.getlist(ACTION_CHECKBOX_NAME),
            "select_across": request.POST.get("select_across", "0"),
            "up_to": up_to,
            "events": rows,
            "count": count,
            "button": texts["button"].format("1 event" if count == 1 else f"{count:,} events"),
            "limit": moves.ACTION_LIMIT,
        }
        return self.page(request, "confirm_action.html", context)


@admin.register(HeldEvent)
class HeldEventAdmin(_ActingAdmin):
    """Events that are scheduled, will be tried again, or are parked until somebody decides."""

    list_display = ("event", "short_state", "short_reason", "due", "held_for")
    list_filter = ("state", TimeFilter)
    filterable = ("state", SINCE, UNTIL)
    indexed = ("correlation_id",)
    actions = ("retry", "discard")
    page_actions = (("retry", "Retry now", "default"), ("discard", "Discard…", "deb-danger"))
    fieldsets = (
        ("Held", {"fields": ("shown_state", "shown_reason", "attempts", "due_at", "held_at", "blocks_key")}),
        _EVENT,
        ("Outbox", {"fields": ("created_at", "age", "bucket", "outbox_id")}),
    )

    def has_retry_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may put held events back to work."""
        return self.may(request, "replay")

    def has_discard_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may delete held events."""
        return self.may(request, "discard")

    @admin.display(description="state")
    def shown_state(self, event: HeldEvent) -> SafeString:
        """The state; parked stands out, since nothing but a person ends it."""
        return format_html('<span class="deb-{}">{}</span>', event.state, event.get_state_display())

    @admin.display(description="state")
    def short_state(self, event: HeldEvent) -> SafeString:
        """The state in one word."""
        return format_html('<span class="deb-{}">{}</span>', event.state, event.state)

    @admin.display(description="due")
    def due(self, event: HeldEvent) -> str:
        """Time until it goes back by itself."""
        if event.due_at is None:
            return display.EMPTY
        seconds = (event.due_at - timezone.now()).total_seconds()
        return f"in {display.seconds(seconds)}" if seconds > 0 else "now"

    @admin.display(description="held for")
    def held_for(self, event: HeldEvent) -> str:
        """Time since it was set aside."""
        return display.age(event.held_at)

    @admin.action(permissions=["retry"], description="Retry now")
    def retry(self, request: HttpRequest, queryset: QuerySet[HeldEvent]) -> None:
        """Make events due; their relay sends them next."""
        self._act(request, queryset, moves.retry, "Made due now")

    @admin.action(permissions=["discard"], description="Discard…")
    def discard(self, request: HttpRequest, queryset: QuerySet[HeldEvent]) -> HttpResponse | None:
        """Ask, then delete events for good."""
        seen = self._confirmed(request, queryset)
        if seen is None:
            return self._ask(request, queryset, _DISCARD)
        self._act(request, seen, moves.discard, "Discarded", audit.DELETION)
        return None


@admin.register(ArchivedEvent)
class ArchivedEventAdmin(_ActingAdmin):
    """Events that were sent, as long as the archive keeps them."""

    list_display = ("event", "key", "published_at", "took", "routed")
    list_filter = ("published_at", TimeFilter, UnroutableFilter)
    filterable = ("published_at", "unroutable", SINCE, UNTIL)
    search_help_text = (
        "An event id or a correlation id; or, among the newest "
        f"{SEARCH_WINDOW:,} events of the chosen time, a domain object id or the beginning of a routing key."
    )
    indexed = ("event_id", "correlation_id")
    time_column = "published_at"
    time_is_indexed = True
    #: The order of the index, whatever part of the archive is asked for.
    ordering = ("-published_at", "-pk")
    has_history = True
    actions = ("publish_again",)
    page_actions = (("publish_again", "Publish again…", "default"),)
    fieldsets = (
        ("Sent", {"fields": ("published_at", "took", "routed")}),
        _EVENT,
        ("Outbox", {"fields": ("created_at", "bucket", "outbox_id")}),
    )

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may publish sent events again."""
        return self.may(request, "replay")

    @admin.display(description="took")
    def took(self, event: ArchivedEvent) -> str:
        """Time from the business transaction to the confirm of the broker."""
        return display.seconds((event.published_at - event.created_at).total_seconds())

    @admin.display(description="routed", boolean=True)
    def routed(self, event: ArchivedEvent) -> bool:
        """Whether a queue was bound for it."""
        return not event.unroutable

    @admin.action(permissions=["replay"], description="Publish again…")
    def publish_again(self, request: HttpRequest, queryset: QuerySet[ArchivedEvent]) -> HttpResponse | None:
        """Ask, then put copies into the hot table."""
        seen = self._confirmed(request, queryset)
        if seen is None:
            return self._ask(request, queryset, _PUBLISH_AGAIN)
        self._act(request, seen, moves.publish_again, "Put into the outbox once more")
        return None


_DISCARD = {
    "title": "Discard events",
    "question": "These events will be deleted without having been sent:",
    "explanation": (
        "No handler will ever see them, and nothing brings them back. "
        "Later events of the same domain object id, which wait for a blocking one, will go on."
    ),
    "button": "Discard {}",
    "button_class": "deb-danger",
}
_PUBLISH_AGAIN = {
    "title": "Publish events again",
    "question": "Copies of these events will be sent to every queue that is bound for them now:",
    "explanation": (
        "The copies have the same event ids. A handler that took effect for an event, and whose inbox "
        "remembers it, skips the copy; handlers that are new, that failed, or that have no inbox "
        "(idempotent=False, or the inbox switched off) get it."
    ),
    "button": "Publish {} again",
    "button_class": "default",
}
