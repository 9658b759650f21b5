"""What is old goes; what waits, is scheduled or parked stays however old it is."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from domain_event_broker.django.models import ArchivedEvent, HeldEvent, InboxEntry, OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.django.retention import purge
from tests.djangoapp.databases import database, sqlite_file

MakeRelay = Callable[..., DjangoRelayOutbox]

EVENT = {"bucket": 1, "routing_key": "test.done", "body": "{}"}


def fill(alias: str, old: int, new: int) -> None:
    """Write so many rows of 40 days and of now into archive and inbox."""
    for count, age in ((old, 40), (new, 0)):
        then = datetime.now(timezone.utc) - timedelta(days=age)
        ids = [f"{age}-{n}" for n in range(count)]
        ArchivedEvent.objects.using(alias).bulk_create(
            [ArchivedEvent(event_id=i, outbox_id=1, created_at=then, published_at=then, **EVENT) for i in ids]
        )
        InboxEntry.objects.using(alias).bulk_create(
            [InboxEntry(consumer="c", event_id=i, handled_at=then) for i in ids]
        )


def left(alias: str) -> tuple[int, int]:
    return ArchivedEvent.objects.using(alias).count(), InboxEntry.objects.using(alias).count()


def run(alias: str, *arguments: str) -> str:
    out = StringIO()
    call_command("purge_outbox", *arguments, database=alias, stdout=out)
    return out.getvalue()


def test_old_rows_go_in_batches(alias: str) -> None:
    fill(alias, old=25, new=3)
    batches = list(purge(alias, archive_days=7, inbox_days=30, batch=10))
    assert [(each.table, each.rows) for each in batches] == [
        ("archive", 10),
        ("archive", 10),
        ("archive", 5),
        ("inbox", 10),
        ("inbox", 10),
        ("inbox", 5),
    ]
    assert left(alias) == (3, 3)


def test_a_table_can_be_left_out(alias: str) -> None:
    fill(alias, old=2, new=0)
    list(purge(alias, archive_days=None, inbox_days=30))
    assert left(alias) == (2, 0)


def test_days_without_end_keep_everything(alias: str, make_relay: MakeRelay, settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "SUBSCRIBER": {"INBOX_DAYS": 10**12}}
    fill(alias, old=2, new=0)
    assert 0 in make_relay(alias, archive_days=10**12).renew().epochs
    assert left(alias) == (2, 2)


def test_a_relay_goes_on_whatever_happens_while_it_forgets(
    sqlite: str, make_relay: MakeRelay, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.DATABASE_ROUTERS = [RouterWithAFault()]
    assert 0 in make_relay(sqlite).renew().epochs
    assert "could not purge old rows" in caplog.text


class RouterWithAFault:
    """A project's own code that a purge calls."""

    def allow_migrate(self, *args: Any, **hints: Any) -> bool:
        raise LookupError("no such tenant")


def test_held_and_waiting_events_stay(alias: str) -> None:
    then = datetime.now(timezone.utc) - timedelta(days=4000)
    OutboxEvent.objects.using(alias).create(event_id="o", created_at=then, **EVENT)
    HeldEvent.objects.using(alias).create(
        event_id="h", created_at=then, held_at=then, state="parked", **EVENT
    )
    run(alias, "--archive-days=0", "--inbox-days=0")
    assert OutboxEvent.objects.using(alias).count() == HeldEvent.objects.using(alias).count() == 1


def test_the_command_says_what_it_deleted(alias: str) -> None:
    fill(alias, old=4, new=1)
    output = run(alias, "--archive-days=7", "--inbox-days=30")
    assert "4 sent events deleted." in output
    assert "4 handled events deleted." in output
    assert left(alias) == (1, 1)


def test_the_command_goes_by_the_settings(alias: str, settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = {
        "URL": "memory:",
        "OUTBOX": {"ARCHIVE_DAYS": 50},
        "SUBSCRIBER": {"INBOX_DAYS": 20},
    }
    fill(alias, old=4, new=1)
    run(alias)
    assert left(alias) == (5, 1)


def test_a_dry_run_changes_nothing(alias: str) -> None:
    fill(alias, old=4, new=1)
    output = run(alias, "--archive-days=7", "--dry-run")
    assert "4 sent events would be deleted." in output
    assert left(alias) == (5, 5)


def test_the_command_fails_where_nothing_is_migrated(tmp_path: Any, unblocked: None) -> None:
    with (
        database("bare", sqlite_file(tmp_path, "bare"), migrate=False),
        pytest.raises(CommandError, match="migrate --database bare") as raised,
    ):
        run("bare")
    assert raised.value.returncode == 3


def test_a_relay_forgets_by_itself(alias: str, make_relay: MakeRelay) -> None:
    fill(alias, old=4, new=1)
    make_relay(alias).renew()
    assert left(alias) == (1, 1)


def test_only_one_of_several_relays_forgets(alias: str, make_relay: MakeRelay) -> None:
    """The one that has the first bucket: ten relays that clean at once would be an outage."""
    relays = [make_relay(alias), make_relay(alias)]
    for _ in range(3):
        owners = [relay for relay in relays if 0 in relay.renew().epochs]
    fill(alias, old=4, new=0)
    (idle,) = set(relays) - set(owners)
    idle._housekeeping.due_at = owners[0]._housekeeping.due_at = 0.0
    idle.renew()
    assert left(alias) == (4, 4)
    owners[0].renew()
    assert left(alias) == (0, 0)
