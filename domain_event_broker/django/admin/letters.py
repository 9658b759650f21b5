"""The dead letters of every handler, whatever broker they are in: look, replay, discard."""

from __future__ import annotations

import json
import re
import time
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse

from domain_event_broker import config
from domain_event_broker.django.admin import audit, dead_letters, display
from domain_event_broker.django.admin.base import ReadOnlyAdmin
from domain_event_broker.django.admin.dead_letters import Outcome, Page, settings_for_admin
from domain_event_broker.django.admin.known import discovered_handlers
from domain_event_broker.django.admin.letter_search import LetterSearch
from domain_event_broker.django.admin.links import Links, model_url
from domain_event_broker.django.models import ArchivedEvent
from domain_event_broker.django.status import BrokerStatus, broker_status
from domain_event_broker.django.transport_models import DeadLetter
from domain_event_broker.errors import ConfigurationError, HandlerError
from domain_event_broker.handlers import Handler, describe
from domain_event_broker.ports import Decision
from domain_event_broker.routing import check_queue_name

#: What an action is called when it is done, and its flag in the admin log.
_DONE = {Decision.RETRY: ("replayed", audit.CHANGE), Decision.DISCARD: ("discarded", audit.DELETION)}
#: Letters that a page names before it acts on all that match.
_EXAMPLES = 20

_GONE = (
    "None of these letters is there any more: somebody replayed or discarded them meanwhile, or looks at "
    "them at this moment."
)
_LOOPING = (
    "{:,} of them were left, because they came back from several replays: mend the handler, then choose "
    "them one by one."
)


