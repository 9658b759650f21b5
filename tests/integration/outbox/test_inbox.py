"""A handler takes effect once per event, whatever happens around it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, IntegrityError, connections, transaction
from django.db.transaction import TransactionManagementError

from domain_event_broker import DomainEvent, Retry
from domain_event_broker.django import inbox as inbox_module
from domain_event_broker.django.inbox import DjangoInbox
from domain_event_broker.django.models import InboxEntry
from domain_event_broker.errors import InboxUnavailable
from domain_event_broker.handlers import Handler
from tests.djangoapp.databases import add_alias, database, remove_alias, run_in_thread, sqlite_file
from tests.djangoapp.shop.models import Order
from tests.harness.waiting import wait_until


class RouteTo:
    """A database router that sends everything to one alias."""

    def __init__(self, alias: str) -> None:
        self._alias = alias

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return self._alias

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return self._alias


@pytest.fixture
def home(alias: str, settings: Any) -> str:
    """Return the alias of the database in which everything lives."""
    settings.DATABASE_ROUTERS = [RouteTo(alias)]
    return alias


def handler(call: Callable[[DomainEvent], Any], **options: Any) -> Handler:
    return Handler(call=call, name=options.pop("name", "shop.bill"), binding_keys=("#",), **options)


def event(event_id: str = "e1") -> DomainEvent:
    return DomainEvent("order.placed", {}, uuid_string=event_id)


def bill(received: DomainEvent) -> None:
    Order.objects.create(number=f"{received.uuid_string}-{Order.objects.count()}")


def test_a_handler_runs_and_is_remembered(home: str) -> None:
    assert DjangoInbox().run(handler(bill), event())
    assert Order.objects.count() == 1
    entry = InboxEntry.objects.get()
    assert (entry.consumer, entry.event_id) == ("shop.bill", "e1")


def test_a_duplicate_does_not_reach_the_handler(home: str) -> None:
    inbox = DjangoInbox()
    inbox.run(handler(bill), event())
    assert not inbox.run(handler(bill), event())
    assert Order.objects.count() == 1


def test_each_handler_has_a_memory_of_its_own(home: str) -> None:
    inbox = DjangoInbox()
    assert inbox.run(handler(bill, name="one"), event())
    assert inbox.run(handler(bill, name="two"), event())


def test_identities_that_differ_in_case_or_trailing_space_are_two(home: str) -> None:
    inbox = DjangoInbox()
    assert [inbox.run(handler(bill), event(each)) for each in ("a1", "A1", "a1 ", "a1")] == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    "event_id",
    ["x" * 300, "nul\x00", "lone \ud800", "ü" * 64],
    ids=["long", "nul", "surrogate", "not ASCII"],
)
def test_identities_of_foreign_publishers_are_remembered_whatever_they_look_like(
    home: str, event_id: str
) -> None:
    inbox = DjangoInbox()
    done: list[DomainEvent] = []
    assert inbox.run(handler(done.append), event(event_id))
    assert not inbox.run(handler(done.append), event(event_id))
    assert inbox.run(handler(done.append), event(event_id + "x"))


def test_events_without_identity_are_no_duplicates_of_each_other(home: str) -> None:
    assert DjangoInbox().run(handler(bill), event(""))
    assert DjangoInbox().run(handler(bill), event(""))


@pytest.mark.parametrize("error", [Retry(1.0), ValueError("no"), SystemExit(1)])
def test_a_handler_that_raises_leaves_neither_effect_nor_memory(home: str, error: BaseException) -> None:
    def fail(received: DomainEvent) -> None:
        bill(received)
        raise error

    with pytest.raises(type(error)):
        DjangoInbox().run(handler(fail), event())
    assert not Order.objects.exists()
    assert DjangoInbox().run(handler(bill), event()), "it is not taken for handled"


def test_a_handler_that_is_not_idempotent_runs_each_time_without_a_transaction(home: str) -> None:
    inside: list[bool] = []

    def look(received: DomainEvent) -> None:
        inside.append(connections[home].in_atomic_block)

    assert DjangoInbox().run(handler(look, idempotent=False), event())
    assert DjangoInbox().run(handler(look, idempotent=False), event())
    assert inside == [False, False]
    assert not InboxEntry.objects.exists()


def test_a_concurrent_duplicate_waits_and_is_one(postgresql: str, settings: Any) -> None:
    settings.DATABASE_ROUTERS = [RouteTo(postgresql)]
    _concurrent_duplicate(postgresql, fail_first=False)
    assert Order.objects.count() == 1


def test_a_concurrent_duplicate_runs_when_the_first_one_failed(postgresql: str, settings: Any) -> None:
    settings.DATABASE_ROUTERS = [RouteTo(postgresql)]
    _concurrent_duplicate(postgresql, fail_first=True)
    assert Order.objects.count() == 1


def test_a_concurrent_duplicate_waits_on_mariadb_too(mariadb_alias: str, settings: Any) -> None:
    settings.DATABASE_ROUTERS = [RouteTo(mariadb_alias)]
    Order.objects.all().delete()
    InboxEntry.objects.all().delete()
    _concurrent_duplicate(mariadb_alias, fail_first=False)
    assert Order.objects.count() == 1
    connections[mariadb_alias].close()


def _concurrent_duplicate(alias: str, fail_first: bool) -> None:
    first_is_in, go_on = threading.Event(), threading.Event()
    results: dict[str, object] = {}

    def slow(received: DomainEvent) -> None:
        bill(received)
        first_is_in.set()
        assert go_on.wait(20)
        if fail_first:
            raise ValueError("no")

    def run(who: str, call: Callable[[DomainEvent], None]) -> None:
        try:
            results[who] = DjangoInbox().run(handler(call), event())
        except ValueError:
            results[who] = "failed"

    first = run_in_thread(lambda: run("first", slow), alias)
    assert first_is_in.wait(20)
    second = run_in_thread(lambda: run("second", bill), alias)
    second.join(0.3)
    assert second.is_alive(), "it waits for the first"
    go_on.set()
    first.join(20)
    second.join(20)
    assert results == {
        "first": "failed" if fail_first else True,
        "second": fail_first,
    }


def test_a_swallowed_database_error_is_no_success(home: str) -> None:
    """Its commit would have been a silent rollback, and the event acknowledged."""

    def careless(received: DomainEvent) -> None:
        Order.objects.create(number="same")
        try:
            Order.objects.create(number="same")
        except IntegrityError:
            pass

    with pytest.raises(TransactionManagementError, match="cannot be committed"):
        DjangoInbox().run(handler(careless), event())
    assert not InboxEntry.objects.exists()
    assert not Order.objects.exists()


def test_a_swallowed_error_that_django_did_not_see_is_no_success(postgresql: str, settings: Any) -> None:
    settings.DATABASE_ROUTERS = [RouteTo(postgresql)]

    def careless(received: DomainEvent) -> None:
        bill(received)
        try:
            with connections[postgresql].cursor() as cursor:
                cursor.execute("SELECT 1 / 0")
        except DatabaseError:
            pass

    with pytest.raises(TransactionManagementError, match="cannot be committed"):
        DjangoInbox().run(handler(careless), event())
    assert not InboxEntry.objects.exists()


def test_a_handler_that_closes_the_connection_is_no_success(home: str) -> None:
    def careless(received: DomainEvent) -> None:
        bill(received)
        connections[home].close()

    with pytest.raises(TransactionManagementError, match="cannot be committed"):
        DjangoInbox().run(handler(careless), event())
    assert not Order.objects.exists()
    assert DjangoInbox().run(handler(bill), event()), "the next one has a connection"


def test_a_handler_that_leaves_a_transaction_open_poisons_nothing(home: str) -> None:
    def leak(received: DomainEvent) -> None:
        transaction.atomic(using=home).__enter__()
        bill(received)

    with pytest.raises(TransactionManagementError, match="did not end it"):
        DjangoInbox().run(handler(leak), event())
    assert not connections[home].in_atomic_block
    assert not Order.objects.exists()
    assert DjangoInbox().run(handler(bill), event())
    assert Order.objects.count() == 1


def test_a_plain_handler_that_leaves_a_transaction_open_poisons_nothing(home: str) -> None:
    def leak(received: DomainEvent) -> None:
        transaction.atomic(using=home).__enter__()
        bill(received)

    DjangoInbox().run(handler(leak, idempotent=False), event())
    assert not connections[home].in_atomic_block
    assert not Order.objects.exists()
    assert DjangoInbox().run(handler(bill), event())


def test_a_handler_that_switches_autocommit_off_poisons_nothing(home: str) -> None:
    def switch(received: DomainEvent) -> None:
        transaction.set_autocommit(False, using=home)

    DjangoInbox().run(handler(switch, idempotent=False), event())
    assert DjangoInbox().run(handler(bill), event())
    assert Order.objects.count() == 1


def test_a_handler_whose_hook_fails_after_the_commit_runs_again(
    home: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its retry must not be a duplicate: what was left to the hook would never be done."""
    started: list[str] = []

    def start_task() -> None:
        if not started:
            started.append("failed")
            raise ConnectionError("no broker for tasks")
        started.append("done")

    def hand_over(received: DomainEvent) -> None:
        bill(received)
        transaction.on_commit(start_task, using=home)

    with pytest.raises(ConnectionError):
        DjangoInbox().run(handler(hand_over), event())
    assert Order.objects.count() == 1, "it was committed"
    assert "'shop.bill' was committed for event e1, then" in caplog.text
    assert "will run the whole handler again" in caplog.text
    assert DjangoInbox().run(handler(hand_over), event())
    assert not DjangoInbox().run(handler(hand_over), event())
    assert started == ["failed", "done"]


