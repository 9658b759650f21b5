"""The dead letters of every handler, whatever broker they are in: look, replay, discard."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse

from domain_event_broker import config
from domain_event_broker.django.admin import audit, dead_letters, display
from domain_event_broker.django.admin.base import ReadOnlyAdmin, model_url
from domain_event_broker.django.admin.dead_letters import settings_for_admin
from domain_event_broker.django.discovery import discover
from domain_event_broker.django.status import BrokerStatus, broker_status
from domain_event_broker.django.transport_models import DeadLetter
from domain_event_broker.errors import ConfigurationError, DomainEventBrokerError, HandlerError
from domain_event_broker.handlers import Handler, describe
from domain_event_broker.ports import Decision
from domain_event_broker.routing import check_queue_name


@admin.register(DeadLetter)
class DeadLetterAdmin(ReadOnlyAdmin):
    """Two pages at one address: all handlers, and with ``?queue=`` the letters of one.

    The model lends its name and its permissions only; letters are asked of the broker, so the
    other views of a model admin, which would read its table, do not exist.
    """

    class Media:
        js = ["domain_event_broker/select_all.js"]

    def get_urls(self) -> list[URLPattern]:
        """Return the one address, and that to which the admin log links."""
        view, name = self.admin_site.admin_view, f"{self.opts.app_label}_{self.opts.model_name}"
        return [
            path("", view(self.changelist_view), name=f"{name}_changelist"),
            path("<path:object_id>/change/", view(self.change_view), name=f"{name}_change"),
        ]

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may put letters back to work."""
        return self.may(request, "replay")

    def has_discard_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may delete letters."""
        return self.may(request, "discard")

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Lead from an entry of the admin log to the handler that it names."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(self._url(object_id))

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show all handlers or one, and do what a form asks for."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        queue = (request.POST if request.method == "POST" else request.GET).get("queue", "")
        if not queue:
            return self._handlers(request)
        try:
            check_queue_name(queue)
        except HandlerError as error:
            self.message_user(request, display.printable(str(error)), messages.ERROR)
            return HttpResponseRedirect(self._url())
        if request.method == "POST":
            return self._act(request, queue)
        return self._letters(request, queue)

    def _handlers(self, request: HttpRequest) -> HttpResponse:
        handlers, problem = _discovered()
        status = _status(handlers)
        context = {
            "title": "Dead letters",
            "broker": _broker(),
            "problem": problem or dead_letters.told(status.problem),
            "rows": [(each, status.queues.get(each.name)) for each in handlers],
        }
        return self._page(request, "handlers.html", context)

    def _letters(self, request: HttpRequest, queue: str) -> HttpResponse:
        context = {
            "title": f"Dead letters of {queue}",
            "queue": queue,
            "handler": _handler(queue),
            "page": dead_letters.look(queue),
            "may_replay": self.has_replay_permission(request),
            "may_discard": self.has_discard_permission(request),
            "at_once": dead_letters.REPLAYED_AT_ONCE,
        }
        return self._page(request, "letters.html", context)

    def _act(self, request: HttpRequest, queue: str) -> HttpResponse:
        action, keys = request.POST.get("action", ""), frozenset(request.POST.getlist("letter"))
        needed = {
            "replay": self.has_replay_permission,
            "replay_all": self.has_replay_permission,
            "discard": self.has_discard_permission,
        }
        if action not in needed or not needed[action](request):
            raise PermissionDenied
        if not keys and action != "replay_all":
            self.message_user(request, "Choose letters first. Nothing was changed.", messages.WARNING)
        elif action == "discard" and request.POST.get("confirmed") != "yes":
            return self._ask(request, queue, keys)
        elif action == "discard":
            self._do(request, queue, Decision.DISCARD, keys)
        else:
            self._do(request, queue, Decision.RETRY, None if action == "replay_all" else keys)
        return HttpResponseRedirect(self._url(queue))

    def _ask(self, request: HttpRequest, queue: str, keys: frozenset[str]) -> HttpResponse:
        """Return the page that asks before letters are deleted."""
        page = dead_letters.find(queue, keys)
        context = {"title": "Discard dead letters", "queue": queue, "page": page}
        return self._page(request, "discard.html", context)

    def _do(self, request: HttpRequest, queue: str, decision: Decision, keys: frozenset[str] | None) -> None:
        """Replay or discard, write the admin log, and say how many letters it was."""
        done, flag = ("replayed", audit.CHANGE)
        if decision is Decision.DISCARD:
            done, flag = ("discarded", audit.DELETION)
        outcome = dead_letters.act(queue, decision, keys)
        note = f" The broker failed meanwhile: {outcome.problem}" if outcome.problem else ""
        entries = [(queue, display.printable(name)) for name in outcome.decided]
        audit.record(request, self.model, entries, flag, f"{done.capitalize()} in the admin.{note}")
        if outcome.problem:
            maybe = f" Up to {len(outcome.decided):,} letters were {done}." if outcome.decided else ""
            self.message_user(request, f"{outcome.problem}{maybe}", messages.ERROR)
        elif not outcome.done:
            self.message_user(request, "None of these letters is there any more.", messages.WARNING)
        else:
            noun = "letter was" if outcome.done == 1 else "letters were"
            self.message_user(request, f"{outcome.done:,} {noun} {done}.", messages.SUCCESS)

    def _page(self, request: HttpRequest, template: str, context: dict[str, Any]) -> HttpResponse:
        return self.page(request, f"deadletter/{template}", {"list_url": self._url(), **context})

    def _url(self, queue: str = "") -> str:
        url = reverse(model_url(self.model, "changelist"), current_app=self.admin_site.name)
        return f"{url}?{urlencode({'queue': queue})}" if queue else url


def _discovered() -> tuple[list[Handler], str]:
    """Return the handlers of the project, or none and what is wrong with them."""
    try:
        return discover().all(), ""
    except DomainEventBrokerError as error:
        return [], str(error)


def _handler(queue: str) -> dict[str, str] | None:
    """Return what is known of the handler ``queue``; ``None``: another program declares it."""
    for handler in _discovered()[0]:
        if handler.name == queue:
            return {"keys": ", ".join(handler.binding_keys), "function": describe(handler.call)}
    return None


def _broker() -> str:
    """Return the URL of the broker, without its password, or nothing where there is none."""
    try:
        settings = config.current()
    except ConfigurationError:
        return ""
    return settings.masked_url if settings else ""


def _status(handlers: list[Handler]) -> BrokerStatus:
    try:
        return broker_status(settings_for_admin(), handlers)
    except ConfigurationError as error:
        return BrokerStatus("", problem=str(error))
