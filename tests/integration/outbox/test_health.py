"""What probes and metrics ask of an outbox, on each kind of database."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connections
from django.test import RequestFactory
from django.utils import timezone

from domain_event_broker.django.figures import lag_seconds, outbox_figures
from domain_event_broker.django.health import health
from domain_event_broker.django.models import OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from tests.djangoapp.databases import add_alias, database, remove_alias, sqlite_file
from tests.integration.outbox.content import publish_all, refuse

MakeRelay = Callable[..., DjangoRelayOutbox]


def age(alias: str, seconds: float) -> None:
    """Let the events that wait have been stored so long ago."""
    past = timezone.now() - timedelta(seconds=seconds)
    OutboxEvent.objects.using(alias).update(created_at=past)


def answer(settings: Any, alias: str, query: str = "", **monitoring: float) -> tuple[int, str]:
    """Return status and body of the view for the outbox in a database."""
    settings.DOMAIN_EVENT_BROKER = {
        "URL": "memory:",
        "OUTBOX": {"DATABASE": alias},
        "MONITORING": {name.upper(): value for name, value in monitoring.items()},
    }
    response = health(RequestFactory().get(f"/health/{query}"))
    return response.status_code, response.content.decode()


def test_an_empty_outbox_has_no_lag(alias: str, settings: Any) -> None:
    assert lag_seconds(alias) == 0.0
    assert answer(settings, alias) == (200, '{"status": "ok", "reasons": [], "warnings": []}')


def test_the_age_of_the_oldest_event_is_the_lag(alias: str, settings: Any) -> None:
    publish_all(alias, range(3))
    age(alias, 120)
    figures = outbox_figures(alias)
    assert (figures.pending, figures.held) == (3, {"scheduled": 0, "retrying": 0, "parked": 0})
    assert 119 < figures.lag_seconds < 180
    assert 119 < figures.oldest_seconds < 180
    assert answer(settings, alias, "?lag=1")[0] == 200


def test_a_lag_is_a_warning_for_probes_of_pods_and_a_reason_for_who_asks(alias: str, settings: Any) -> None:
    publish_all(alias, range(3))
    age(alias, 120)
    status, body = answer(settings, alias, lag_seconds=100)
    assert (status, json.loads(body)["status"], json.loads(body)["reasons"]) == (200, "ok", [])
    assert "the oldest event has waited 12" in json.loads(body)["warnings"][0]
    status, body = answer(settings, alias, "?lag=1", lag_seconds=100)
    assert (status, json.loads(body)["status"], json.loads(body)["warnings"]) == (503, "failing", [])
    assert "the oldest event has waited 12" in json.loads(body)["reasons"][0]


def test_events_behind_a_parked_one_are_no_lag(alias: str, make_relay: MakeRelay, settings: Any) -> None:
    publish_all(alias, range(5), key="k")
    relay = make_relay(alias)
    lease = relay.renew()
    refuse(relay, lease, relay.fetch(lease, 1), retry_in=None)
    relay.leave()
    age(alias, 120)
    figures = outbox_figures(alias)
    assert (figures.pending, figures.held["parked"], figures.lag_seconds) == (4, 1, 0.0)
    assert figures.oldest_seconds > 119
    publish_all(alias, range(1), key="other")
    assert 0.0 <= lag_seconds(alias) < 60
    assert answer(settings, alias, "?lag=1", lag_seconds=100)[0] == 200


@pytest.mark.parametrize(
    ("vendor", "switch"),
    [("postgresql", "SET default_transaction_read_only = {}"), ("sqlite", "PRAGMA query_only = {}")],
)
def test_a_database_that_takes_nothing_is_told(
    vendor: str, switch: str, request: pytest.FixtureRequest, settings: Any
) -> None:
    alias = request.getfixturevalue(vendor)
    assert answer(settings, alias)[0] == 200
    with connections[alias].cursor() as cursor:
        cursor.execute(switch.format("on"))
        try:
            status, body = answer(settings, alias)
        finally:
            cursor.execute(switch.format("off"))
    assert status == 503
    assert "the database of the outbox is read-only" in body


def test_a_database_without_tables_is_told_without_a_traceback(
    tmp_path: Any, unblocked: None, settings: Any
) -> None:
    with database("bare_health", sqlite_file(tmp_path, "bare"), migrate=False) as alias:
        status, body = answer(settings, alias)
    assert status == 503
    assert "run 'manage.py migrate'" in body


def test_a_database_that_is_away_is_told_without_its_address(unblocked: None, settings: Any) -> None:
    add_alias("away_health", "postgresql://secretuser@127.0.0.1:1/none")
    try:
        status, body = answer(settings, "away_health")
    finally:
        remove_alias("away_health")
    assert status == 503
    assert "the database of the outbox cannot be reached" in body
    assert not [word for word in ("secretuser", "127.0.0.1", "none") if word in body]


def test_a_wrong_setting_is_told_without_its_value(settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": "secret-word"}
    response = health(RequestFactory().get("/health/"))
    assert response.status_code == 503
    assert "manage.py check" in response.content.decode()
    assert "secret-word" not in response.content.decode()


def test_where_the_broker_is_switched_off_all_is_well(settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = None
    assert health(RequestFactory().get("/health/")).status_code == 200


@pytest.mark.parametrize("method", ["post", "put", "delete"])
def test_a_probe_changes_nothing(method: str) -> None:
    assert health(getattr(RequestFactory(), method)("/health/")).status_code == 405
