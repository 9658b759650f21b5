"""Back-fills: sent events once more, for one handler; what was begun, how far it is, and going on with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db import connections, transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils import timezone

from domain_event_broker.django import backfill
from domain_event_broker.django.admin import audit, dead_letters, display
from domain_event_broker.django.admin.base import ReadOnlyAdmin, in_words
from domain_event_broker.django.admin.known import discovered_handlers
from domain_event_broker.django.admin.links import model_url
from domain_event_broker.django.backfill_models import Backfill
from domain_event_broker.django.outbox import outbox_alias
from domain_event_broker.errors import DomainEventBrokerError, PublishFailed
from domain_event_broker.routing import check_binding_key, check_queue_name
from domain_event_broker.transports import open_transport

#: Seconds for which a request counts events, and for which it sends them: somebody waits for the page.
COUNT_SECONDS, SEND_SECONDS = 5.0, 10.0

_View = Callable[..., HttpResponse]


class _LocalTime(forms.DateTimeInput):
    input_type = "datetime-local"

    def __init__(self) -> None:
        super().__init__(format="%Y-%m-%dT%H:%M")


def _check_year(moment: datetime) -> None:
    """Refuse years beyond which a time zone may lead out of what a database has for a date."""
    if not 1970 <= moment.year < 9000:
        raise forms.ValidationError("No event was sent in that year.")


class BackfillForm(forms.Form):
    """Which events, for which handler."""

    handler = forms.CharField(max_length=255, help_text="Name of the handler, and of its queue.")
    keys = forms.CharField(
        required=False,
        label="Routing keys",
        help_text="Such as order.* or order.placed, with blanks between; empty: what it is bound with.",
    )
    since = forms.DateTimeField(
        required=False, label="Sent from", widget=_LocalTime, validators=[_check_year]
    )
    until = forms.DateTimeField(
        required=False, label="Sent before", widget=_LocalTime, validators=[_check_year]
    )
    object_id = forms.CharField(required=False, max_length=255, label="Domain object id")
    correlation_id = forms.CharField(required=False, max_length=255, label="Correlation id")
    force = forms.BooleanField(
        required=False,
        label="Anew",
        help_text="Let the inbox forget these events, so that the handler takes effect for all of them anew.",
    )

    def clean_handler(self) -> str:
        """Check that a queue may have this name."""
        return _checked(check_queue_name, self.cleaned_data["handler"])

    def clean_keys(self) -> tuple[str, ...]:
        """Return the binding keys: those given, or those of the handler."""
        given = tuple(dict.fromkeys(self.cleaned_data["keys"].split()))
        for key in given:
            _checked(check_binding_key, key)
        handlers, _ = discovered_handlers()
        known = {each.name: each.binding_keys for each in handlers}
        keys = given or known.get(self.cleaned_data.get("handler", ""), ())
        if not keys:
            raise forms.ValidationError(
                "This is no handler of this project: say which events it needs, such as order.*"
            )
        return keys

    def chosen(self) -> backfill.Chosen:
        """Return which events are meant; only for a valid form."""
        data = self.cleaned_data
        since, until = (_aware(data[name]) for name in ("since", "until"))
        return backfill.Chosen(data["keys"], since, until, data["object_id"], data["correlation_id"])


@admin.register(Backfill)
class BackfillAdmin(ReadOnlyAdmin):
    """The list, the page that begins one, and the page of one that goes on with it."""

    list_display = ("handler", "shown_state", "progress", "shown_keys", "begun_at", "begun_by")
    ordering = ("-pk",)
    sortable_by = ()

    class Media:
        css = {"all": ["domain_event_broker/letters.css"]}

    def get_urls(self) -> list[URLPattern]:
        """Return the list, and our own pages, which are no part of a transaction of the request.

        What the inbox forgets must be forgotten before the event is sent, and how far it is noted right
        after: not when the page is ready.
        """
        view, name = self.admin_site.admin_view, f"{self.opts.app_label}_{self.opts.model_name}"
        new, change = (_without_transaction(view(each)) for each in (self.new_view, self.change_view))
        return [
            path("", view(self.changelist_view), name=f"{name}_changelist"),
            path("new/", new, name=f"{name}_new"),
            path("<path:object_id>/change/", change, name=f"{name}_change"),
        ]

    def has_run_permission(self, request: HttpRequest) -> bool:
        """Tell whether the user may put sent events into the queue of a handler, and see what comes of it."""
        return self.has_view_permission(request) and self.may(request, "run")

    @in_words
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show those that were begun."""
        context = {"may_run": self.has_run_permission(request), "new_url": self._url("new")}
        return super().changelist_view(request, {**(extra_context or {}), **context})

    @in_words
    def new_view(self, request: HttpRequest) -> HttpResponse:
        """Ask which events for which handler, count them, and begin."""
        if not self.has_run_permission(request):
            raise PermissionDenied
        values = request.POST if request.method == "POST" else request.GET
        form = BackfillForm(values) if values.get("handler") else BackfillForm()
        counted = None
        if form.is_bound and form.is_valid():
            problem = self._problem(form.cleaned_data["handler"])
            if problem:
                form.add_error("handler", problem)
            elif request.method == "POST":
                return self._begin(request, form)
            else:
                counted = backfill.count(outbox_alias(), form.chosen(), COUNT_SECONDS)
        known, unloadable = discovered_handlers()
        if unloadable:
            text = f"The handlers of this project cannot be loaded: {unloadable}"
            self.message_user(request, text, messages.ERROR)
        context = {
            "title": "Back-fill a handler",
            "here": "Back-fill a handler",
            "form": form,
            "counted": counted,
            "handlers": [handler.name for handler in known],
            "keys": ", ".join(form.cleaned_data["keys"]) if counted else "",
        }
        return self.page(request, "backfill/new.html", context)

    @in_words
    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show how far one is, go on with it, or give it up."""
        found = self._find(request, object_id)
        if request.method == "POST":
            if not self.has_run_permission(request):
                raise PermissionDenied
            if request.POST.get("action") == "give_up":
                self._give_up(request, found)
            else:
                self._go_on(request, found)
            return HttpResponseRedirect(self._url("change", found.pk))
        context = {
            "title": f"Back-fill of {found.handler}",
            "here": str(found),
            "run": found,
            "keys": ", ".join(found.keys),
            "may_run": self.has_run_permission(request),
            "database": found._state.db,
        }
        return self.page(request, "backfill/run.html", context)

    @admin.display(description="state")
    def shown_state(self, run: Backfill) -> str:
        """Where it is."""
        return run.state

    @admin.display(description="sent")
    def progress(self, run: Backfill) -> str:
        """How far it is."""
        return f"{run.sent:,} of {run.expected:,}"

    @admin.display(description="routing keys")
    def shown_keys(self, run: Backfill) -> str:
        """For which events."""
        return ", ".join(run.keys)

    def _find(self, request: HttpRequest, object_id: str) -> Backfill:
        if not self.has_view_permission(request):
            raise PermissionDenied
        found = self.get_object(request, unquote(object_id))
        if found is None:
            raise Http404("there is no such back-fill")
        return found  # type: ignore[no-any-return]

    def _problem(self, handler: str) -> str:
        """Return what keeps a back-fill of the handler from being begun, or nothing."""
        open_ones = backfill.unfinished(outbox_alias(), handler)
        if open_ones:
            return f"Number {open_ones[0].pk} of this handler is unfinished: go on with it, or give it up."
        try:
            transport = open_transport(dead_letters.settings_for_admin())
            try:
                exists = transport.stats([handler])[handler].exists
            finally:
                transport.close()
        except DomainEventBrokerError as error:
            return dead_letters.told(str(error))
        return "" if exists else "It has no queue: run 'manage.py declare_queues' first, and wait a minute."

    def _begin(self, request: HttpRequest, form: BackfillForm) -> HttpResponse:
        data, chosen = form.cleaned_data, form.chosen()
        expected = backfill.count(outbox_alias(), chosen, COUNT_SECONDS).events
        try:
            run = backfill.begin(
                outbox_alias(),
                data["handler"],
                chosen,
                force=data["force"],
                expected=expected,
                by=f"{request.user.get_username()} in the admin"[:255],
            )
        except PublishFailed as error:  # a second click, or a second person, while the events were counted
            self.message_user(request, str(error), messages.ERROR)
            return HttpResponseRedirect(self._url("changelist"))
        anew = ", anew" if run.force else ""
        text = f"Begun in the admin: {', '.join(run.keys)}{anew}. "
        audit.begin(request, self.model, str(run.pk), audit.CHANGE, text, str(run))
        self._go_on(request, run)
        return HttpResponseRedirect(self._url("change", run.pk))

    def _go_on(self, request: HttpRequest, run: Backfill) -> None:
        """Send for a while, and tell what came of it."""
        before, end = run.sent, time.monotonic() + SEND_SECONDS
        entry = audit.begin(
            request, self.model, str(run.pk), audit.CHANGE, "Events sent in the admin: ", str(run)
        )
        problem, done = "", False
        try:
            settings = dead_letters.settings_for_admin()
            done = backfill.go_on(run, settings, stop=lambda: time.monotonic() > end)
        except DomainEventBrokerError as error:
            problem = dead_letters.told(str(error))
        sent = run.sent - before
        audit.complete(entry, f"{sent:,}." + (f" {problem}" if problem else ""))
        if problem:
            self.message_user(request, f"{problem} {_events(sent)} sent before.", messages.ERROR)
        elif done:
            self.message_user(request, f"Done: {_events(run.sent)} sent.", messages.SUCCESS)
        else:
            self.message_user(request, f"{_events(sent)} sent; there are more.", messages.WARNING)

    def _give_up(self, request: HttpRequest, run: Backfill) -> None:
        backfill.give_up(run)
        audit.begin(request, self.model, str(run.pk), audit.CHANGE, "Given up in the admin.", str(run))
        self.message_user(request, "Given up. What was sent stays in the queue.", messages.SUCCESS)

    def _url(self, view: str, *args: object) -> str:
        return reverse(model_url(self.model, view), args=args, current_app=self.admin_site.name)


def _events(count: int) -> str:
    return "1 event was" if count == 1 else f"{count:,} events were"


def _without_transaction(view: _View) -> _View:
    """Keep ``ATOMIC_REQUESTS`` of any database away from a view."""
    for alias in connections.settings:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


def _checked(check: Callable[[object], str], value: str) -> str:
    try:
        return check(value)
    except DomainEventBrokerError as error:
        raise forms.ValidationError(display.printable(str(error))) from error


def _aware(moment: Any) -> Any:
    """Return a moment of a form with its time zone, which it lacks where ``USE_TZ`` is off."""
    return timezone.make_aware(moment) if moment is not None and timezone.is_naive(moment) else moment