def test_a_failed_hook_that_left_a_transaction_open_is_taken_back_too(home: str) -> None:
    def fail() -> None:
        transaction.atomic(using=home).__enter__()
        raise ConnectionError

    def hand_over(received: DomainEvent) -> None:
        transaction.on_commit(fail, using=home)

    with pytest.raises(ConnectionError):
        DjangoInbox().run(handler(hand_over), event())
    assert DjangoInbox().run(handler(bill), event())


def test_a_robust_hook_that_fails_costs_nothing(home: str) -> None:
    def hand_over(received: DomainEvent) -> None:
        transaction.on_commit(lambda: 1 / 0, using=home, robust=True)

    assert DjangoInbox().run(handler(hand_over), event())
    assert not DjangoInbox().run(handler(hand_over), event())


def test_the_transaction_of_a_caller_is_left_alone(home: str) -> None:
    with transaction.atomic(using=home):
        assert DjangoInbox().run(handler(bill), event())
        assert connections[home].in_atomic_block
        transaction.set_rollback(True, using=home)
    assert not Order.objects.exists()


def test_a_connection_that_died_while_idle_is_replaced(postgresql: str, settings: Any) -> None:
    settings.DATABASE_ROUTERS = [RouteTo(postgresql)]
    inbox = DjangoInbox()
    inbox.run(handler(bill), event("e1"))
    other = connections[postgresql].copy()
    with other.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    other.close()
    assert inbox.run(handler(bill), event("e2"))


