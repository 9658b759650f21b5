"""What all lists of events share: they are looked at, never edited, and read little of a big table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

import django
from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.db import Error, connections, transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from domain_event_broker import redaction
from domain_event_broker.django.admin import display
from domain_event_broker.django.admin.filters import in_span
from domain_event_broker.django.admin.life import life_of
from domain_event_broker.django.admin.links import Links
from domain_event_broker.django.admin.paging import (
    SEARCH_WINDOW,
    CappedPaginator,
    EventChangeList,
    newest,
)
from domain_event_broker.django.admin.story import story_of
from domain_event_broker.django.conf import known_alias
from domain_event_broker.django.database import unavailable
from domain_event_broker.django.models import StoredEvent
from domain_event_broker.django.outbox import outbox_alias
from domain_event_broker.errors import DomainEventBrokerError

if TYPE_CHECKING:
    _ModelAdmin = admin.ModelAdmin[Any]
else:
    _ModelAdmin = admin.ModelAdmin

#: Where the templates of the admin are.
TEMPLATES = "admin/domain_event_broker"
#: Characters of a reason that a list shows.
_REASON_IN_LIST = 120


View = TypeVar("View", bound=Callable[..., HttpResponse])


def in_words(view: View) -> View:
    """Let a view of a :class:`ReadOnlyAdmin` answer with a page in words where it would fail.

    For a database that is away or not migrated, and settings that are wrong. What a template reads
    from the database counts too, so it is rendered here. The status is 503: nothing is wrong with
    the request.
    """

    @wraps(view)
    def guarded(self: ReadOnlyAdmin, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            with whole():
                response = view(self, request, *args, **kwargs)
                return response.render() if isinstance(response, TemplateResponse) else response
        except Error as error:
            return self.problem_page(request, unavailable(outbox_alias(), error))
        except DomainEventBrokerError as error:
            return self.problem_page(request, error)

    return cast(View, guarded)


@contextmanager
def whole(only_reading: bool = False) -> Iterator[None]:
    """Use a savepoint where a request is a transaction: a statement that failed would end all others.

    :param only_reading: go back to the savepoint in any case: who reads may have passed over an error.
    :raises ConfigurationError: there is no such database.
    """
    alias = known_alias(outbox_alias())
    if not connections[alias].in_atomic_block:
        yield
        return
    with transaction.atomic(using=alias):
        yield
        if only_reading:
            transaction.set_rollback(True, using=alias)


class ReadOnlyAdmin(_ModelAdmin):
    """Rows that machines write: nobody adds, changes or deletes one, but for the actions."""

    class Media:
        css = {"all": ["domain_event_broker/admin.css"]}

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Events are published, not typed."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """What happened cannot be edited."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Deleting is what the action "discard" is for, with a permission of its own."""
        return False

    def may(self, request: HttpRequest, action: str) -> bool:
        """Tell whether the user has the permission ``action`` for this model."""
        return request.user.has_perm(f"{self.opts.app_label}.{action}_{self.opts.model_name}")

    def page(self, request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
        """Return a page of our own, with what all pages of the admin have."""
        common = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "media": self.media,
            "breadcrumbs_are_a_list": django.VERSION >= (6, 1),
        }
        return TemplateResponse(request, f"{TEMPLATES}/{template}", {**common, **context})

    @in_words
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the list, or what keeps it from being shown."""
        return super().changelist_view(request, extra_context)

    def problem_page(self, request: HttpRequest, error: Exception) -> HttpResponse:
        """Return the page that says what is wrong."""
        response = self.page(request, "problem.html", {"title": "Not now", "problem": display.told(error)})
        response.status_code = 503
        return response

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Read from the database that the outbox is in."""
        return super().get_queryset(request).using(outbox_alias())


