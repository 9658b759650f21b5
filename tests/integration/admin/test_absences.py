"""What the pages say when the database of the outbox is not migrated or away, inside a transaction too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.contrib import admin
from django.db import connections, transaction
from django.http import HttpResponse

from domain_event_broker import handlers
from domain_event_broker.django.models import (
    ArchivedEvent,
    BrokerOverview,
    HeldEvent,
    OutboxEvent,
    RelayHeartbeat,
)
from tests.djangoapp.databases import database
from tests.harness.ports import lease_port
from tests.integration.admin import stage

LISTS = (OutboxEvent, HeldEvent, ArchivedEvent, RelayHeartbeat)


@pytest.fixture(scope="module")
def bare(django_db_blocker: Any, postgres_server: Any) -> Iterator[str]:
    """Return the alias of a database without any table."""
    url = postgres_server.create_database("bare")
    with django_db_blocker.unblock(), database("bare_postgresql", url, migrate=False) as alias:
        yield alias


@pytest.fixture
def away(django_db_blocker: Any) -> Iterator[str]:
    """Return the alias of a database whose server does not answer."""
    lease = lease_port()
    url = f"postgresql://postgres@127.0.0.1:{lease.port}/shop"
    with django_db_blocker.unblock(), database("away_postgresql", url, migrate=False) as alias:
        yield alias
    lease.release()


@pytest.fixture
def open_page(settings: Any, registry: handlers.Registry) -> Callable[..., HttpResponse]:
    """Return a function that opens the list of a model in the outbox of an alias."""

    def get(alias: str, model: Any, url: str = "memory:") -> HttpResponse:
        settings.DOMAIN_EVENT_BROKER = {"URL": url, "OUTBOX": {"DATABASE": alias}}
        settings.DATABASE_ROUTERS = [stage.OneDatabase(alias)]
        response: Any = admin.site._registry[model].changelist_view(stage.request_of_superuser())
        return response if response.is_rendered else response.render()  # type: ignore[no-any-return]

    return get


def works(alias: str) -> bool:
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT 1")
        return cursor.fetchone() == (1,)


@pytest.mark.parametrize("model", LISTS)
def test_a_list_without_tables_names_the_command_and_leaves_the_transaction_whole(
    bare: str, open_page: Callable[..., HttpResponse], model: Any
) -> None:
    with transaction.atomic(using=bare):
        response = open_page(bare, model)
        assert response.status_code == 503
        assert f"manage.py migrate --database {bare}" in response.content.decode()
        assert works(bare)


@pytest.mark.parametrize("scheme", ["memory:", "database:{}"])
def test_the_overview_without_tables_names_the_command_and_leaves_the_transaction_whole(
    bare: str, open_page: Callable[..., HttpResponse], scheme: str
) -> None:
    with transaction.atomic(using=bare):
        page = open_page(bare, BrokerOverview, scheme.format(bare)).content.decode()
        assert f"manage.py migrate --database {bare}" in page
        assert works(bare)


@pytest.mark.parametrize("model", [*LISTS, BrokerOverview])
def test_a_server_that_does_not_answer_is_told(
    away: str, open_page: Callable[..., HttpResponse], model: Any
) -> None:
    response = open_page(away, model)
    assert response.status_code == (200 if model is BrokerOverview else 503)
    assert "cannot be used now" in response.content.decode()
