"""The overview: what is wrong, what waits, what goes through, who works on it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.utils import timezone, translation

from domain_event_broker import DomainEvent, handlers, subscribe
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, RelayHeartbeat, RelayLease
from tests.integration.admin import stage

pytestmark = pytest.mark.django_db

PAGE = "/admin/domain_event_broker/brokeroverview/"


def relay(name: str, seen_ago: float, buckets: range) -> None:
    now = time.time()
    for bucket in buckets:
        lease = {"owner": name, "epoch": 1, "lease_until": now + 15}
        RelayLease.objects.update_or_create(bucket=bucket, defaults=lease)
    RelayHeartbeat.objects.create(
        relay=name, host=name, pid=41, started_at=now - 7200, seen_at=now - seen_ago
    )


def texts(response: Any) -> list[str]:
    """Return what the alerts say."""
    return [alert.text for alert, _ in response.context["alerts"]]


def test_shows_nothing_wrong_where_nothing_is(
    admin: Client, broker: str, registry: handlers.Registry
) -> None:
    relay("web-1", 1, range(64))
    page = admin.get(PAGE).content.decode()
    assert "All is well" in page
    assert "web-1:41" in page
    assert "No handlers are known" in page


@pytest.mark.django_db(transaction=True)
def test_shows_the_queues_of_all_handlers_with_a_way_to_their_dead_letters(
    admin: Client, broker: str, registry: handlers.Registry, fresh_name: Callable[[str], str]
) -> None:
    relay("web-1", 1, range(64))
    name, other = fresh_name("billing"), fresh_name("shipping")
    subscribe("order.placed", name=name)(lambda event: None)
    subscribe("order.shipped", name=other)(lambda event: None)
    stage.bury(name, *[DomainEvent("order.placed") for _ in range(3)])
    response = admin.get(PAGE)
    assert f"3 dead letters in {name}." in texts(response)
    assert f"{other} has no queue yet: events published now will not reach it." in texts(response)
    page = response.content.decode()
    assert page.count(f"/admin/domain_event_broker/deadletter/?queue={name}") == 3
    assert "no queue yet</td>" in page


def test_shows_what_waits_and_leads_to_it(admin: Client) -> None:
    stage.waiting()
    for state in HeldEvent.State:
        stage.held(state=state)
    response = admin.get(PAGE)
    assert {figure.label: figure.value for figure in response.context["figures"]} == {
        "lag: age of the oldest waiting": "3 minutes",
        "waiting": "1",
        "scheduled": "1",
        "retrying": "1",
        "parked": "1",
    }
    page = response.content.decode()
    assert "state__exact=parked" in page
    assert texts(response)[0].startswith("No relay is running")


def test_the_worst_is_told_first(admin: Client, registry: handlers.Registry) -> None:
    stage.waiting()
    stage.held(state=HeldEvent.State.RETRYING)
    levels = [alert.level.value for alert, _ in admin.get(PAGE).context["alerts"]]
    assert levels == sorted(levels, key=["critical", "warning", "note"].index)
    assert {"critical", "warning", "note"} == set(levels)


# --- plots ------------------------------------------------------------------------------


def test_plots_what_was_sent(admin: Client) -> None:
    for _ in range(3):
        stage.sent()
    ArchivedEvent.objects.update(published_at=timezone.now())  # in one minute, whenever it ends
    response = admin.get(PAGE)
    hour, day = response.context["plots"]
    assert (hour["summary"], day["summary"]) == (
        "3 sent, at most 3 in one minute",
        "3 sent, at most 3 in one half hour",
    )
    assert [count for _, count in hour["rows"] if count != "0"] == ["3"]
    drawing = ElementTree.fromstring(str(hour["svg"]))
    titles = [each.text or "" for each in drawing.iter() if each.tag.endswith("title")]
    assert titles[0] == "Events sent, last hour by minute"
    assert len(titles) == 61
    assert sum(each.endswith(": 3") for each in titles) == 1


def test_plots_are_drawn_in_every_language_alike(admin: Client, settings: Any) -> None:
    settings.USE_THOUSAND_SEPARATOR = True
    stage.sent()
    with translation.override("de"):
        plot = str(admin.get(PAGE, headers={"Accept-Language": "de"}).context["plots"][0]["svg"])
    for each in ElementTree.fromstring(plot).iter():
        for name in ("x", "y", "width", "height"):
            float(each.get(name, "0"))


# --- what may be in the way -------------------------------------------------------------


def test_is_the_first_of_the_app_in_the_index(admin: Client) -> None:
    apps = admin.get("/admin/").context["app_list"]
    (own,) = [each for each in apps if each["app_label"] == "domain_event_broker"]
    assert own["models"][0]["admin_url"] == PAGE
    assert own["models"][0]["name"] == "At a glance"


def test_is_for_those_who_have_its_permission(client_with: Callable[..., Client]) -> None:
    assert client_with("view_relayheartbeat").get(PAGE).status_code == 403
    assert client_with("view_heldevent", "view_brokeroverview").get(PAGE).status_code == 200


def test_leads_nobody_to_what_they_may_not_see(client_with: Callable[..., Client]) -> None:
    stage.held()
    page = client_with("view_brokeroverview").get(PAGE).content.decode()
    assert "1 event is parked" in page
    assert "/heldevent/" not in page


def test_shows_markup_in_names_as_text(
    admin: Client, broker: str, registry: handlers.Registry, settings: Any
) -> None:
    relay(stage.SCRIPT, 90, range(1))
    relay("alive", 1, range(1, 64))
    subscribe("order.placed", name=stage.SCRIPT)(lambda event: None)
    page = admin.get(PAGE).content.decode()
    assert stage.SCRIPT not in page
    assert page.count("&lt;script&gt;") >= 3


def test_a_broker_that_is_away_is_an_alert(admin: Client, settings: Any, registry: handlers.Registry) -> None:
    settings.DOMAIN_EVENT_BROKER = "amqp://shop:sesame@127.0.0.1:9/%2F"
    subscribe("order.placed", name="billing")(lambda event: None)
    response = admin.get(PAGE)
    page = response.content.decode()
    assert response.status_code == 200
    assert any(each.startswith("The broker cannot be asked") for each in texts(response))
    assert "unknown</td>" in page
    assert "sesame" not in page
    assert "socket_timeout" not in page


@pytest.mark.parametrize(
    ("setting", "alert"),
    [
        (None, "The broker is switched off: DOMAIN_EVENT_BROKER is None."),
        ({"URL": "memory:", "NONSENSE": 1}, "NONSENSE"),
        ("gopher://x", "gopher"),
        ({"URL": "memory:", "OUTBOX": {"DATABASE": "nowhere"}}, "nowhere"),
    ],
)
def test_settings_that_are_wrong_are_an_alert(
    admin: Client, settings: Any, registry: handlers.Registry, setting: Any, alert: str
) -> None:
    settings.DOMAIN_EVENT_BROKER = setting
    response = admin.get(PAGE)
    assert any(alert in each for each in texts(response)), texts(response)


def test_handlers_that_cannot_be_loaded_are_an_alert(admin: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("cannot import name 'charge' from 'payments'")

    monkeypatch.setattr("domain_event_broker.django.discovery.autodiscover_modules", broken)
    response = admin.get(PAGE)
    assert texts(response)[0] == (
        "The handlers of this project cannot be loaded: "
        "ImportError: cannot import name 'charge' from 'payments'."
    )


PAGES = ("brokeroverview", "outboxevent", "heldevent", "archivedevent", "relayheartbeat")


@pytest.mark.parametrize("model", PAGES)
def test_a_database_without_tables_is_a_page_in_words(superuser: User, admin: Client, model: str) -> None:
    with connection.cursor() as cursor:
        for table in ("outbox", "held", "archive", "relay", "lease"):
            cursor.execute(f"ALTER TABLE domain_event_broker_{table} RENAME TO domain_event_broker_{table}_")
    response = admin.get(f"/admin/domain_event_broker/{model}/")
    assert response.status_code == (200 if model == "brokeroverview" else 503)
    assert "manage.py migrate --database default" in response.content.decode()


@pytest.mark.parametrize("model", PAGES[1:4])
def test_a_table_of_an_older_release_is_a_page_in_words(admin: Client, model: str) -> None:
    event = {"outboxevent": stage.waiting, "heldevent": stage.held, "archivedevent": stage.sent}[model]()
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {event._meta.db_table} RENAME COLUMN correlation_id TO story")
    for path in ("", f"{event.pk}/change/"):
        response = admin.get(f"/admin/domain_event_broker/{model}/{path}")
        assert response.status_code == 503
        assert "manage.py migrate" in response.content.decode()


@pytest.mark.parametrize("model", PAGES)
def test_a_wrong_database_is_a_page_in_words(admin: Client, settings: Any, model: str) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "OUTBOX": {"DATABASE": "nowhere"}}
    response = admin.get(f"/admin/domain_event_broker/{model}/")
    assert response.status_code == (200 if model == "brokeroverview" else 503)
    assert "nowhere" in response.content.decode()
