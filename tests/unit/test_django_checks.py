"""System checks of the databases, and of what only production needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from django.core import checks as framework
from django.db import connections
from django.db.migrations.recorder import MigrationRecorder

from domain_event_broker.django import checks
from domain_event_broker.handlers import Handler, registry
from domain_event_broker.telemetry import tracing
from tests.djangoapp.databases import database, sqlite_file
from tests.harness.pgbouncer import PrivatePgBouncer
from tests.harness.postgres import PrivatePostgreSQL


class ShopElsewhere:
    """Writes the rows of the shop to another database."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "shop" if model._meta.app_label == "shop" else None


class AllElsewhere:
    """Writes everything to another database."""

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "shop"


@pytest.fixture
def unblocked(django_db_blocker: Any) -> Iterator[None]:
    """Databases that a test makes for itself are open to it."""
    with django_db_blocker.unblock():
        yield


def ids(messages: list[framework.CheckMessage]) -> list[str]:
    return [str(message.id).rpartition(".")[2] for message in messages]


@pytest.fixture
def shop_database(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(settings.DATABASES, "shop", settings.DATABASES["default"])


def test_rows_that_a_router_writes_elsewhere_are_a_warning(settings: Any, shop_database: None) -> None:
    settings.DATABASE_ROUTERS = [f"{__name__}.ShopElsewhere"]
    (message,) = checks.check_databases()
    assert message.id == "domain_event_broker.W005"
    assert "shop." in message.msg
    assert "using='shop'" in str(message.hint)


def test_an_outbox_that_a_router_puts_beside_the_rows_is_fine(settings: Any, shop_database: None) -> None:
    settings.DATABASE_ROUTERS = [f"{__name__}.AllElsewhere"]
    assert checks.check_databases() == []
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "OUTBOX": {"DATABASE": "default"}}
    assert ids(checks.check_databases()) == ["W005"]


@pytest.mark.parametrize(
    ("engine", "port", "expected"),
    [
        ("django.db.backends.postgresql", 6432, ["W002"]),
        ("django.db.backends.postgresql", "5432,6432", ["W002"]),
        ("django.db.backends.postgresql", "5432", []),
        ("django.db.backends.postgresql", "", []),
        ("django.db.backends.mysql", 6432, []),
    ],
)
def test_the_port_of_a_pooler_is_a_warning(
    engine: str, port: Any, expected: list[str], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings.DATABASES, "default", {"ENGINE": engine, "PORT": port})
    assert ids(checks.check_databases()) == expected


@pytest.mark.usefixtures("unblocked")
@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_a_pooler_is_found_by_asking_the_database(
    mode: str, postgres_server: PrivatePostgreSQL, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"checked_{mode}"
    url = postgres_server.create_database(name)
    with PrivatePgBouncer(postgres_server, mode) as pooler:
        for target, expected in ((url, []), (pooler.url(name), ["W002"])):
            with database("events", target) as alias:
                monkeypatch.setitem(settings.DATABASES, alias, connections.settings[alias])
                settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "OUTBOX": {"DATABASE": alias}}
                assert ids(checks.check_tables(databases=[alias])) == expected
                settings.DOMAIN_EVENT_BROKER["OUTBOX"]["LISTEN"] = False
                assert checks.check_tables(databases=[alias]) == []


@pytest.mark.usefixtures("unblocked")
def test_tables_of_an_older_release_are_a_warning(
    settings: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    with database("events", sqlite_file(tmp_path, "events")) as alias:
        monkeypatch.setitem(settings.DATABASES, alias, connections.settings[alias])
        settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "OUTBOX": {"DATABASE": alias}}
        assert checks.check_tables(databases=[alias]) == []
        MigrationRecorder(connections[alias]).record_unapplied("domain_event_broker", "0003_correlation")
        (message,) = checks.check_tables(databases=[alias])
    assert message.id == "domain_event_broker.W006"
    assert message.msg.endswith("not applied: 0003_correlation")


def test_a_broker_in_memory_is_a_warning_in_production_alone(settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = "memory:"
    assert "W008" in ids(checks.check_production())
    assert "W008" not in ids(framework.run_checks(tags=[checks.TAG]))
    for value in ("database:", "amqp://u:p@broker/", None, {"URL": "no scheme"}):
        settings.DOMAIN_EVENT_BROKER = value
        assert "W008" not in ids(checks.check_production())


def test_a_project_whose_events_nobody_handles_is_warned_of_in_production(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_handlers", {})
    settings.DOMAIN_EVENT_BROKER = "database:"
    (message,) = checks.check_production()
    assert message.id == "domain_event_broker.W007"
    assert "subscribers.py" in str(message.hint)
    settings.DOMAIN_EVENT_BROKER = "amqp://u:p@broker/"
    assert checks.check_production() == []
    settings.DOMAIN_EVENT_BROKER = "database:"
    registry.add(Handler(lambda event: None, "somebody", ("a.b",)))
    assert checks.check_production() == []


def test_tracing_without_opentelemetry_is_an_error(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "TRACING": True}
    assert checks.check_settings() == []
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    (message,) = checks.check_settings()
    assert message.id == "domain_event_broker.E007"
    assert tracing.REQUIREMENT in str(message.hint)
