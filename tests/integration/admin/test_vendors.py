"""Every page of the admin on PostgreSQL and MariaDB: other tests of the admin run on SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.utils import timezone

from domain_event_broker import handlers, subscribe
from domain_event_broker.django import throughput
from domain_event_broker.django.models import (
    ArchivedEvent,
    BrokerOverview,
    HeldEvent,
    InboxEntry,
    OutboxEvent,
    RelayHeartbeat,
)
from tests.djangoapp.databases import database
from tests.integration.admin import stage


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def alias(request: pytest.FixtureRequest, django_db_blocker: Any) -> Iterator[str]:
    """Return the alias of a database of each kind, with a story in it."""
    server = request.getfixturevalue({"postgresql": "postgres_server"}.get(request.param, "mariadb_server"))
    url = server.create_database("vendors")
    with django_db_blocker.unblock(), database(f"vendors_{request.param}", url) as alias:
        first = stage.sent("order.placed", story="s-1", key="order-7", using=alias)
        for store in (stage.sent, stage.held, stage.waiting):
            store("order.paid", story="s-1", cause=first.event_id, key="order-7", using=alias)
        # Two that a minute may end between would be in two slices of the plot.
        ArchivedEvent.objects.using(alias).update(published_at=timezone.now())
        entry = {"consumer": "billing", "event_id": first.event_id, "handled_at": timezone.now()}
        InboxEntry.objects.using(alias).create(**entry)
        yield alias


@pytest.fixture
def open_page(
    alias: str, settings: Any, fresh_name: Callable[[str], str], registry: handlers.Registry
) -> Callable[..., str]:
    """Return a function that opens a page, and returns what it says."""
    settings.DOMAIN_EVENT_BROKER = {"URL": f"memory://{fresh_name('x')}", "OUTBOX": {"DATABASE": alias}}
    settings.DATABASE_ROUTERS = [stage.OneDatabase(alias)]
    subscribe("order.*", name="billing")(lambda event: None)

    def get(view: str, model: Any, *args: str, **query: str) -> str:
        response: Any = getattr(admin.site._registry[model], view)(stage.request_of_superuser(**query), *args)
        text: str = (response if response.is_rendered else response.render()).content.decode()
        assert response.status_code == 200, text
        return text

    return get


def test_the_overview_counts_and_estimates(
    open_page: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ">2 sent, at most 2 in one minute<" in open_page("changelist_view", BrokerOverview)
    monkeypatch.setattr(throughput, "COUNTED", 1)
    assert ">about 2 sent, at most about 2 in one minute<" in open_page("changelist_view", BrokerOverview)


@pytest.mark.parametrize("model", [OutboxEvent, HeldEvent, ArchivedEvent])
def test_lists_are_searched_and_events_looked_at(
    open_page: Callable[..., str], alias: str, model: Any
) -> None:
    event = model.objects.using(alias).order_by("-pk")[0]
    now = timezone.now()
    span = {
        "since": (now - timedelta(days=1)).strftime("%Y-%m-%dT%H:%M"),
        "until": (now + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M"),
    }
    for query in ({}, span, *({"q": term} for term in ("s-1", "order.p", "order-7", event.event_id))):
        assert event.event_id in open_page("changelist_view", model, **query)
        assert event.event_id in open_page("changelist_view", model, **{**span, **query})
    page = open_page("change_view", model, str(event.pk))
    assert page.count("order.placed") == 1
    assert "Story of the event" in page


def test_who_handled_an_event_is_told(open_page: Callable[..., str], alias: str) -> None:
    first = ArchivedEvent.objects.using(alias).order_by("pk")[0]
    assert "Handled by billing." in open_page("change_view", ArchivedEvent, str(first.pk))


def test_the_relays_and_what_nobody_subscribed_to(open_page: Callable[..., str]) -> None:
    assert "No relay runs" in open_page("changelist_view", RelayHeartbeat)
    assert "order.paid" in open_page("changelist_view", ArchivedEvent, unroutable="no")
