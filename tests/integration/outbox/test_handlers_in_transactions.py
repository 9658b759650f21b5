"""Handlers and their transaction: dependencies, limits of time, async, and a database that goes away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Annotated, Any

import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError, OperationalError, connections, transaction
from django.db.transaction import TransactionManagementError

from domain_event_broker import Depends, DomainEvent, Retry, config
from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.inbox import DjangoInbox
from domain_event_broker.django.models import InboxEntry
from domain_event_broker.errors import HandlerError, HandlerTimeout, TransactionLost
from domain_event_broker.events import encode
from domain_event_broker.handlers import Handler
from domain_event_broker.loop import DaemonThreads
from domain_event_broker.subscriber import Consumer, subscription_of
from domain_event_broker.transports import open_transport
from tests.djangoapp.databases import run_in_thread
from tests.djangoapp.shop.models import Order
from tests.harness.waiting import wait_until
from tests.integration.outbox.test_inbox import RouteTo, event


@pytest.fixture
def home(alias: str, settings: Any) -> str:
    """Return the alias of the database in which everything lives, on each kind in turn."""
    settings.DATABASE_ROUTERS = [RouteTo(alias)]
    return alias


@pytest.fixture
def on_postgresql(postgresql: str, settings: Any) -> str:
    """Return the alias of a database on PostgreSQL in which everything lives."""
    settings.DATABASE_ROUTERS = [RouteTo(postgresql)]
    return postgresql


def handler(call: Callable[..., Any], **options: Any) -> Handler:
    return Handler(call, "shop.bill", ("#",), **options)


def run_async(bound: Handler, received: DomainEvent) -> bool:
    """Run an async handler as a subscriber does: from a loop, with threads beside it."""
    threads: Executor = DaemonThreads("test")
    try:
        return asyncio.run(DjangoInbox().arun(bound, received, threads))
    finally:
        threads.close()  # type: ignore[attr-defined]


# --- dependencies -----------------------------------------------------------------------


def test_dependencies_live_inside_the_transaction(home: str) -> None:
    seen: list[Any] = []

    def session() -> Iterator[None]:
        seen.append((connections[home].in_atomic_block, InboxEntry.objects.count()))
        Order.objects.create(number="by the dependency")
        yield
        seen.append(connections[home].in_atomic_block)

    def work(received: DomainEvent, nothing: Annotated[None, Depends(session)]) -> None:
        Order.objects.create(number="by the handler")

    assert DjangoInbox().run(handler(work), event())
    assert seen == [(True, 1), True]
    assert Order.objects.count() == 2
    assert not DjangoInbox().run(handler(work), event())
    assert len(seen) == 2, "nothing is made for a duplicate"


def test_a_failure_rolls_back_what_dependencies_wrote_and_they_are_told(home: str) -> None:
    told: list[str] = []

    def session() -> Iterator[None]:
        Order.objects.create(number="by the dependency")
        try:
            yield
        except ValueError:
            told.append("roll back")
            raise

    def work(received: DomainEvent, nothing: Annotated[None, Depends(session)]) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        DjangoInbox().run(handler(work), event())
    assert told == ["roll back"]
    assert (Order.objects.count(), InboxEntry.objects.count()) == (0, 0)


def test_dependencies_are_told_when_the_transaction_cannot_be_committed(home: str) -> None:
    told: list[str] = []

    def session() -> Iterator[None]:
        try:
            yield
        except TransactionManagementError:
            told.append("roll back")
            raise

    def work(received: DomainEvent, nothing: Annotated[None, Depends(session)]) -> None:
        transaction.atomic(using=home).__enter__()

    with pytest.raises(TransactionManagementError, match="began a transaction and did not end it"):
        DjangoInbox().run(handler(work), event())
    assert told == ["roll back"]
    assert InboxEntry.objects.count() == 0


def test_a_dependency_that_spoils_the_transaction_at_its_end_is_noticed(home: str) -> None:
    def spoil() -> Iterator[None]:
        yield
        transaction.atomic(using=home).__enter__()

    def work(received: DomainEvent, nothing: Annotated[None, Depends(spoil)]) -> None: ...

    with pytest.raises(TransactionManagementError):
        DjangoInbox().run(handler(work), event())
    assert InboxEntry.objects.count() == 0


# --- async ------------------------------------------------------------------------------


async def abill(received: DomainEvent) -> None:
    await Order.objects.acreate(number=f"{received.uuid_string}-1")
    await asyncio.sleep(0)
    await sync_to_async(Order.objects.create)(number=f"{received.uuid_string}-2")


@pytest.mark.parametrize("run", [run_async, lambda *args: DjangoInbox().run(*args)], ids=["loop", "thread"])
def test_an_async_handler_takes_effect_once(home: str, run: Callable[[Handler, DomainEvent], bool]) -> None:
    assert run(handler(abill), event())
    assert not run(handler(abill), event())
    assert (Order.objects.count(), InboxEntry.objects.count()) == (2, 1)


@pytest.mark.parametrize("run", [run_async, lambda *args: DjangoInbox().run(*args)], ids=["loop", "thread"])
def test_an_async_handler_that_fails_leaves_neither_effect_nor_memory(
    home: str, run: Callable[[Handler, DomainEvent], bool]
) -> None:
    async def fail(received: DomainEvent) -> None:
        await abill(received)
        assert await InboxEntry.objects.acount() == 1, "it is in the transaction"
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        run(handler(fail), event())
    assert (Order.objects.count(), InboxEntry.objects.count()) == (0, 0)


def test_an_async_handler_that_is_cancelled_in_time_out_is_rolled_back(home: str) -> None:
    async def sleep(received: DomainEvent) -> None:
        await abill(received)
        await asyncio.sleep(3600)

    with pytest.raises(HandlerTimeout):
        run_async(handler(sleep, timeout=0.5), event())
    assert (Order.objects.count(), InboxEntry.objects.count()) == (0, 0)


def test_an_async_handler_that_a_stop_cancels_is_rolled_back_and_its_event_comes_back(home: str) -> None:
    begun, ended = threading.Event(), threading.Event()

    async def sleep(received: DomainEvent) -> None:
        await abill(received)
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()

    with inbox_consumer(home, handler(sleep), GRACE_SECONDS=0.2) as (consumer, _):
        assert begun.wait(60)
    assert ended.wait(60)
    # The lock of the row that was not committed is gone, so its thread is out of the transaction.
    assert DjangoInbox().run(handler(lambda received: None), event())
    assert (Order.objects.count(), InboxEntry.objects.count()) == (0, 1)
    assert not consumer.outcomes


def test_dependencies_of_async_handlers_live_in_the_transaction(home: str) -> None:
    def session() -> Iterator[int]:
        yield InboxEntry.objects.count()
        Order.objects.create(number="at the end")

    async def work(received: DomainEvent, entries: Annotated[int, Depends(session)]) -> None:
        assert entries == 1

    assert run_async(handler(work), event())
    assert Order.objects.count() == 1


def test_an_async_handler_without_inbox_needs_no_thread(home: str) -> None:
    ran: list[int] = []

    async def work(received: DomainEvent) -> None:
        ran.append(threading.get_ident())

    assert run_async(handler(work, idempotent=False), event())
    assert ran == [threading.get_ident()]
    assert InboxEntry.objects.count() == 0


def test_a_handler_that_returns_a_coroutine_is_not_remembered(home: str) -> None:
    def forgetful(received: DomainEvent) -> Any:
        Order.objects.create(number="1")
        return abill(received)

    with pytest.raises(HandlerError, match="returned a coroutine, which nobody runs"):
        DjangoInbox().run(handler(forgetful), event())
    assert (Order.objects.count(), InboxEntry.objects.count()) == (0, 0)


def test_an_async_handler_has_the_transaction_of_its_dependency_to_itself(on_postgresql: str) -> None:
    def in_transaction() -> Iterator[None]:
        with transaction.atomic(using=on_postgresql):
            yield

    async def main() -> None:
        begun, other_ended = asyncio.Event(), asyncio.Event()

        async def slow(received: DomainEvent) -> None:
            await Order.objects.acreate(number="slow")
            begun.set()
            await other_ended.wait()

        async def quick(received: DomainEvent) -> None:
            await Order.objects.acreate(number="quick")
            raise ValueError("it is looked after at once")

        async def then_quick() -> None:
            await begun.wait()
            with pytest.raises(ValueError, match="at once"):
                await inbox.arun(handler(quick, idempotent=False), event("e2"), threads)
            other_ended.set()

        slowly = handler(slow, idempotent=False, dependencies=(Depends(in_transaction),))
        both = inbox.arun(slowly, event(), threads), then_quick()
        await asyncio.wait_for(asyncio.gather(*both), 60)

    inbox, threads = DjangoInbox(), DaemonThreads("test")
    try:
        asyncio.run(main())
    finally:
        threads.close()
    assert sorted(each.number for each in Order.objects.all()) == ["quick", "slow"]


# --- limits of time ---------------------------------------------------------------------


def test_a_handler_that_spins_is_rolled_back(home: str) -> None:
    def spin(received: DomainEvent) -> None:
        Order.objects.create(number="1")
        while True:
            sum(range(100))

    with pytest.raises(HandlerTimeout):
        DjangoInbox().run(handler(spin, timeout=0.5), event())
    assert (Order.objects.count(), InboxEntry.objects.count()) == (0, 0)
    assert DjangoInbox().run(handler(lambda received: None), event()), "the connection is of use"


def test_a_statement_that_takes_too_long_is_cancelled(on_postgresql: str) -> None:
    def sleep(received: DomainEvent) -> None:
        Order.objects.create(number="1")
        with connections[on_postgresql].cursor() as cursor:
            cursor.execute("SELECT pg_sleep(3600)")

    with inbox_consumer(on_postgresql, handler(sleep, timeout=0.5)) as (consumer, _):
        wait_until(
            lambda: consumer.outcomes["shop.bill", "dead-lettered"], 30, lambda: str(consumer.outcomes)
        )
    assert (Order.objects.count(), InboxEntry.objects.count()) == (0, 0)
    with connections[on_postgresql].cursor() as cursor:
        sleeping = (
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%%pg_sleep(3600)'"
        )
        cursor.execute(sleeping)
        assert cursor.fetchone() == (0,)


def test_a_handler_that_swallows_its_interruption_has_failed_all_the_same(home: str) -> None:
    def stubborn(received: DomainEvent) -> None:
        Order.objects.create(number="1")
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                while time.monotonic() < end:
                    sum(range(100))
            except BaseException:  # noqa: S112 - just what it must not do
                continue

    with pytest.raises(HandlerTimeout):
        DjangoInbox().run(handler(stubborn, timeout=0.3), event())
    assert (Order.objects.count(), InboxEntry.objects.count()) == (0, 0)


def test_a_statement_of_sqlite_that_takes_too_long_is_interrupted(sqlite: str, settings: Any) -> None:
    settings.DATABASE_ROUTERS = [RouteTo(sqlite)]
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"

    def count(received: DomainEvent) -> None:
        with connections[sqlite].cursor() as cursor:
            cursor.execute(endless)

    with inbox_consumer(sqlite, handler(count, timeout=0.5)) as (consumer, _):
        wait_until(
            lambda: consumer.outcomes["shop.bill", "dead-lettered"], 30, lambda: str(consumer.outcomes)
        )
    assert InboxEntry.objects.count() == 0


# --- a database that goes away ----------------------------------------------------------


def end_backend(alias: str) -> None:
    """End the session of this thread at the server, as its restart does."""
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()

    def terminate() -> None:
        with connections[alias].cursor() as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    run_in_thread(terminate, alias).join(30)


def test_a_database_that_goes_away_under_a_handler_is_no_fault_of_the_event(on_postgresql: str) -> None:
    def work(received: DomainEvent) -> None:
        Order.objects.create(number=str(len(calls)))
        calls.append(received)
        if len(calls) == 1:
            end_backend(on_postgresql)
            Order.objects.create(number="on a connection that is gone")

    calls: list[DomainEvent] = []
    with pytest.raises(TransactionLost):
        DjangoInbox().run(handler(work), event())
    assert (Order.objects.count(), InboxEntry.objects.count()) == (0, 0)
    assert DjangoInbox().run(handler(work), event())
    assert (Order.objects.count(), InboxEntry.objects.count()) == (1, 1)


def test_a_database_that_goes_away_before_the_commit_is_no_fault_of_the_event(on_postgresql: str) -> None:
    def work(received: DomainEvent) -> None:
        Order.objects.create(number="1")
        end_backend(on_postgresql)

    with pytest.raises((TransactionLost, TransactionManagementError)) as raised:
        DjangoInbox().run(handler(work), event())
    assert isinstance(raised.value, TransactionLost)


def test_the_subscriber_waits_for_the_database_and_runs_the_handler_again(on_postgresql: str) -> None:
    def work(received: DomainEvent) -> None:
        calls.append(received)
        if len(calls) < 3:
            end_backend(on_postgresql)
        Order.objects.create(number=str(len(calls)))

    calls: list[DomainEvent] = []
    with inbox_consumer(on_postgresql, handler(work)) as (consumer, _):
        wait_until(lambda: consumer.outcomes["shop.bill", "handled"], 60, lambda: str(consumer.outcomes))
    assert len(calls) == 3
    assert [call.retries for call in calls] == [0, 0, 0]
    assert list(consumer.outcomes) == [("shop.bill", "handled")]
    assert Order.objects.get().number == "3"


@pytest.mark.parametrize("error", [Retry(1), ValueError("no")])
def test_a_handler_that_decides_otherwise_has_its_way(on_postgresql: str, error: Exception) -> None:
    def work(received: DomainEvent) -> None:
        end_backend(on_postgresql)
        try:
            Order.objects.create(number="1")
        except DatabaseError:
            raise error from None

    with pytest.raises(Retry if isinstance(error, Retry) else TransactionLost):
        DjangoInbox().run(handler(work), event())


def test_a_handler_that_closes_the_connection_itself_has_failed(home: str) -> None:
    def work(received: DomainEvent) -> None:
        connection_of = connections[home]
        connection_of.close()
        Order.objects.create(number="1")

    with pytest.raises((TransactionManagementError, DatabaseError)) as raised:
        DjangoInbox().run(handler(work), event())
    assert not isinstance(raised.value, TransactionLost)


def test_an_error_of_the_database_that_left_the_connection_whole_is_the_handlers(home: str) -> None:
    def work(received: DomainEvent) -> None:
        raise OperationalError("of some other kind")

    with pytest.raises(OperationalError):
        DjangoInbox().run(handler(work), event())


@contextmanager
def inbox_consumer(alias: str, bound: Handler, **options: Any) -> Iterator[tuple[Consumer, DomainEvent]]:
    """Consume one event, published before, with the inbox in the database ``alias``."""
    url = f"memory://{alias}-{threading.get_ident()}-{time.monotonic_ns()}"
    settings = config.parse({"URL": url, "SUBSCRIBER": options})
    assert isinstance(settings, BrokerSettings)
    transport = open_transport(settings)
    transport.declare(subscription_of(bound, settings.subscriber))
    received: DomainEvent = DomainEvent("order.placed", {})
    transport.publish([encode(received)])
    transport.close()
    consumer = Consumer([bound], settings, DjangoInbox())
    thread = threading.Thread(target=consumer.run)
    thread.start()
    try:
        yield consumer, received
    finally:
        consumer.stop()
        thread.join(60)
        assert not thread.is_alive()
