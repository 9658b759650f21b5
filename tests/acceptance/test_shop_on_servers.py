"""The shop on PostgreSQL and RabbitMQ: a thousand orders, with processes killed in the middle.

Beside the account that the shop draws up itself, its tables are asked here with SQL, and a
queue of our own sees every message that the relay sends.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pika
import psycopg
import pytest

from domain_event_broker import DomainEvent
from tests.acceptance.shop import account_of, run_the_show
from tests.harness.postgres import PrivatePostgreSQL

ORDERS = 1000

#: Tables of effects, with the handler that writes one row for each event.
EFFECTS = {
    "orders_timelineentry": "orders-timeline",
    "payments_payment": "payments-charge",
    "shipping_parcel": "shipping-pack",
    "shipping_shipment": "shipping-ship",
}


@pytest.fixture
def database_url(postgres_server: PrivatePostgreSQL, fresh_name: Callable[[str], str]) -> str:
    """An empty database."""
    return postgres_server.create_database(fresh_name("shop").replace("-", "_"))


class Spy:
    """A queue that is bound to everything the shop publishes."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._channel.exchange_declare("domain-events", "topic", durable=True)
        self._channel.queue_declare("spy", durable=True)
        self._channel.queue_bind("spy", "domain-events", "#")

    def events(self) -> Iterator[DomainEvent]:
        """Take out and return what arrived, in order."""
        while True:
            method, _, body = self._channel.basic_get("spy", auto_ack=True)
            if method is None:
                return
            yield DomainEvent.from_json(body)

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()


def test_a_thousand_orders_survive_kill_9_of_relay_and_subscriber(
    database_url: str, broker_url: str, tmp_path: Path
) -> None:
    Spy(broker_url).close()
    done = run_the_show(
        tmp_path, "--orders", str(ORDERS), "--kill", DATABASE_URL=database_url, DOMAIN_EVENT_BROKER=broker_url
    )
    assert done.returncode == 0, done.stdout
    assert "killed with -9" in done.stdout
    assert account_of(done.stdout)[2:] == (0, 0, 1), "nothing waits or is parked; one order is for the moon"

    with psycopg.connect(database_url) as database:
        assert _rows(database, "SELECT count(*) FROM orders_order") == [(ORDERS,)]
        _assert_every_effect_once(database)
        _assert_every_order_has_an_end(database)
        sent = _rows(
            database,
            "SELECT event_id, ordering_key FROM domain_event_broker_archive ORDER BY outbox_id",
        )
    spy = Spy(broker_url)
    seen = list(spy.events())
    spy.close()
    assert {event.uuid_string for event in seen} == {event_id for event_id, _ in sent}
    assert _order_of_first_arrival(seen) == _by_key(sent), "events of an order leave as they were published"


def _assert_every_effect_once(database: psycopg.Connection) -> None:
    for table, handler in EFFECTS.items():
        counts = _rows(database, f"SELECT count(*), count(DISTINCT event_id) FROM {table}")
        entries = _rows(
            database, f"SELECT count(*) FROM domain_event_broker_inbox WHERE consumer = '{handler}'"
        )
        assert counts == [(entries[0][0], entries[0][0])], table
    twice = "SELECT order_number FROM payments_payment GROUP BY order_number HAVING count(*) > 1"
    assert _rows(database, twice) == [], "nobody is charged twice"


def _assert_every_order_has_an_end(database: psycopg.Connection) -> None:
    ends = dict(_rows(database, "SELECT status, count(*) FROM orders_order GROUP BY status"))
    declined = _rows(database, "SELECT count(*) FROM payments_payment WHERE status = 'declined'")[0][0]
    assert ends == {"paid": 1, "declined": declined, "shipped": ORDERS - declined - 1}
    assert declined > 0


def _order_of_first_arrival(events: list[DomainEvent]) -> dict[str, list[str]]:
    """Return the events of each order as they came, without what came again."""
    seen = dict.fromkeys((event.uuid_string, event.domain_object_id or "") for event in events)
    return _by_key(list(seen))


def _by_key(events: list[Any]) -> dict[str, list[str]]:
    keys = defaultdict(list)
    for event_id, key in events:
        keys[key].append(event_id)
    return dict(keys)


def _rows(database: psycopg.Connection, query: str) -> list[Any]:
    return database.execute(query).fetchall()
