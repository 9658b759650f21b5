"""How the app comes into a project, and what it says about settings that are wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, connections, transaction

from domain_event_broker import config
from domain_event_broker.django import checks, publish_on_commit
from domain_event_broker.django.conf import outbox_alias, outbox_settings, subscriber_settings
from domain_event_broker.django.models import OutboxEvent
from domain_event_broker.ports import Subscription
from domain_event_broker.publisher import close_connections
from domain_event_broker.transports import memory, open_transport

PROGRAM = """
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS={apps!r},
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}}},
)
django.setup()
from django.apps import apps
from django.core.management import call_command
from domain_event_broker import publish_domain_event
(config,) = [each for each in apps.get_app_configs() if each.label == "domain_event_broker"]
call_command("migrate", verbosity=0)
call_command("makemigrations", "domain_event_broker", check=True, verbosity=0)
publish_domain_event("order.placed", {{}})
print(config.name, config.get_model("OutboxEvent").objects.count())
"""


def run(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a Python of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("name", ["domain_event_broker", "domain_event_broker.django"])
def test_both_spellings_install_the_one_app(name: str) -> None:
    done = run(PROGRAM.format(apps=[name]))
    assert done.stdout.split() == ["domain_event_broker.django", "1"], done.stderr


def test_both_spellings_at_once_are_refused_by_django() -> None:
    done = run(PROGRAM.format(apps=["domain_event_broker", "domain_event_broker.django"]))
    assert "labels aren't unique" in done.stderr


def test_the_package_alone_does_not_import_django() -> None:
    done = run("import domain_event_broker, sys; print('django' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_publish_on_commit_can_be_imported_before_the_apps_are_ready() -> None:
    done = run("from domain_event_broker.django import publish_on_commit; print(publish_on_commit.__name__)")
    assert done.stdout.strip() == "publish_on_commit", done.stderr


def test_starting_opens_no_connection() -> None:
    done = run(
        PROGRAM.split("from django.core")[0].format(apps=["domain_event_broker"])
        + ("from django.db import connections\nprint(connections['default'].connection)")
    )
    assert done.stdout.strip() == "None", done.stderr


def test_the_setting_is_read_each_time(settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = "amqp://somewhere/"
    first = config.current()
    settings.DOMAIN_EVENT_BROKER = {
        "URL": "memory:",
        "OUTBOX": {"BATCH_SIZE": 7},
        "SUBSCRIBER": {"PREFETCH": 3},
    }
    assert first is not None
    assert first.url == ("amqp://somewhere/",)
    assert (outbox_settings().batch_size, subscriber_settings().prefetch) == (7, 3)


def test_no_setting_means_a_local_broker(settings: Any) -> None:
    del settings.DOMAIN_EVENT_BROKER
    current = config.current()
    assert current is not None
    assert current.url == ("amqp://guest:guest@localhost:5672/%2F",)


def test_none_switches_off_and_leaves_defaults(settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = None
    assert config.current() is None
    assert outbox_settings().batch_size == 500
    assert checks.check_settings() == checks.check_databases() == []


def test_the_outbox_is_where_settings_or_routers_say(settings: Any) -> None:
    class Router:
        def db_for_write(self, model: Any, **hints: Any) -> str:
            return "routed"

    assert outbox_alias() == DEFAULT_DB_ALIAS
    settings.DATABASE_ROUTERS = [Router()]
    assert outbox_alias() == "routed"
    settings.DOMAIN_EVENT_BROKER = {"OUTBOX": {"DATABASE": "said"}}
    assert outbox_alias() == "said"


def test_each_vendor_text_is_labelled() -> None:
    """No model without a name for people."""
    for model in apps.get_app_config("domain_event_broker").get_models():
        assert str(model._meta.verbose_name) != model._meta.model_name, model


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"URL": "memory:", "OUTBOX": {"BATCHSIZE": 1}}, "BATCHSIZE"),
        ({"URL": "memory:", "OUTBOX": {"BATCH_SIZE": "many"}}, "BATCH_SIZE"),
        ("ftp://somewhere", "ftp"),
        (17, "17"),
    ],
)
def test_a_wrong_setting_is_a_check_error_that_names_it(settings: Any, value: object, said: str) -> None:
    settings.DOMAIN_EVENT_BROKER = value
    (message,) = checks.check_settings()
    assert message.id == "domain_event_broker.E001"
    assert said in message.msg


def test_a_password_is_not_part_of_a_check_error(settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = "ftp://user:hush@somewhere"
    (message,) = checks.check_settings()
    assert "hush" not in str(message)


def test_an_unknown_database_is_a_check_error(settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "OUTBOX": {"DATABASE": "nowhere"}}
    (message,) = checks.check_databases()
    assert message.id == "domain_event_broker.E002"
    assert "nowhere" in message.msg


def test_an_outbox_away_from_the_business_rows_is_a_warning(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(settings.DATABASES, "events", settings.DATABASES["default"])
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "OUTBOX": {"DATABASE": "events"}}
    (message,) = checks.check_databases()
    assert message.id == "domain_event_broker.W001"


def test_listening_through_a_pooler_is_a_warning(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pooled = {**settings.DATABASES["default"], "DISABLE_SERVER_SIDE_CURSORS": True}
    monkeypatch.setitem(settings.DATABASES, "default", pooled)
    (message,) = checks.check_databases()
    assert message.id == "domain_event_broker.W002"
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "OUTBOX": {"LISTEN": False}}
    assert checks.check_databases() == []


@pytest.mark.django_db
def test_tables_are_looked_for_only_when_databases_are_checked() -> None:
    assert checks.check_tables() == []
    assert checks.check_tables(databases=["default"]) == []
    table = OutboxEvent._meta.db_table
    with connections["default"].cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_gone")
    (message,) = checks.check_tables(databases=["default"])
    assert message.id == "domain_event_broker.W003"
    assert "migrate --database default" in str(message.hint)


@pytest.mark.django_db(transaction=True)
def test_publish_on_commit_to_another_broker_sends_after_the_commit() -> None:
    settings = config.parse("memory://elsewhere")
    assert settings is not None
    elsewhere = open_transport(settings)
    try:
        elsewhere.subscribe(Subscription("all", ("#",)))
        with transaction.atomic():
            event = publish_on_commit("order.placed", {"n": 1}, connection_settings="memory://elsewhere")
            assert elsewhere.stats(["all"])["all"].ready == 0
        with transaction.atomic():
            publish_on_commit("order.placed", {"n": 2}, connection_settings="memory://elsewhere")
            transaction.set_rollback(True)
        (delivery,) = elsewhere.receive(10, 0)
        assert delivery.event_id == event.uuid_string
    finally:
        elsewhere.close()
        close_connections()
        memory.forget("elsewhere")
    assert not OutboxEvent.objects.exists()


def test_a_setting_changed_in_place_is_noticed(settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "OUTBOX": {"BATCH_SIZE": 7}}
    assert outbox_settings().batch_size == 7
    settings.DOMAIN_EVENT_BROKER["OUTBOX"]["BATCH_SIZE"] = 8
    assert outbox_settings().batch_size == 8
