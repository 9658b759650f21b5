"""The actions on events while others work on the same rows, on each database."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction

from domain_event_broker.django.admin import moves
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, OutboxEvent
from tests.djangoapp.databases import database, run_in_thread, sqlite_file
from tests.harness.waiting import wait_until
from tests.integration.admin import stage


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mariadb"])
def migrated(
    request: pytest.FixtureRequest, django_db_blocker: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Return the alias of a database of each kind, which threads can share."""
    url: Callable[[], str] = {
        "sqlite": lambda: sqlite_file(Path(tmp_path_factory.mktemp("moves")), "moves"),
        "postgresql": lambda: request.getfixturevalue("postgres_server").create_database("moves"),
        "mariadb": lambda: request.getfixturevalue("mariadb_server").create_database("moves"),
    }[request.param]
    with django_db_blocker.unblock(), database(f"moves_{request.param}", url()) as alias:
        yield alias


@pytest.fixture
def alias(migrated: str) -> Iterator[str]:
    """Return the alias, with empty tables."""
    for model in (HeldEvent, OutboxEvent, ArchivedEvent):
        model._default_manager.using(migrated).all().delete()
    yield migrated
    connections[migrated].close()


class Witness:
    """Remembers the rows that were moved, as the admin log does."""

    def __init__(self) -> None:
        self.rows: list[Any] = []

    def __call__(self, rows: Sequence[Any]) -> None:
        self.rows.extend(rows)


def held(alias: str, count: int) -> list[HeldEvent]:
    return [stage.held(using=alias, key=f"order-{number}") for number in range(count)]


def test_a_row_that_another_transaction_has_in_hand_is_left_out(alias: str) -> None:
    if not connections[alias].features.has_select_for_update_skip_locked:
        pytest.skip("this database has no row locks: writers wait for each other")
    taken, free = held(alias, 2)
    locked, done = threading.Event(), threading.Event()

    def relay() -> None:
        with transaction.atomic(using=alias):
            list(HeldEvent.objects.using(alias).filter(pk=taken.pk).select_for_update())
            locked.set()
            done.wait(20)

    thread = run_in_thread(relay, alias)
    try:
        assert locked.wait(20)
        assert moves.retry(HeldEvent.objects.using(alias).all(), Witness()) == 1
        assert moves.discard(HeldEvent.objects.using(alias).filter(pk=taken.pk), Witness()) == 0
    finally:
        done.set()
        thread.join(20)
    assert HeldEvent.objects.using(alias).get(pk=taken.pk).state == HeldEvent.State.PARKED
    assert HeldEvent.objects.using(alias).get(pk=free.pk).state == HeldEvent.State.RETRYING


def test_two_people_who_discard_at_once_share_the_rows(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "BATCH", 5)
    held(alias, 60)
    witnesses, counts = [Witness(), Witness()], [0, 0]

    def discard(number: int) -> None:
        counts[number] = moves.discard(HeldEvent.objects.using(alias).all(), witnesses[number])

    _together(alias, lambda: discard(0), lambda: discard(1))
    # A row that one passed over because the other had it in hand was discarded by that one.
    assert not HeldEvent.objects.using(alias).exists()
    assert sum(counts) == 60
    assert Counter(row.pk for each in witnesses for row in each.rows).most_common(1)[0][1] == 1


def test_what_is_retried_while_a_relay_looks_is_sent_once(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moves, "BATCH", 5)
    events = held(alias, 60)

    def relay() -> None:
        wait_until(lambda: len(stage.look_as_a_relay(alias)) == 60, 60, "all events are back")

    _together(alias, lambda: moves.retry(HeldEvent.objects.using(alias).all(), Witness()), relay)
    assert not HeldEvent.objects.using(alias).exists()
    waiting = OutboxEvent.objects.using(alias).order_by("pk")
    assert [(row.pk, row.event_id) for row in waiting] == [(each.outbox_id, each.event_id) for each in events]


def test_events_are_published_again_in_their_order(alias: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moves, "BATCH", 3)
    events = [stage.sent(using=alias, key="order-7") for _ in range(8)]
    assert moves.publish_again(ArchivedEvent.objects.using(alias).all(), Witness()) == 8
    rows = stage.look_as_a_relay(alias)
    assert [row.message.event_id for row in rows] == [event.event_id for event in events]
    assert ArchivedEvent.objects.using(alias).count() == 8


def test_a_batch_whose_log_cannot_be_written_is_not_done(alias: str) -> None:
    held(alias, 3)

    def refuse(rows: Sequence[Any]) -> None:
        raise RuntimeError("the log is full")

    with pytest.raises(RuntimeError, match="the log is full"):
        moves.discard(HeldEvent.objects.using(alias).all(), refuse)
    assert HeldEvent.objects.using(alias).count() == 3


def _together(alias: str, *works: Callable[[], Any]) -> None:
    """Run all at once, each in a thread; raise what one of them raised."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> None:
        try:
            barrier.wait(20)
            work()
        except BaseException as error:
            errors.append(error)

    threads = [run_in_thread(lambda work=work: run(work), alias) for work in works]
    for thread in threads:
        thread.join(90)
    if errors:
        raise errors[0]
