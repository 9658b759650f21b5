"""Events live and die with the transaction that they are published in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import IntegrityError, OperationalError, connections, transaction
from django.db.transaction import TransactionManagementError

from domain_event_broker import (
    DomainEvent,
    apublish_domain_event,
    publish_domain_event,
    publish_domain_events,
)
from domain_event_broker.django import publish_on_commit
from domain_event_broker.django.models import HeldEvent, OutboxEvent
from domain_event_broker.errors import InvalidEvent, OutboxNotMigrated, OutboxUnavailable
from domain_event_broker.events import encode
from tests.djangoapp.databases import add_alias, database, remove_alias, sqlite_file
from tests.djangoapp.shop.models import Order
from tests.integration.outbox.content import held, publish, publish_all, stored


class Stop(Exception):
    """Ends a transaction."""


@contextmanager
def rolled_back(alias: str) -> Iterator[None]:
    """A transaction that ends with an error."""
    try:
        with transaction.atomic(using=alias):
            yield
            raise Stop
    except Stop:
        pass


def test_an_event_is_stored_with_the_business_row(alias: str) -> None:
    with transaction.atomic(using=alias):
        Order.objects.using(alias).create(number="A1")
        publish(alias, 1)
    assert stored(alias) == [1]
    assert Order.objects.using(alias).count() == 1


def test_a_rollback_leaves_neither_event_nor_row(alias: str) -> None:
    with rolled_back(alias):
        Order.objects.using(alias).create(number="A1")
        publish(alias, 1)
        publish_all(alias, [2, 3])
    assert stored(alias) == []
    assert not Order.objects.using(alias).exists()


def test_a_rolled_back_savepoint_takes_only_its_own_events(alias: str) -> None:
    with transaction.atomic(using=alias):
        publish(alias, 1)
        with rolled_back(alias):
            publish(alias, 2)
        publish(alias, 3)
    assert stored(alias) == [1, 3]


def test_nothing_is_visible_to_others_before_the_commit(postgresql: str) -> None:
    other = connections[postgresql].copy()
    try:
        with transaction.atomic(using=postgresql):
            publish(postgresql, 1)
            with other.cursor() as cursor:
                cursor.execute(f"SELECT count(*) FROM {OutboxEvent._meta.db_table}")
                assert cursor.fetchone() == (0,)
    finally:
        other.close()
    assert stored(postgresql) == [1]


def test_without_a_transaction_the_event_is_stored_at_once(alias: str) -> None:
    publish(alias, 1)
    assert stored(alias) == [1]


def test_many_events_are_stored_in_their_order(alias: str) -> None:
    publish_all(alias, range(2500), key="k")
    assert stored(alias) == list(range(2500))


def test_many_events_are_one_statement(postgresql: str) -> None:
    with transaction.atomic(using=postgresql):
        connection = connections[postgresql]
        connection.force_debug_cursor = True
        try:
            before = len(connection.queries_log)
            publish_all(postgresql, range(100))
            assert len(connection.queries_log) - before == 1
        finally:
            connection.force_debug_cursor = False


def test_one_of_many_that_cannot_be_sent_leaves_none_stored(alias: str) -> None:
    with pytest.raises(InvalidEvent):
        publish_domain_event("test.*", {"number": 1}, using=alias)
    assert stored(alias) == []


def test_all_of_a_message_is_kept(alias: str) -> None:
    text = "grüße, 日本, \x00 \U0001f600 '\"\\%s"
    event = publish_domain_event("test.done", {"text": text}, "objekt-ü", timestamp=12.5, using=alias)
    row = OutboxEvent.objects.using(alias).get()
    message = row.to_message()
    assert message.body == event.to_json().encode("ascii")
    assert (message.routing_key, message.event_id) == ("test.done", event.uuid_string)
    assert (message.ordering_key, message.timestamp) == ("objekt-ü", 12.5)
    assert abs((row.created_at - datetime.now(timezone.utc)).total_seconds()) < 60


def test_all_of_each_message_is_kept_however_many_are_published_at_once(alias: str) -> None:
    texts = ("grüße", "日本 \x00 \U0001f600", "'\"\\%s{}", "\\u0000 \\n\n\t\x7f")
    at = (0.1 + 0.2, 12.5, 1_700_000_000.123457, 3)
    for count in (1, 2, 30):
        events = [
            DomainEvent(
                "test.done", {"text": texts[n % 4]}, f"ü'\\ {n}" if n % 2 else None, timestamp=at[n % 4]
            )
            for n in range(count)
        ]
        for n, event in enumerate(events):
            event.headers = {"number": n, "text": texts[0]} if n % 3 else {}
        publish_domain_events(events, using=alias)
        rows = OutboxEvent.objects.using(alias).order_by("id")
        assert [row.to_message() for row in rows] == [encode(event) for event in events]
        assert [row.attempts for row in rows] == [0] * count
        assert {row.correlation_id for row in rows} == {event.uuid_string for event in events}
        rows.delete()


def test_events_of_a_key_share_a_bucket_and_others_are_spread(alias: str) -> None:
    publish_all(alias, range(50), key="k")
    publish_all(alias, range(500))
    buckets = OutboxEvent.objects.using(alias).values_list("bucket", flat=True)
    assert len(set(buckets.filter(ordering_key="k"))) == 1
    assert set(buckets) <= set(range(64))
    assert len(set(buckets.filter(ordering_key=None))) > 32


def test_a_scheduled_event_stays_out_of_the_hot_table(alias: str) -> None:
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    publish_domain_event("test.done", {"number": 1}, using=alias, deliver_at=due)
    assert stored(alias) == []
    assert held(alias) == {1: "scheduled"}
    row = HeldEvent.objects.using(alias).get()
    assert row.due_at is not None
    assert abs((row.due_at - due).total_seconds()) < 0.001


def test_a_scheduled_event_is_rolled_back_too(alias: str) -> None:
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    with rolled_back(alias):
        publish_domain_event("test.done", {"number": 1}, using=alias, deliver_at=due)
    assert held(alias) == {}


def test_an_event_scheduled_for_the_past_is_sent_now(alias: str) -> None:
    due = datetime.now(timezone.utc) - timedelta(seconds=1)
    publish_domain_event("test.done", {"number": 1}, using=alias, deliver_at=due)
    assert stored(alias) == [1]


def test_a_schedule_without_a_time_zone_is_refused(alias: str) -> None:
    with pytest.raises(InvalidEvent, match="aware"):
        publish_domain_event("test.done", {}, using=alias, deliver_at=datetime(2030, 1, 1))  # noqa: DTZ001
    assert stored(alias) == []
    assert held(alias) == {}


def test_a_coroutine_publishes_too(alias: str) -> None:
    async def work() -> None:
        await apublish_domain_event("test.done", {"number": 1}, using=alias)

    async_to_sync(work)()
    assert stored(alias) == [1]


def test_publish_on_commit_of_the_older_library_stores_in_the_transaction(alias: str) -> None:
    with transaction.atomic(using=alias):
        event = publish_on_commit("test.done", {"number": 1}, domain_object_id="k", using=alias)
        assert stored(alias) == [1]
    assert OutboxEvent.objects.using(alias).get().event_id == event.uuid_string


def test_the_switched_off_broker_stores_nothing(alias: str, settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = None
    publish(alias, 1)
    assert stored(alias) == []


def test_a_transaction_that_is_broken_already_says_so(alias: str) -> None:
    with transaction.atomic(using=alias):
        Order.objects.using(alias).create(number="A1")
        with pytest.raises(IntegrityError):
            Order.objects.using(alias).create(number="A1")
        with pytest.raises(TransactionManagementError):
            publish(alias, 1)
        transaction.set_rollback(True, using=alias)
    assert stored(alias) == []


def test_a_transaction_whose_event_could_not_be_stored_does_not_commit(alias: str) -> None:
    """Not even when the caller swallows the error: the row without its event is a lost event."""
    table = OutboxEvent._meta.db_table
    with connections[alias].cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_gone")
    try:
        with transaction.atomic(using=alias):
            Order.objects.using(alias).create(number="A1")
            with pytest.raises(OutboxNotMigrated):
                publish(alias, 1)
    finally:
        with connections[alias].cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table}_gone RENAME TO {table}")
    assert not Order.objects.using(alias).exists()


def test_a_missing_table_names_the_database_and_the_command(tmp_path: Any, unblocked: None) -> None:
    with (
        database("bare", sqlite_file(tmp_path, "bare"), migrate=False),
        pytest.raises(OutboxNotMigrated, match=r"'bare'.*manage\.py migrate --database bare"),
    ):
        publish("bare", 1)


def test_a_database_that_is_away_is_an_outbox_that_is(unblocked: None) -> None:
    add_alias("away", "postgresql://nobody@127.0.0.1:1/none")
    try:
        with pytest.raises(OutboxUnavailable, match="'away'"):
            publish("away", 1)
    finally:
        remove_alias("away")


def test_inside_a_transaction_errors_are_those_of_the_database(sqlite: str) -> None:
    """A caller's retry loop for locked databases, deadlocks and the like must see them."""
    other = connections[sqlite].copy()
    other.settings_dict["OPTIONS"]["timeout"] = 0.05
    connections[sqlite].close()
    connections[sqlite].settings_dict["OPTIONS"]["timeout"] = 0.05
    try:
        with other.cursor() as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            with pytest.raises(OperationalError, match="locked"), transaction.atomic(using=sqlite):
                publish(sqlite, 1)
            cursor.execute("ROLLBACK")
    finally:
        other.close()
        connections[sqlite].close()
        del connections[sqlite].settings_dict["OPTIONS"]["timeout"]
    assert stored(sqlite) == []


