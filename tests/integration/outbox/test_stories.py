"""Stories, options and typed events in the tables, and the releases that meet there while one is deployed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

import pika
import pytest
from django.core.management import call_command
from django.db import connections, transaction
from pydantic import ValidationError

from domain_event_broker import (
    DomainEvent,
    EventModel,
    EventOptions,
    RabbitMQOptions,
    config,
    correlated,
    publish_domain_event,
    publish_domain_events,
)
from domain_event_broker.config import OutboxSettings
from domain_event_broker.django.admin import moves
from domain_event_broker.django.models import ArchivedEvent, HeldEvent, OutboxEvent
from domain_event_broker.django.relay_outbox import DjangoRelayOutbox
from domain_event_broker.errors import InvalidEvent, OutboxNotMigrated, UnsupportedOption
from domain_event_broker.events import HEADER_CAUSATION_ID, HEADER_CORRELATION_ID, HEADER_SCHEMA_VERSION
from domain_event_broker.options import read
from domain_event_broker.ports import Sent
from domain_event_broker.relay import Relay
from tests.djangoapp.databases import database, sqlite_file
from tests.harness.waiting import wait_until
from tests.integration.outbox.content import publish, refuse, send_all

MakeRelay = Callable[..., DjangoRelayOutbox]


class OrderPlaced(EventModel, routing_key="order.{country}.placed", version=2, object_id="number"):
    number: int
    country: str


@dataclass
class Line:
    sku: str
    amount: int


# --- stories ----------------------------------------------------------------------------------


def test_an_event_is_found_by_its_story_wherever_it_is(alias: str, make_relay: MakeRelay) -> None:
    later = datetime.now(timezone.utc) + timedelta(hours=1)
    with correlated("story", "cause"):
        publish(alias, 1)
        send_all(make_relay(alias))
        publish(alias, 2)
        publish_domain_event("test.done", {"number": 3}, using=alias, deliver_at=later)
    for home in (OutboxEvent, ArchivedEvent, HeldEvent):
        (row,) = home._default_manager.using(alias).filter(correlation_id="story")
        written = {HEADER_CORRELATION_ID: "story", HEADER_CAUSATION_ID: "cause"}
        assert row.to_message().headers == written


def test_an_event_that_begins_a_story_is_found_by_its_own_identity(alias: str) -> None:
    event = publish(alias, 1)
    (row,) = OutboxEvent.objects.using(alias).filter(correlation_id=event.uuid_string)
    assert row.headers == ""


def test_a_story_survives_refusal_and_the_way_back(alias: str, make_relay: MakeRelay) -> None:
    with correlated("story"):
        publish(alias, 1, key="k")
    relay = make_relay(alias)
    lease = relay.renew()
    refuse(relay, lease, relay.fetch(lease, 10), retry_in=0.0)
    (row,) = _fetch_again(relay)
    assert row.message.headers == {HEADER_CORRELATION_ID: "story"}
    assert OutboxEvent.objects.using(alias).get().correlation_id == "story"


def test_a_story_survives_being_sent_again_from_the_archive(alias: str, make_relay: MakeRelay) -> None:
    with correlated("story"):
        publish(alias, 1)
    send_all(make_relay(alias))
    moves.publish_again(ArchivedEvent.objects.using(alias).all(), lambda rows: None)
    row = OutboxEvent.objects.using(alias).get()
    assert (row.correlation_id, row.to_message().headers) == ("story", {HEADER_CORRELATION_ID: "story"})


# --- options ----------------------------------------------------------------------------------


@pytest.fixture
def on_rabbitmq(settings: Any) -> None:
    """A project with RabbitMQ, which need not run: nothing is sent here."""
    settings.DOMAIN_EVENT_BROKER = "amqp://localhost"


@pytest.mark.usefixtures("on_rabbitmq")
def test_options_wait_with_the_event_and_reach_the_broker_unchanged(
    alias: str, make_relay: MakeRelay
) -> None:
    asked = RabbitMQOptions(priority=3, expiration=60, headers={"tenant": "acme"})
    publish_domain_event("test.done", {"number": 1}, using=alias, options=asked)
    relay = make_relay(alias)
    lease = relay.renew()
    rows = relay.fetch(lease, 10)
    relay.settle(lease, [Sent(row) for row in rows], [])
    archived = ArchivedEvent.objects.using(alias).get().to_message()
    for message in (rows[0].message, archived):
        assert read(message.headers, "rabbitmq") == {"priority": 3, "expires_in": 60_000}
        assert message.headers["tenant"] == "acme"


@pytest.mark.usefixtures("on_rabbitmq")
def test_options_of_a_batch_are_those_of_each_event_and_of_the_call(alias: str) -> None:
    urgent = OrderPlaced(number=1, country="de").with_options(RabbitMQOptions(priority=4))
    plain: DomainEvent = DomainEvent("test.done", {})
    publish_domain_events([urgent, plain], using=alias, options=EventOptions(headers={"tenant": "acme"}))
    rows = [row.to_message().headers for row in OutboxEvent.objects.using(alias).order_by("id")]
    assert [read(headers, "rabbitmq") for headers in rows] == [{"priority": 4}, {}]
    assert [headers["tenant"] for headers in rows] == ["acme", "acme"]


def test_options_of_another_broker_are_refused_before_anything_is_stored(alias: str, settings: Any) -> None:
    settings.DOMAIN_EVENT_BROKER = "kafka://localhost"
    with pytest.raises(UnsupportedOption, match="RabbitMQOptions"):
        publish_domain_event("test.done", {}, using=alias, options=RabbitMQOptions(priority=3))
    assert not OutboxEvent.objects.using(alias).exists()


# --- typed events and dataclasses -------------------------------------------------------------


def test_a_typed_event_is_stored_with_its_key_object_and_version(alias: str) -> None:
    event = publish_domain_event(OrderPlaced(number=7, country="de"), using=alias)
    row = OutboxEvent.objects.using(alias).get()
    assert (row.routing_key, row.ordering_key) == ("order.de.placed", "7")
    assert row.to_message().headers == {HEADER_SCHEMA_VERSION: 2}
    assert OrderPlaced.from_event(event) == OrderPlaced(number=7, country="de")


def test_what_the_call_says_of_a_typed_event_wins(alias: str) -> None:
    event = publish_domain_event(
        OrderPlaced(number=7, country="de"),
        domain_object_id="other",
        uuid_string="mine",
        timestamp=1.5,
        using=alias,
    )
    row = OutboxEvent.objects.using(alias).get()
    assert (row.event_id, row.ordering_key, row.timestamp) == ("mine", "other", 1.5)
    assert event.uuid_string == "mine"


def test_nothing_of_a_batch_is_stored_if_one_event_is_invalid(alias: str) -> None:
    events = [OrderPlaced(number=1, country="de"), OrderPlaced(number=2, country="d.e")]
    with pytest.raises(InvalidEvent, match=r"country='d\.e'"):
        publish_domain_events(events, using=alias)
    with pytest.raises(ValidationError):
        publish_domain_events([OrderPlaced(number="x", country="de")], using=alias)  # type: ignore[arg-type]
    assert not OutboxEvent.objects.using(alias).exists()


def test_dataclasses_and_models_are_stored_as_the_dicts_of_their_fields(alias: str) -> None:
    publish_domain_event("test.done", Line("a", 1), using=alias)
    publish_domain_event("test.done", {"lines": [Line("a", 1)]}, using=alias)
    publish_domain_event("test.done", OrderPlaced(number=1, country="de"), using=alias)
    rows = [row.to_message().body for row in OutboxEvent.objects.using(alias).order_by("id")]
    line = {"sku": "a", "amount": 1}
    expected = [line, {"lines": [line]}, {"number": 1, "country": "de"}]
    assert [DomainEvent.from_json(body).data for body in rows] == expected


@pytest.mark.parametrize("wrong", [OrderPlaced, None, {"routing_key": "a.b"}])
def test_what_is_no_event_is_refused_with_what_it_is(alias: str, wrong: Any) -> None:
    with pytest.raises(InvalidEvent, match="neither a DomainEvent nor an instance of an EventModel"):
        publish_domain_events([wrong], using=alias)


def test_data_must_be_given_with_a_routing_key_and_not_with_a_typed_event(alias: str) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'data'"):
        publish_domain_event("test.done", using=alias)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="OrderPlaced has data of its own"):
        publish_domain_event(OrderPlaced(number=1, country="de"), {}, using=alias)  # type: ignore[call-overload]


# --- releases side by side --------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def old_tables(
    request: pytest.FixtureRequest, unblocked: None, tmp_path: Any, fresh_name: Callable[[str], str]
) -> Iterator[str]:
    """Return the alias of a database whose tables are those of the release before."""
    if request.param == "sqlite":
        url = sqlite_file(tmp_path, "old")
    else:
        server = {"postgresql": "postgres", "mariadb": "mariadb"}[request.param]
        name = fresh_name("old").replace("-", "_")
        url = request.getfixturevalue(f"{server}_server").create_database(name)
    with database(f"old_{request.param}", url, migrate=False) as alias:
        _migrate(alias, "0002_tune_tables")
        yield alias


def test_the_release_before_goes_on_publishing_into_the_new_tables(alias: str, make_relay: MakeRelay) -> None:
    event: DomainEvent = DomainEvent("test.done", {"number": 1})
    _insert_as_the_release_before(alias, event)
    assert send_all(make_relay(alias)) == [1]
    row = ArchivedEvent.objects.using(alias).get()
    assert (row.event_id, row.correlation_id) == (event.uuid_string, None)


def test_publishing_into_the_tables_of_the_release_before_names_the_command(old_tables: str) -> None:
    with pytest.raises(OutboxNotMigrated, match=f"manage.py migrate --database {old_tables}"):
        publish(old_tables, 1)
    with transaction.atomic(using=old_tables):
        with pytest.raises(OutboxNotMigrated):
            publish(old_tables, 2)
        transaction.set_rollback(True, using=old_tables)


def test_a_relay_notices_the_tables_of_the_release_before_ahead_of_sending(
    old_tables: str, make_relay: MakeRelay
) -> None:
    _insert_as_the_release_before(old_tables, DomainEvent("test.done", {"number": 1}))
    relay = make_relay(old_tables)
    lease = relay.renew()
    with pytest.raises(OutboxNotMigrated, match=r"manage\.py migrate"):
        relay.fetch(lease, 10)


def test_what_waited_in_the_old_tables_is_sent_after_the_migration(
    old_tables: str, make_relay: MakeRelay
) -> None:
    _insert_as_the_release_before(old_tables, DomainEvent("test.done", {"number": 1}))
    _migrate(old_tables)
    publish(old_tables, 2)
    assert sorted(send_all(make_relay(old_tables))) == [1, 2]


def test_the_migration_can_be_taken_back_and_made_again(old_tables: str) -> None:
    for target in ("0004_archive_by_correlation", "0002_tune_tables", "0004_archive_by_correlation"):
        _migrate(old_tables, target)
    assert _has_index(old_tables)


@pytest.mark.parametrize("old_tables", ["postgresql"], indirect=True)
def test_an_index_that_was_cut_short_is_built_anew(old_tables: str) -> None:
    """Only PostgreSQL leaves a part of an index behind."""
    _migrate(old_tables, "0003_correlation")
    with connections[old_tables].cursor() as cursor:
        cursor.execute("CREATE INDEX deb_archive_story ON domain_event_broker_archive (id)")
    _migrate(old_tables)
    assert _has_index(old_tables)


def _migrate(alias: str, target: str = "") -> None:
    arguments = ["domain_event_broker", *([target] if target else [])]
    call_command("migrate", *arguments, database=alias, verbosity=0)


def _has_index(alias: str) -> bool:
    connection = connections[alias]
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, "domain_event_broker_archive")
    return any(each["index"] and each["columns"] == ["correlation_id"] for each in found.values())


def _insert_as_the_release_before(alias: str, event: DomainEvent) -> None:
    """Insert with the statement that the release before has."""
    columns = "event_id, bucket, ordering_key, routing_key, body, headers, timestamp, attempts, created_at"
    places = "%s, 3, NULL, %s, %s, '', %s, 0, %s"
    values = [event.uuid_string, event.routing_key, event.to_json(), event.timestamp]
    now = connections[alias].ops.adapt_datetimefield_value(datetime.now(timezone.utc))
    with connections[alias].cursor() as cursor:
        cursor.execute(
            f"INSERT INTO domain_event_broker_outbox ({columns}) VALUES ({places})",
            [*values, now],
        )


def _fetch_again(relay: DjangoRelayOutbox) -> Any:
    """Return what a relay gets after what it refused has come due."""
    return wait_until(lambda: relay.fetch(relay.renew(), 10), 30)


# --- all the way ------------------------------------------------------------------------------


def test_options_and_story_go_from_the_outbox_to_rabbitmq_and_once_more_from_the_archive(
    sqlite: str, settings: Any, rabbitmq_server: Any, fresh_name: Callable[[str], str]
) -> None:
    settings.DOMAIN_EVENT_BROKER = rabbitmq_server.url()
    queue = fresh_name("story")
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_server.url())) as connection:
        channel = connection.channel()
        channel.exchange_declare("domain-events", "topic", durable=True)
        channel.queue_declare(queue, exclusive=True)
        channel.queue_bind(queue, "domain-events", queue)
        asked = RabbitMQOptions(priority=3, expiration=600, headers={"tenant": "acme"})
        with correlated("story", "cause"):
            publish_domain_event(queue, {"number": 1}, using=sqlite, options=asked)
        first = _relayed(sqlite, channel, queue)
        moves.publish_again(ArchivedEvent.objects.using(sqlite).all(), lambda rows: None)
        again = _relayed(sqlite, channel, queue)
    for properties in (first, again):
        assert (properties.priority, properties.expiration) == (3, "600000")
        assert properties.correlation_id == "story"
        assert properties.headers == {HEADER_CAUSATION_ID: "cause", "tenant": "acme"}
    assert first.message_id == again.message_id


def _relayed(alias: str, channel: Any, queue: str) -> Any:
    """Let a relay send what waits; return the properties of what came into the queue."""
    settings = config.current()
    assert settings is not None
    report = Relay(DjangoRelayOutbox(alias, OutboxSettings()), settings).run_once()
    assert report.sent == 1
    _, properties, _ = wait_until(lambda: _one(channel, queue), 30)
    return properties


def _one(channel: Any, queue: str) -> Any:
    found = channel.basic_get(queue, auto_ack=True)
    return found if found[0] is not None else None
