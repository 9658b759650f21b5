"""Addresses of pages in the admin."""

from __future__ import annotations

from typing import Any

from django.db.models import Model
from django.http import HttpRequest
from django.urls import NoReverseMatch, reverse
from django.utils.http import urlencode

from domain_event_broker.django.models import StoredEvent
from domain_event_broker.django.transport_models import DeadLetter


class Links:
    """Addresses in the admin, for somebody who may see what is there; else they are empty.

    :param site: name of the admin site.
    """

    def __init__(self, request: HttpRequest, site: str) -> None:
        self._may = request.user.has_perm
        self._site = site

    def list(self, model: type[Model], **query: str) -> str:
        """Return the address of a list."""
        return self._url(model, "changelist", (), query)

    def event(self, event: StoredEvent) -> str:
        """Return the address of the page of an event."""
        return self._url(type(event), "change", (event.pk,), {})

    def letters(self, queue: str, **search: str) -> str:
        """Return the address of the dead letters of a handler, or of those that a search finds."""
        return self._url(DeadLetter, "changelist", (), {"queue": queue, **search})

    def may_view(self, model: type[Model]) -> bool:
        """Tell whether the user may see the objects of ``model``."""
        return self._may(f"{model._meta.app_label}.view_{model._meta.model_name}")

    def _url(self, model: type[Model], view: str, args: tuple[Any, ...], query: dict[str, str]) -> str:
        if not self.may_view(model):
            return ""
        try:
            url = reverse(model_url(model, view), args=args, current_app=self._site)
        except NoReverseMatch:
            return ""  # the project has taken it out of its admin
        return f"{url}?{urlencode(query)}" if query else url


def model_url(model: type[Model], view: str) -> str:
    """Return the name of a view of the admin of ``model``, for ``reverse``."""
    return f"admin:{model._meta.app_label}_{model._meta.model_name}_{view}"