def test_manual_transactions_store_events_too(postgresql: str) -> None:
    """Django has no commit hooks there, so the wake-up is left out."""
    transaction.set_autocommit(False, using=postgresql)
    try:
        publish(postgresql, 1)
        transaction.rollback(using=postgresql)
        publish(postgresql, 2)
        transaction.commit(using=postgresql)
    finally:
        transaction.set_autocommit(True, using=postgresql)
    assert stored(postgresql) == [2]


def test_an_event_published_during_a_transaction_elsewhere_waits_for_its_commit(
    sqlite: str, postgresql: str, settings: Any
) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "OUTBOX": {"DATABASE": sqlite}}
    with transaction.atomic(using=postgresql):
        publish(postgresql, 1)
        assert stored(sqlite) == []
    assert stored(sqlite) == [1]
    with rolled_back(postgresql):
        publish(postgresql, 2)
    assert stored(sqlite) == [1]


def test_the_open_transaction_is_found_without_using(sqlite: str, postgresql: str, settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "OUTBOX": {"DATABASE": sqlite}}
    with rolled_back(postgresql):
        publish_domain_event("test.done", {"number": 1})
    assert stored(sqlite) == []


def test_an_event_lost_after_the_commit_elsewhere_is_logged_whole(
    postgresql: str, tmp_path: Any, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with database("bare", sqlite_file(tmp_path, "bare"), migrate=False):
        settings.DOMAIN_EVENT_BROKER = {"URL": "memory:", "OUTBOX": {"DATABASE": "bare"}}
        with transaction.atomic(using=postgresql):
            event = publish(postgresql, 1)
    (record,) = [each for each in caplog.records if each.levelname == "CRITICAL"]
    assert event.uuid_string in record.getMessage()
    assert record.event_body == event.to_json()  # type: ignore[attr-defined]
