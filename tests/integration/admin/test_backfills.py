"""Back-fills in the admin, on each broker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone

from domain_event_broker import config, subscribe
from domain_event_broker.django import backfill
from domain_event_broker.django.admin import backfills
from domain_event_broker.django.backfill_models import Backfill
from domain_event_broker.django.models import InboxEntry
from domain_event_broker.handlers import Registry
from domain_event_broker.ports import Subscription
from domain_event_broker.transports import open_transport
from tests.integration.admin import stage

pytestmark = pytest.mark.django_db(transaction=True)

LIST = "/admin/domain_event_broker/backfill/"
NEW = f"{LIST}new/"


@pytest.fixture
def audit(broker: str, registry: Registry, fresh_name: Callable[[str], str]) -> str:
    """A handler with a queue, on each broker; return its name."""
    return declare(fresh_name("shipping-audit"))


@pytest.fixture
def in_memory(settings: Any, registry: Registry, fresh_name: Callable[[str], str]) -> str:
    """The same on one broker."""
    settings.DOMAIN_EVENT_BROKER = f"memory://{fresh_name('admin')}"
    return declare(fresh_name("shipping-audit"))


def declare(name: str) -> str:
    subscribe("order.*", name=name)(lambda event: None)
    settings = config.current()
    assert settings is not None
    transport = open_transport(settings)
    try:
        transport.declare(Subscription(name, ("order.*",)))
    finally:
        transport.close()
    return name


def said(response: Any) -> str:
    return " ".join(str(message) for message in response.context["messages"])


def test_a_new_handler_gets_what_happened_before_it(admin: Client, superuser: User, audit: str) -> None:
    for _ in range(3):
        stage.sent("order.placed")
    stage.sent("payment.charged")
    assert audit in admin.get(NEW).content.decode()
    page = " ".join(admin.get(NEW, {"handler": audit}).content.decode().split())
    assert f"{audit} would get <strong>3</strong> sent events (order.*)" in page
    assert stage.depths(audit) == (0, 0)
    assert not Backfill.objects.exists()
    response = admin.post(NEW, {"handler": audit}, follow=True)
    assert "Done: 3 events were sent." in said(response)
    assert stage.depths(audit) == (3, 0)
    run = Backfill.objects.get()
    assert (run.state, run.begun_by) == ("done", "root in the admin")
    entries = LogEntry.objects.order_by("pk")
    assert [entry.change_message for entry in entries] == [
        "Begun in the admin: order.*. ",
        "Events sent in the admin: 3.",
    ]
    assert {(entry.user, entry.object_repr) for entry in entries} == {(superuser, f"{audit} {run.pk}")}
    page = admin.get(LIST).content.decode()
    assert "3 of 3" in page
    assert admin.get(entries[0].get_admin_url()).status_code == 200


def test_one_that_takes_longer_than_a_request_goes_on_with_the_next(
    admin: Client, in_memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.sent("order.placed")
    monkeypatch.setattr(backfills, "SEND_SECONDS", -1.0)
    response = admin.post(NEW, {"handler": in_memory}, follow=True)
    assert "0 events were sent; there are more." in said(response)
    assert "manage.py backfill" in response.content.decode()
    again = admin.get(NEW, {"handler": in_memory}).content.decode()
    assert "is unfinished" in again
    assert admin.post(NEW, {"handler": in_memory}).status_code == 200
    assert Backfill.objects.count() == 1
    monkeypatch.setattr(backfills, "SEND_SECONDS", 60.0)
    page = f"{LIST}{Backfill.objects.get().pk}/change/"
    assert "Done: 1 event was sent." in said(admin.post(page, {"action": "go_on"}, follow=True))
    assert stage.depths(in_memory) == (1, 0)


def test_one_can_be_given_up(admin: Client, in_memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.sent("order.placed")
    monkeypatch.setattr(backfills, "SEND_SECONDS", -1.0)
    admin.post(NEW, {"handler": in_memory})
    page = f"{LIST}{Backfill.objects.get().pk}/change/"
    assert "Given up." in said(admin.post(page, {"action": "give_up"}, follow=True))
    assert Backfill.objects.get().state == "given up"
    assert stage.depths(in_memory) == (0, 0)


def test_what_the_inbox_forgets_is_forgotten_before_it_is_sent_also_in_atomic_requests(
    admin: Client, in_memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = stage.sent("order.placed")
    InboxEntry.objects.create(consumer=in_memory, event_id=event.event_id, handled_at=timezone.now())
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    seen: list[tuple[bool, bool]] = []

    def watched(*arguments: Any, **options: Any) -> bool:
        seen.append((connection.in_atomic_block, InboxEntry.objects.exists()))
        return go_on(*arguments, **options)

    go_on = backfill.go_on
    monkeypatch.setattr(backfill, "go_on", watched)
    page = admin.get(NEW, {"handler": in_memory, "force": "on"}).content.decode()
    assert "<strong>anew</strong>" in page
    admin.post(NEW, {"handler": in_memory, "force": "on"})
    assert seen == [(False, True)]
    assert not InboxEntry.objects.exists()
    assert Backfill.objects.get().force


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"handler": "nobody"}, "no handler of this project"),
        ({"handler": "nobody", "keys": "order.*"}, "It has no queue"),
        ({"handler": "amq.x", "keys": "order.*"}, "reserved for the broker"),
        ({"handler": "HANDLER", "keys": "order*"}, "a wildcard must stand alone"),
        ({"handler": "HANDLER", "since": "yesterday"}, "Enter a valid date/time."),
        ({"handler": "HANDLER", "since": "0001-01-01T00:00"}, "No event was sent in that year."),
    ],
)
def test_what_is_wrong_is_told_beside_the_field(
    admin: Client, in_memory: str, values: dict[str, str], told: str
) -> None:
    values = {name: value.replace("HANDLER", in_memory) for name, value in values.items()}
    for response in (admin.get(NEW, values), admin.post(NEW, values)):
        assert response.status_code == 200
        assert told in response.content.decode()
    assert not Backfill.objects.exists()


def test_a_second_click_begins_no_second_one(
    admin: Client, in_memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.sent("order.placed")
    chosen = backfill.Chosen(("order.*",))

    def clicked_meanwhile(*arguments: Any) -> backfill.Count:
        backfill.begin("default", in_memory, chosen, force=True, expected=1, by="the first click")
        return backfill.Count(1)

    monkeypatch.setattr(backfill, "count", clicked_meanwhile)
    response = admin.post(NEW, {"handler": in_memory, "force": "on"}, follow=True)
    assert "is unfinished: go on with that one" in said(response)
    assert Backfill.objects.get().begun_by == "the first click"


def test_a_module_of_handlers_that_cannot_be_imported_is_told(
    admin: Client, in_memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*modules: str) -> None:
        raise ImportError("no such handler")

    monkeypatch.setattr("domain_event_broker.django.discovery.autodiscover_modules", broken)
    assert "cannot be loaded: ImportError: no such handler" in admin.get(NEW).content.decode()
    page = admin.get(NEW, {"handler": in_memory}).content.decode()
    assert "say which events it needs" in page


def test_one_that_could_not_be_counted_to_the_end_can_be_begun(
    admin: Client, in_memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "count", lambda *arguments: backfill.Count(0, complete=False))
    page = admin.get(NEW, {"handler": in_memory}).content.decode()
    assert "0 or more" in page
    assert "Put them into its queue" in page


def test_a_broker_that_is_away_is_told(admin: Client, in_memory: str, settings: Any) -> None:
    stage.sent("order.placed")
    settings.DOMAIN_EVENT_BROKER = "amqp://shop:sesame@127.0.0.1:9/%2F"
    page = admin.get(NEW, {"handler": in_memory}).content.decode()
    assert "127.0.0.1" in page
    assert "sesame" not in page
    run = backfill.begin(
        "default", in_memory, backfill.Chosen(("order.*",)), force=False, expected=1, by="somebody"
    )
    response = admin.post(f"{LIST}{run.pk}/change/", {"action": "go_on"}, follow=True)
    assert "0 events were sent before" in said(response)
    assert "sesame" not in said(response)


def test_who_may_look_may_not_send(client_with: Callable[..., Client], in_memory: str) -> None:
    stage.sent("order.placed")
    run = backfill.begin(
        "default", in_memory, backfill.Chosen(("order.*",)), force=False, expected=1, by="somebody"
    )
    page = f"{LIST}{run.pk}/change/"
    nobody = client_with()
    assert {nobody.get(each).status_code for each in (LIST, NEW, page)} == {403}
    viewer = client_with("view_backfill")
    assert viewer.get(LIST).status_code == viewer.get(page).status_code == 200
    assert "Go on" not in viewer.get(page).content.decode()
    assert viewer.get(NEW).status_code == viewer.post(NEW, {"handler": in_memory}).status_code == 403
    assert viewer.post(page, {"action": "go_on"}).status_code == 403
    assert stage.depths(in_memory) == (0, 0)
    runner = client_with("view_backfill", "run_backfill")
    runner.post(page, {"action": "go_on"})
    assert stage.depths(in_memory) == (1, 0)


def test_markup_is_shown_as_text(admin: Client, in_memory: str) -> None:
    run = backfill.begin(
        "default",
        stage.SCRIPT,
        backfill.Chosen((stage.SCRIPT.replace(" ", "_"),), ordering_key=stage.SCRIPT),
        force=False,
        expected=1,
        by=stage.SCRIPT,
    )
    for page in (LIST, f"{LIST}{run.pk}/change/"):
        assert "<script>document" not in admin.get(page).content.decode()
    assert "<script>document" not in admin.get(NEW, {"handler": stage.SCRIPT}).content.decode()


def test_a_back_fill_that_does_not_exist_is_not_found(admin: Client, in_memory: str) -> None:
    assert admin.get(f"{LIST}7/change/").status_code == 404