def test_a_database_that_is_away_means_that_the_handler_was_not_called(
    settings: Any, unblocked: None
) -> None:
    add_alias("away", "postgresql://nobody@127.0.0.1:1/none")
    settings.DATABASE_ROUTERS = [RouteTo("away")]
    called: list[DomainEvent] = []
    try:
        with pytest.raises(InboxUnavailable, match="'away'"):
            DjangoInbox().run(handler(called.append), event())
    finally:
        remove_alias("away")
    assert not called


def test_a_missing_table_means_that_the_handler_was_not_called(
    settings: Any, tmp_path: Any, unblocked: None
) -> None:
    called: list[DomainEvent] = []
    with database("bare", sqlite_file(tmp_path, "bare"), migrate=False):
        settings.DATABASE_ROUTERS = [RouteTo("bare")]
        with pytest.raises(InboxUnavailable, match="migrate --database bare"):
            DjangoInbox().run(handler(called.append), event())
    assert not called


def test_a_connection_serves_many_events_although_it_has_no_maximum_age(
    postgresql: str, settings: Any
) -> None:
    settings.DATABASE_ROUTERS = [RouteTo(postgresql)]
    backends: set[int] = set()

    def look(received: DomainEvent) -> None:
        with connections[postgresql].cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            backends.add(cursor.fetchone()[0])

    for n in range(5):
        DjangoInbox().run(handler(look), event(f"e{n}"))
    assert len(backends) == 1


def test_a_connection_grows_no_older_than_it_may(
    postgresql: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.DATABASE_ROUTERS = [RouteTo(postgresql)]
    monkeypatch.setattr(inbox_module, "KEEP_SECONDS", 0.0)
    DjangoInbox().run(handler(bill), event())
    assert connections[postgresql].connection is None


def test_a_thread_that_ends_closes_its_connection(postgresql: str, settings: Any) -> None:
    settings.DATABASE_ROUTERS = [RouteTo(postgresql)]

    def work() -> None:
        DjangoInbox().run(handler(bill), event())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    gc.collect()
    assert Order.objects.count() == 1
    wait_until(lambda: _other_clients(postgresql) == 0, 5)


def _other_clients(alias: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        result: int = cursor.fetchone()[0]
    return result