@admin.register(DeadLetter)
class DeadLetterAdmin(ReadOnlyAdmin):
    """Three pages at one address: all handlers, with ``?queue=`` the letters of one, with ``letter=`` one.

    The model lends its name and its permissions only; letters are asked of the broker, so the
    other views of a model admin, which would read its table, do not exist.
    """

    class Media:
        css: ClassVar = {"all": ["domain_event_broker/letters.css"]}
        js: ClassVar = ["domain_event_broker/select_all.js"]

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
        """Lead from an entry of the admin log to the handler that it names, quoted by Django."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        return HttpResponseRedirect(self._url(LetterSearch(unquote(object_id))))

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
            return self._act(request, LetterSearch.read(request.POST.dict()))
        search = LetterSearch.read(request.GET.dict())
        if request.GET.get("letter"):
            return self._letter(request, search, request.GET["letter"])
        return self._letters(request, search)

    def _handlers(self, request: HttpRequest) -> HttpResponse:
        handlers, problem = discovered_handlers()
        status = _status(handlers)
        context = {
            "title": "Dead letters",
            "broker": _broker(),
            "problem": problem or dead_letters.told(status.problem),
            "rows": [(each, status.queues.get(each.name)) for each in handlers],
        }
        return self._page(request, "handlers.html", None, context)

    def _letters(self, request: HttpRequest, search: LetterSearch) -> HttpResponse:
        page = dead_letters.look(search)
        first = (search.page - 1) * dead_letters.SHOWN
        context = {
            "title": f"Dead letters of {search.queue}",
            "handler": _handler(search.queue),
            "page": page,
            "first": first + 1,
            "last": first + len(page.letters),
            "previous": search.page - 1,
            "next": search.page + 1 if first + len(page.letters) < page.matched else None,
        }
        return self._page(request, "letters.html", search, context)

    def _letter(self, request: HttpRequest, search: LetterSearch, key: str) -> HttpResponse:
        page = dead_letters.find(search, [key])
        letter = page.letters[0] if page.letters else None
        context = {
            "title": "Dead letter",
            "page": page,
            "letter": letter,
            "alike": LetterSearch(search.queue, error=letter.kind) if letter and letter.kind else None,
            "sent_url": Links(request, self.admin_site.name).list(ArchivedEvent, q=letter.event_id)
            if letter and letter.event_id
            else "",
        }
        return self._page(request, "letter.html", search, context)

    def _act(self, request: HttpRequest, search: LetterSearch) -> HttpResponse:
        action, keys = request.POST.get("action", ""), frozenset(request.POST.getlist("letter"))
        needed = {
            "replay": self.has_replay_permission,
            "discard": self.has_discard_permission,
            "download": self.has_view_permission,
        }
        verb, _, everything = action.partition("_")
        if verb not in needed or everything not in ("", "all") or not needed[verb](request):
            raise PermissionDenied
        if search.problem:
            self.message_user(request, f"{search.problem}. Nothing was changed.", messages.ERROR)
            return HttpResponseRedirect(self._url(search))
        if not keys and not everything:
            self.message_user(request, "Choose letters first. Nothing was changed.", messages.WARNING)
            return HttpResponseRedirect(self._url(search))
        if verb == "download":
            return self._download(request, search, None if everything else keys)
        decision = Decision.DISCARD if verb == "discard" else Decision.RETRY
        if everything:
            return self._act_on_all(request, search, decision)
        return self._act_on_chosen(request, search, decision, keys)

    def _act_on_chosen(
        self, request: HttpRequest, search: LetterSearch, decision: Decision, keys: frozenset[str]
    ) -> HttpResponse:
        if decision is Decision.DISCARD and request.POST.get("confirmed") != "yes":
            return self._ask(request, search, decision, dead_letters.find(search, keys), chosen=True)
        done, flag = _DONE[decision]
        outcome = dead_letters.act(search, decision, keys)
        note = f" The broker failed meanwhile: {outcome.problem}" if outcome.problem else ""
        entries = [(search.queue, display.printable(name)) for name in outcome.decided]
        audit.record(request, self.model, entries, flag, f"{done.capitalize()} in the admin.{note}")
        self._tell(request, outcome, done)
        return HttpResponseRedirect(self._url(search))

    def _act_on_all(self, request: HttpRequest, search: LetterSearch, decision: Decision) -> HttpResponse:
        """Ask where it destroys or is for many, then act on all that match; the log has it beforehand."""
        if request.POST.get("confirmed") != "yes":
            page = dead_letters.look(search)
            if decision is Decision.DISCARD or page.matched + page.unseen > dead_letters.MANY:
                return self._ask(request, search, decision, page, chosen=False)
        done, flag = _DONE[decision]
        # Killed in the middle, the log says that somebody began.
        entry = audit.begin(
            request, self.model, search.queue, flag, f"{done.capitalize()} in the admin: {search.words()}. "
        )
        outcome = dead_letters.act_on_all(search, decision)
        problem = f" The broker failed meanwhile: {outcome.problem}" if outcome.problem else ""
        audit.complete(entry, f"{max(outcome.done, len(outcome.decided)):,} letters.{problem}")
        self._tell(request, outcome, done)
        return HttpResponseRedirect(self._url(search))

    def _ask(
        self, request: HttpRequest, search: LetterSearch, decision: Decision, page: Page, chosen: bool
    ) -> HttpResponse:
        """Return the page that asks before letters are deleted, or many replayed."""
        verb = "discard" if decision is Decision.DISCARD else "replay"
        context = {
            "title": f"{verb.capitalize()} dead letters",
            "verb": verb,
            "action": verb if chosen else f"{verb}_all",
            "chosen": chosen,
            "page": page,
            "examples": page.letters if chosen else page.letters[:_EXAMPLES],
            "words": search.words(),
            # What fails after this moment was not on the page, and is left.
            "seen_at": None if chosen else int(time.time() * 1000),
        }
        return self._page(request, "confirm.html", search, context)

    def _tell(self, request: HttpRequest, outcome: Outcome, done: str) -> None:
        """Say how many letters it was."""
        if outcome.problem:
            maybe = f" Up to {len(outcome.decided):,} letters were {done}." if outcome.decided else ""
            self.message_user(request, f"{outcome.problem}{maybe}", messages.ERROR)
            return
        if outcome.done:
            noun = "letter was" if outcome.done == 1 else "letters were"
            self.message_user(request, f"{outcome.done:,} {noun} {done}.", messages.SUCCESS)
        elif not outcome.looping:
            self.message_user(request, _GONE, messages.WARNING)
        if outcome.unfinished:
            self.message_user(request, "There may be more: repeat it for the rest.", messages.WARNING)
        if outcome.looping:
            self.message_user(request, _LOOPING.format(outcome.looping), messages.WARNING)

    def _download(
        self, request: HttpRequest, search: LetterSearch, keys: frozenset[str] | None
    ) -> HttpResponse:
        content, problem = dead_letters.download(search, keys)
        if problem:
            self.message_user(request, problem, messages.ERROR)
            return HttpResponseRedirect(self._url(search))
        count = len(content["letters"])
        text = f"Downloaded in the admin: {content['filter']}. {count:,} letters."
        audit.complete(audit.begin(request, self.model, search.queue, audit.CHANGE, text), "")
        name = re.sub(r"[^A-Za-z0-9._-]", "_", search.queue)
        return HttpResponse(
            json.dumps(content, indent=2),
            content_type="application/json",
            headers={"Content-Disposition": f'attachment; filename="dead-letters-{name}.json"'},
        )

    def _page(
        self, request: HttpRequest, template: str, search: LetterSearch | None, context: dict[str, Any]
    ) -> HttpResponse:
        common = {
            "list_url": self._url(),
            "search": search,
            "queue": search.queue if search else "",
            "back_url": self._url(search) if search else "",
            "may_replay": self.has_replay_permission(request),
            "may_discard": self.has_discard_permission(request),
        }
        return self.page(request, f"deadletter/{template}", {**common, **context})

    def _url(self, search: LetterSearch | None = None) -> str:
        url = reverse(model_url(self.model, "changelist"), current_app=self.admin_site.name)
        return f"{url}?{search.query()}" if search else url


def _handler(queue: str) -> dict[str, str] | None:
    """Return what is known of the handler ``queue``; ``None``: another program declares it."""
    for handler in discovered_handlers()[0]:
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
