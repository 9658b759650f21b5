"""Filters beside the lists of events: a span of time, and events that nobody subscribes to."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.conf import settings
from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from domain_event_broker.django.admin.paging import SEARCH_WINDOW

#: What an address names the two ends of a span by.
SINCE, UNTIL = "since", "until"
#: Years beyond which a time zone may lead out of what a database has for a date.
_FIRST_YEAR, _LAST_YEAR = 1970, 9000


class TimeFilter(admin.ListFilter):
    """A span of time, typed by hand: a form of its own, which leaves the other filters as they are.

    What cannot be read as a time is no end.
    """

    title = "time"
    template = "admin/domain_event_broker/time_filter.html"

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        self.request = request  # Django 4.2 does not keep it
        self._admin = model_admin
        for name in (SINCE, UNTIL):
            params.pop(name, None)
            text = request.GET.get(name, "")
            if _moment(text):
                self.used_parameters[name] = text

    def has_output(self) -> bool:
        """Always."""
        return True

    def expected_parameters(self) -> list[str | None]:
        """Return the names of the two ends."""
        return [SINCE, UNTIL]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return what lies in the span."""
        found: QuerySet[Any] = self._admin.in_span(request, queryset) if self.used_parameters else queryset
        return found

    def choices(self, changelist: Any) -> Iterator[dict[str, Any]]:
        """Return what the form needs: its values, and the filters that it keeps."""
        mine = [SINCE, UNTIL, "p"]
        yield {
            **{name: self.used_parameters.get(name, "") for name in (SINCE, UNTIL)},
            "kept": [
                (name, value)
                for name, values in self.request.GET.lists()
                for value in values
                if name not in mine
            ],
            "without": changelist.get_query_string(remove=mine) if self.used_parameters else "",
        }


class UnroutableFilter(admin.SimpleListFilter):
    """Events that nobody subscribes to; the column has no index, so only new ones are looked at."""

    title = f"routing, newest {SEARCH_WINDOW:,}"
    parameter_name = "unroutable"

    def __init__(self, request: HttpRequest, params: dict[str, Any], model: Any, model_admin: Any) -> None:
        super().__init__(request, params, model, model_admin)
        self._window = model_admin.search_window

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Offer both."""
        return [("yes", "no queue was bound"), ("no", "routed")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        """Look through the newest events, of all or of the span of time."""
        if self.value() not in ("yes", "no"):
            return None
        found: QuerySet[Any] = self._window(request, queryset).filter(unroutable=self.value() == "yes")
        return found


def in_span(request: HttpRequest, queryset: QuerySet[Any], column: str) -> QuerySet[Any]:
    """Return the rows of ``queryset`` whose ``column`` lies in the span that the address asks for."""
    since, until = (_moment(request.GET.get(name, "")) for name in (SINCE, UNTIL))
    if since:
        queryset = queryset.filter(**{f"{column}__gte": since})
    return queryset.filter(**{f"{column}__lt": until}) if until else queryset


def _moment(text: str) -> datetime | None:
    """Return the time that ``text`` means in the time zone of the project, as the database has it."""
    try:
        moment = parse_datetime(text)
    except ValueError:
        return None  # of the right form, such as the 31st of February
    if moment is None or not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        return None
    if settings.USE_TZ:
        return timezone.make_aware(moment) if timezone.is_naive(moment) else moment
    return timezone.make_naive(moment) if timezone.is_aware(moment) else moment
