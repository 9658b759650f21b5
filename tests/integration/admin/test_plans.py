"""No page of the admin reads a big table to its end: the plans of PostgreSQL for every query of each."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.db import connections
from django.http import HttpResponse
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from domain_event_broker import handlers, subscribe
from domain_event_broker.django import throughput
from domain_event_broker.django.models import (
    ArchivedEvent,
    BrokerOverview,
    HeldEvent,
    InboxEntry,
    OutboxEvent,
)
from tests.djangoapp.databases import database
from tests.integration.admin import stage

#: Rows in each table: enough that reading one to its end is what a careless query would do.
WAITING, HELD, SENT, HANDLED = 120_000, 30_000, 150_000, 60_000
#: Pages of 8 kB that one query may look at; the archive alone has three times as many.
MOST_BUFFERS = 2_000
BIG = {model._meta.db_table for model in (OutboxEvent, HeldEvent, ArchivedEvent, InboxEntry)}

_EVENT = (
    "md5({0} || g::text), g % 64, 'order-' || g % 5000, 'order.n' || g % 50, {1}, {2}, g, 'story-' || g / 3"
)
_BODY = '\'{"routing_key": "k", "data": "\' || repeat(\'x\', 150) || \'"}\''
_COLUMNS = "event_id, bucket, ordering_key, routing_key, body, headers, timestamp, correlation_id"


def fill(alias: str) -> None:
    """Write rows as years of work would leave them, the archive over the last three days."""
    ago = "now() - ({0} - g) * interval '1 second' * 259200 / {0}"
    with connections[alias].cursor() as cursor:
        for table, rows, extra, values in (
            ("outbox", WAITING, "created_at, attempts", "now(), 0"),
            (
                "held",
                HELD,
                "created_at, attempts, state, reason, blocks_key, held_at",
                "now(), 3, (array['parked', 'retrying', 'scheduled'])[g % 3 + 1], 'refused', true, now()",
            ),
            (
                "archive",
                SENT,
                "created_at, published_at, unroutable, outbox_id",
                f"{ago.format(SENT)}, {ago.format(SENT)}, g % 1000 = 0, g",
            ),
        ):
            event = _EVENT.format(f"'{table}'", _BODY, "''")
            cursor.execute(
                f"INSERT INTO domain_event_broker_{table} ({_COLUMNS}, {extra}) "
                f"SELECT {event}, {values} FROM generate_series(1, {rows}) g"
            )
        cursor.execute(
            "INSERT INTO domain_event_broker_inbox (consumer, event_id, handled_at) SELECT "
            f"'billing', md5('archive' || g::text), now() FROM generate_series(1, {HANDLED}) g"
        )
        for table in sorted(BIG):
            cursor.execute(f"VACUUM ANALYZE {table}")


@pytest.fixture(scope="module")
def full(django_db_blocker: Any, postgres_server: Any) -> Iterator[str]:
    """Return the alias of an outbox with much in it."""
    with (
        django_db_blocker.unblock(),
        database("plans_postgresql", postgres_server.create_database("plans")) as alias,
    ):
        fill(alias)
        yield alias


@pytest.fixture
def visit(
    full: str, settings: Any, fresh_name: Callable[[str], str], registry: handlers.Registry
) -> Callable[..., list[dict[str, Any]]]:
    """Return a function that opens a page as a superuser, and returns the plans of its queries."""
    settings.DOMAIN_EVENT_BROKER = {
        "URL": f"memory://{fresh_name('plans')}",
        "OUTBOX": {"DATABASE": full},
    }
    settings.DATABASE_ROUTERS = [stage.OneDatabase(full)]
    subscribe("order.#", name="billing")(lambda event: None)

    def open_page(
        view: str, model: Any, *args: str, form: dict[str, str] | None = None, **query: str
    ) -> list[dict[str, Any]]:
        request = stage.request_of_superuser(form, **query)
        with CaptureQueriesContext(connections[full]) as queries:
            response: HttpResponse = getattr(admin.site._registry[model], view)(request, *args)
            assert response.status_code == 200
        return [plan_of(full, each["sql"]) for each in queries if each["sql"].startswith("SELECT")]

    return open_page


def plan_of(alias: str, sql: str) -> dict[str, Any]:
    with connections[alias].cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql.replace('%', '%%')}", [])
        found = cursor.fetchone()[0]
    plan = (found if isinstance(found, list) else json.loads(found))[0]["Plan"]
    return {**plan, "sql": sql}


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def assert_frugal(plans: list[dict[str, Any]]) -> None:
    assert any(table in plan["sql"] for plan in plans for table in BIG)
    for plan in plans:
        read = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        assert read <= MOST_BUFFERS, (read, plan["sql"], json.dumps(plan)[:3000])
        scans = [each for each in nodes(plan) if each["Node Type"] == "Seq Scan"]
        read_whole = [each["Relation Name"] for each in scans if each["Relation Name"] in BIG]
        assert not read_whole, (read_whole, plan["sql"])


def ago(**span: float) -> str:
    return (timezone.now() - timedelta(**span)).strftime("%Y-%m-%dT%H:%M:%S")


def test_the_measure_finds_a_careless_query(full: str, visit: Any) -> None:
    with pytest.raises(AssertionError):
        assert_frugal([plan_of(full, "SELECT count(*) FROM domain_event_broker_archive WHERE bucket = 7")])


def test_the_overview(visit: Callable[..., list[dict[str, Any]]]) -> None:
    assert_frugal(visit("changelist_view", BrokerOverview))


def test_the_overview_of_an_archive_that_is_estimated(
    visit: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "COUNTED", 500)
    assert_frugal(visit("changelist_view", BrokerOverview))


@pytest.mark.parametrize("model", [OutboxEvent, HeldEvent, ArchivedEvent])
class TestEveryList:
    """Lists and the pages of events, in all three homes."""

    @pytest.mark.parametrize("page", ["1", "2", "100"])
    def test_any_page(self, visit: Any, model: Any, page: str) -> None:
        assert_frugal(visit("changelist_view", model, p=page))

    @pytest.mark.parametrize("term", ["order.n7", "order.", "order-77", "story-49000", "story-7", "nowhere"])
    def test_a_search(self, visit: Any, model: Any, term: str) -> None:
        assert_frugal(visit("changelist_view", model, q=term))

    @pytest.mark.parametrize("which", ["-pk", "pk"])
    def test_a_search_for_the_id_of_the_newest_and_of_the_oldest(
        self, visit: Any, full: str, model: Any, which: str
    ) -> None:
        event = model.objects.using(full).order_by(which)[0]
        assert_frugal(visit("changelist_view", model, q=event.event_id))

    @pytest.mark.parametrize("which", ["-pk", "pk"])
    def test_the_page_of_an_event(self, visit: Any, full: str, model: Any, which: str) -> None:
        event = model.objects.using(full).order_by(which)[0]
        assert_frugal(visit("change_view", model, str(event.pk)))

    def test_a_span_of_time(self, visit: Any, model: Any) -> None:
        for span in (
            {"since": ago(hours=1)},
            {"since": ago(days=2.5)},
            {"until": ago(hours=12)},
            {"until": ago(days=2.9)},
            {"since": ago(days=2), "until": ago(days=1.9)},
            {"since": ago(days=1), "until": ago(hours=1), "q": "order.n7"},
            {"until": ago(days=2), "q": "order-77"},
            {"since": ago(minutes=-5), "q": "order-77"},
        ):
            assert_frugal(visit("changelist_view", model, **span))


@pytest.mark.parametrize("state", HeldEvent.State.values)
def test_a_state_of_held_events(visit: Callable[..., list[dict[str, Any]]], state: str) -> None:
    assert_frugal(visit("changelist_view", HeldEvent, state__exact=state))


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_events_that_nobody_subscribed_to(visit: Callable[..., list[dict[str, Any]]], answer: str) -> None:
    assert_frugal(visit("changelist_view", ArchivedEvent, unroutable=answer))
    assert_frugal(visit("changelist_view", ArchivedEvent, unroutable=answer, until=ago(days=2)))


def test_the_sent_events_of_today(visit: Callable[..., list[dict[str, Any]]]) -> None:
    since = timezone.now().replace(hour=0, minute=0, second=0, microsecond=0).isoformat()
    assert_frugal(visit("changelist_view", ArchivedEvent, published_at__gte=since))


@pytest.mark.parametrize(
    ("model", "action", "query"),
    [
        (ArchivedEvent, "publish_again", {}),
        (ArchivedEvent, "publish_again", {"since": ago(days=2), "until": ago(days=1)}),
        (ArchivedEvent, "publish_again", {"until": ago(days=2), "q": "order.n7"}),
        (HeldEvent, "discard", {"state__exact": "parked"}),
    ],
)
def test_the_question_before_an_action_on_all_that_match(
    visit: Callable[..., list[dict[str, Any]]], model: Any, action: str, query: dict[str, str]
) -> None:
    form = {"action": action, "select_across": "1", "_selected_action": "1", "index": "0"}
    assert_frugal(visit("changelist_view", model, form=form, **query))