class StoredEventAdmin(ReadOnlyAdmin):
    """The list and the page of events, in one of their three homes."""

    paginator = CappedPaginator
    show_full_result_count = False
    list_per_page = 50
    #: Counts beside filters would read the whole table; Django 4.2 has none.
    show_facets: ClassVar[Any] = getattr(getattr(admin, "ShowFacets", None), "NEVER", None)
    ordering: ClassVar[Any] = ("-pk",)
    sortable_by = ()
    search_fields = ("event_id",)
    search_help_text = (
        "An event id, a correlation id, a domain object id, or the beginning of a routing key, "
        f"among the newest {SEARCH_WINDOW:,} events."
    )
    #: Identities that have an index, so that a search for them reaches all rows.
    indexed: tuple[str, ...] = ()
    #: The column that a span of time is about, and whether it has an index.
    time_column = "created_at"
    time_is_indexed = False
    #: The first words of the lookups that an address may ask for.
    filterable: tuple[str, ...] = ()
    #: Whether rows stay where they are, so that the admin log of one can be found.
    has_history = False
    #: Actions offered on the page of an event: name, label, and the class of its button.
    page_actions: tuple[tuple[str, str, str], ...] = ()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[EventChangeList]:
        """Return a list that is ordered by primary key alone."""
        return EventChangeList

    def lookup_allowed(self, lookup: str, value: Any, request: HttpRequest | None = None) -> bool:
        """Refuse lookups in the address that no filter of the page makes: they could read it all."""
        return lookup.partition("__")[0] in self.filterable

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Look for ``search_term`` by an index, or else among the newest rows."""
        term = search_term.strip()
        if not term:
            return queryset, False
        for column in self.indexed:
            if queryset.filter(**{column: term}).exists():
                return queryset.filter(**{column: term}), False
        wanted = Q(routing_key__startswith=term.rstrip("*#")) | Q(ordering_key=term)
        wanted |= Q(event_id=term) | Q(correlation_id=term)
        return self.search_window(request, queryset).filter(wanted), False

    def search_window(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the part of ``queryset`` that may be looked through row by row.

        With an index on the time these are the newest rows of the span of time that is asked for.
        """
        if not self.time_is_indexed:
            return newest(queryset)
        span = in_span(request, self.get_queryset(request), self.time_column)
        return newest(queryset, span, self.time_column)

    def in_span(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return what lies in the span of time that is asked for; without an index, of the newest rows."""
        rows = queryset if self.time_is_indexed else newest(queryset)
        return in_span(request, rows, self.time_column)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """All of them: some are methods, which Django shows only so."""
        return [name for _, options in self.get_fieldsets(request, obj) for name in options["fields"]]

    @in_words
    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show one event, with the actions that the user may take."""
        allowed = self.get_actions(request)
        offered = [action for action in self.page_actions if action[0] in allowed]
        context = {
            **self._past(request, object_id),
            "event_actions": offered,
            "has_history": self.has_history,
        }
        return super().change_view(request, object_id, form_url, {**context, **(extra_context or {})})

    def _past(self, request: HttpRequest, object_id: str) -> dict[str, Any]:
        """Return the life and the story of an event, if it is there and the user may see it."""
        event = self.get_object(request, unquote(object_id))
        if event is None or not self.has_view_permission(request, event):
            return {}
        links = Links(request, self.admin_site.name)
        return {"life": life_of(event, links), "story": story_of(event, links)}

    @in_words
    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show what was done to one event in the admin."""
        return super().history_view(request, object_id, extra_context)

    @admin.display(description="age")
    def age(self, event: StoredEvent) -> str:
        """Time since the event was stored."""
        return display.age(event.created_at)

    @admin.display(description="refusals")
    def refusals(self, event: Any) -> int:
        """How often the broker refused it."""
        return int(event.attempts)

    @admin.display(description="object id")
    def key(self, event: StoredEvent) -> str:
        """The key in whose order events are sent."""
        return event.ordering_key or display.EMPTY

    @admin.display(description="payload")
    def payload(self, event: StoredEvent) -> SafeString:
        """What may be shown of the body, indented."""
        message = event.to_message()
        return display.code_block(display.pretty_json(redaction.shown(message.body, message.headers)))

    @admin.display(description="headers")
    def shown_headers(self, event: StoredEvent) -> SafeString | str:
        """The headers, indented."""
        return display.code_block(display.pretty_json(event.headers)) if event.headers else display.EMPTY

    @admin.display(description="reason")
    def shown_reason(self, event: Any) -> SafeString | str:
        """Why the broker refused it, in full."""
        return display.code_block(display.printable(event.reason)) if event.reason else display.EMPTY

    @admin.display(description="reason")
    def short_reason(self, event: Any) -> str:
        """Why the broker refused it, as much as fits into a list."""
        reason = str(event.reason)
        return reason if len(reason) <= _REASON_IN_LIST else reason[: _REASON_IN_LIST - 1] + "…"

    @admin.display(description="event")
    def event(self, event: StoredEvent) -> SafeString:
        """What happened, above which event it is: the first column of lists."""
        return format_html(
            '{}<br><span class="deb-id deb-quiet">{}</span>', event.routing_key, event.event_id
        )

    @admin.display(description="event id")
    def shown_id(self, event: StoredEvent) -> SafeString:
        """The identity, in letters of one width."""
        return format_html('<span class="deb-id">{}</span>', event.event_id)


def name_of(event: StoredEvent) -> str:
    """Return the name of an event in the admin log: its identity first, which is never cut off."""
    return f"{event.event_id} {event.routing_key}"
