"""The testing kit in Django projects: transactions decide what was published, in any kind of test."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import pytest
from django.contrib.auth.models import Group
from django.db import IntegrityError, transaction
from django.test import TestCase, TransactionTestCase, override_settings
from django.utils import timezone

from domain_event_broker import DomainEvent, Retry, publish_domain_event
from domain_event_broker.django.models import InboxEntry, OutboxEvent
from domain_event_broker.handlers import Handler
from domain_event_broker.testing import CapturedEvents, CaptureEventsMixin


def place(total: int = 25, **options: object) -> DomainEvent:
    """Publish what the tests look for."""
    return publish_domain_event("order.placed", {"total": total}, **options)


class Cancelled(Exception):
    """Ends a transaction."""


def place_and_cancel() -> None:
    """Publish in a transaction that is rolled back."""
    with contextlib.suppress(Cancelled), transaction.atomic():
        place(-1)
        raise Cancelled


def make_group(event: DomainEvent) -> None:
    """A handler with an effect in the database."""
    Group.objects.create(name=event.uuid_string)
    publish_domain_event("group.made", {"name": event.uuid_string})


MAKE_GROUP = Handler(call=make_group, name="make-group", binding_keys=("order.*",), max_retries=2)


class Scenario(CaptureEventsMixin):
    """What holds in a ``TestCase`` as well as in a ``TransactionTestCase``."""

    def test_an_event_is_captured_and_its_row_is_there(self) -> None:
        event = place()
        self.captured_events.assert_published("order.placed", {"total": 25})
        assert OutboxEvent.objects.get().event_id == event.uuid_string

    def test_what_is_rolled_back_was_not_published(self) -> None:
        place_and_cancel()
        with transaction.atomic():
            place_and_cancel()
            place(1)
        self.captured_events.assert_published("order.placed", {"total": 1})
        with pytest.raises(AssertionError, match="2 more in transactions that were rolled back"):
            self.captured_events.assert_published("order.placed", {"total": -1})

    def test_handlers_run_once_for_each_event_with_their_effects(self) -> None:
        event = place()
        place(30, uuid_string=event.uuid_string)
        report = self.captured_events.run_handlers([MAKE_GROUP])
        assert Group.objects.get().name == event.uuid_string
        assert InboxEntry.objects.count() == 1
        report.assert_handled("make-group", times=1)
        assert [run.outcome for run in report.runs] == ["handled", "duplicate"]
        self.captured_events.assert_published("group.made")
        assert [event.routing_key for event in report.unhandled] == ["group.made"]

    def test_what_a_failing_handler_did_is_rolled_back_and_not_published(self) -> None:
        def half(event: DomainEvent) -> None:
            make_group(event)
            if event.retries == 0:
                raise Retry(5)

        place()
        self.captured_events.run_handlers([Handler(half, "half", ("order.*",), max_retries=1)])
        assert Group.objects.count() == 1
        self.captured_events.assert_published("group.made", times=1)

    def test_async_handlers_run_too_with_their_effects(self) -> None:
        async def make(event: DomainEvent) -> None:
            await Group.objects.acreate(name=event.uuid_string)

        event = place()
        handler = Handler(make, "make", ("order.*",))
        self.captured_events.run_handlers([handler]).assert_handled("make")
        assert Group.objects.get().name == event.uuid_string

    def test_a_handler_that_fails_leaves_the_transaction_of_the_test_usable(self) -> None:
        def clash(event: DomainEvent) -> None:
            Group.objects.create(name="same")
            Group.objects.create(name="same")

        place()
        handler = Handler(clash, "clash", ("order.*",))
        report = self.captured_events.run_handlers([handler], allow_dead_letters=True)
        report.assert_dead_lettered("clash", IntegrityError)
        assert not Group.objects.exists()

    def test_a_scheduled_event_comes_when_its_time_has_come(self) -> None:
        place(1, deliver_at=timezone.now() + timedelta(hours=2))
        place(2)
        seen: list[int] = []
        handler = Handler(
            lambda event: seen.append(event.data["total"]), "seen", ("order.*",), idempotent=False
        )
        report = self.captured_events.run_handlers([handler])
        assert seen == [2, 1]
        assert 7190 < report.seconds < 7300

    def test_a_broker_that_is_switched_off_is_said_to_be(self) -> None:
        with override_settings(DOMAIN_EVENT_BROKER=None):
            place()
            with pytest.raises(AssertionError, match="the broker is switched off"):
                self.captured_events.assert_published("order.placed")


class InATestCase(Scenario, TestCase):
    """The test runs in a transaction that is rolled back at its end."""

    def test_running_the_hooks_of_a_commit_changes_nothing(self) -> None:
        with self.captureOnCommitCallbacks(execute=True):
            place()
        place()
        self.captured_events.assert_published("order.placed", times=2)


class InATransactionTestCase(Scenario, TransactionTestCase):
    """The test commits."""


@pytest.mark.django_db
def test_the_fixture_works_with_db(captured_events: CapturedEvents) -> None:
    place()
    place_and_cancel()
    captured_events.assert_published("order.placed")
    captured_events.run_handlers([MAKE_GROUP])
    assert Group.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_the_fixture_works_with_transactional_db(captured_events: CapturedEvents) -> None:
    place()
    place_and_cancel()
    captured_events.assert_published("order.placed")
    captured_events.run_handlers([MAKE_GROUP])
    assert Group.objects.exists()


@pytest.mark.django_db
def test_all_handlers_of_the_project_are_found(captured_events: CapturedEvents) -> None:
    place()
    report = captured_events.run_handlers()
    assert report.unhandled == [captured_events[0]], "the apps of the test project declare no handler for it"
