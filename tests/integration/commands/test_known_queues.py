"""The memory of queues: a subscriber starts with or without it."""

from __future__ import annotations

import logging

import pytest
from django.db import connection

from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.known_queues import KnownQueues, Leftovers
from domain_event_broker.django.transport_models import TransportQueue
from domain_event_broker.ports import Subscription

pytestmark = pytest.mark.django_db

RABBITMQ = ("amqp://nobody.asks:5672/",)


def test_what_was_bound_is_remembered_and_forgotten_by_key() -> None:
    known = KnownQueues(BrokerSettings(RABBITMQ))
    known.remember([Subscription("charge", ("a", "b")), Subscription("mail", ("a",))])
    known.remember([Subscription("charge", ("b", "c"))])
    assert known.leftovers([Subscription("charge", ("c",))]) == Leftovers(
        handlers={"mail": ("a",)}, keys={"charge": ("a", "b")}
    )
    known.forget("charge", ("a",))
    known.forget("mail", ("a",))
    assert known.leftovers([Subscription("charge", ("c",))]) == Leftovers(
        handlers={"mail": ()}, keys={"charge": ("b",)}
    )


def test_exchanges_are_remembered_apart() -> None:
    KnownQueues(BrokerSettings(RABBITMQ, exchange="one")).remember([Subscription("charge", ("a",))])
    other = KnownQueues(BrokerSettings(RABBITMQ, exchange="other"))
    other.remember([Subscription("charge", ("b",))])
    assert other.leftovers([Subscription("charge", ())]).keys == {"charge": ("b",)}


def test_what_is_known_is_not_written_again(django_assert_num_queries) -> None:  # type: ignore[no-untyped-def]
    known = KnownQueues(BrokerSettings(RABBITMQ))
    known.remember([Subscription("charge", ("a", "b"))])
    with django_assert_num_queries(1):
        known.remember([Subscription("charge", ("b",))])


def test_nothing_is_remembered_of_a_broker_in_memory() -> None:
    known = KnownQueues(BrokerSettings(("memory://x",)))
    known.remember([Subscription("charge", ("a",))])
    assert not TransportQueue.objects.exists()
    assert known.leftovers([]) == Leftovers({}, {})


@pytest.mark.django_db(transaction=True)
def test_a_database_that_cannot_be_asked_keeps_no_subscriber_from_starting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    table = TransportQueue._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_gone")
    try:
        with caplog.at_level(logging.WARNING, "domain_event_broker.queues"):
            KnownQueues(BrokerSettings(RABBITMQ)).remember([Subscription("charge", ("a",))])
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table}_gone RENAME TO {table}")
    assert "could not be noted in database 'default'" in caplog.text
