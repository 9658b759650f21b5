"""The oracle: where each event is, asked of tables and queues, and what the law says to that.

The truth is the business row, written in the transaction that published the event. An effect is a
row without any constraint, so one that happened twice is there twice.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import pika
import pika.exceptions

from domain_event_broker.config import parse
from domain_event_broker.ports import DeadLetter, Decision
from domain_event_broker.transports import open_transport
from domain_event_broker.transports.rabbitmq.ladder import LADDER_MS
from domain_event_broker.transports.rabbitmq.topology import delay_name, letters_name

Query = Callable[[str], list[Any]]


class BrokerView(Protocol):
    """What a broker holds, looked at from outside."""

    def depths(self, handlers: Iterable[str]) -> dict[str, int]:
        """Return how many events are in queue and delays of each handler."""

    def queued(self, handler: str) -> list[str]:
        """Return the ids of events in queue and delays of a handler, in their order."""

    def take(self, handler: str) -> list[str]:
        """Take out what is in the queue; return the ids, in their order."""

    def letters(self, handler: str) -> list[tuple[str, str]]:
        """Return id and reason of each dead letter."""

    def empty(self, handlers: Iterable[str]) -> None:
        """Delete what is in the queues."""


class RabbitMQView:
    """Queues are read with basic.get on a connection whose end gives all back."""

    def __init__(self, url: str) -> None:
        self._url = url

    def depths(self, handlers: Iterable[str]) -> dict[str, int]:
        """Return how many events are in queue and delays of each handler."""
        with closing(self._transport()) as transport:
            stats = transport.stats(list(handlers))
        return {name: each.ready + each.delayed for name, each in stats.items()}

    def queued(self, handler: str) -> list[str]:
        """Return the ids of events in queue and delays of a handler, in their order."""
        names = [handler, *(delay_name(handler, step) for step in LADDER_MS)]
        with closing(self._connection()) as connection:
            return [event_id for name in names for event_id in _read(connection, name)]

    def take(self, handler: str) -> list[str]:
        """Take out what is in the queue; return the ids, in their order.

        Those that come again because the connection ended are there twice.
        """
        found: list[str] = []
        with suppress(pika.exceptions.AMQPError), closing(self._connection()) as connection:
            channel = connection.channel()
            count = channel.queue_declare(handler, passive=True).method.message_count
            for _ in range(count):
                method, properties, _ = channel.basic_get(handler)
                if method is None:
                    break
                found.append(properties.message_id)
                channel.basic_ack(method.delivery_tag)
        return found

    def letters(self, handler: str) -> list[tuple[str, str]]:
        """Return id and reason of each dead letter."""
        found: list[tuple[str, str]] = []

        def look(letter: DeadLetter) -> Decision:
            reason = f"{letter.failure.reason} {letter.failure.error_type}" if letter.failure else "?"
            found.append((letter.event_id, reason.strip()))
            return Decision.LEAVE

        with closing(self._transport()) as transport:
            transport.dead_letters(handler).sift(look)
        return found

    def empty(self, handlers: Iterable[str]) -> None:
        """Delete what is in the queues; queues that do not exist are empty."""
        with closing(self._connection()) as connection:
            for name in handlers:
                for each in (name, letters_name(name), *(delay_name(name, step) for step in LADDER_MS)):
                    _purge(connection, each)

    def _connection(self) -> pika.BlockingConnection:
        return pika.BlockingConnection(pika.URLParameters(self._url))

    def _transport(self) -> Any:
        settings = parse(self._url)
        assert settings is not None
        return open_transport(settings)


class DatabaseView:
    """The tables of the ``database:`` transport."""

    def __init__(self, sql: Query) -> None:
        self._sql = sql

    def depths(self, handlers: Iterable[str]) -> dict[str, int]:
        """Return how many events are in queue and delays of each handler."""
        rows = self._sql(
            "SELECT q.name, count(d.id) FROM domain_event_broker_queue q "
            "LEFT JOIN domain_event_broker_delivery d ON d.queue_id = q.id GROUP BY q.name"
        )
        return {name: count for name, count in rows if name in set(handlers)}

    def queued(self, handler: str) -> list[str]:
        """Return the ids of events in queue and delays of a handler, in their order."""
        return [event_id for (event_id,) in self._sql(_of_queue("event_id", "delivery", handler))]

    def take(self, handler: str) -> list[str]:
        """Nothing is taken: a table may grow."""
        return []

    def letters(self, handler: str) -> list[tuple[str, str]]:
        """Return id and reason of each dead letter."""
        rows = self._sql(_of_queue("event_id, headers", "dead", handler))
        return [(event_id, _reason(headers)) for event_id, headers in rows]

    def empty(self, handlers: Iterable[str]) -> None:
        """Nothing to do: the stage empties the tables."""


def _of_queue(columns: str, table: str, handler: str) -> str:
    queue = f"SELECT id FROM domain_event_broker_queue WHERE name = '{handler}'"
    return f"SELECT {columns} FROM domain_event_broker_{table} WHERE queue_id = ({queue}) ORDER BY id"


def _reason(headers: str) -> str:
    written = json.loads(headers)
    return " ".join(str(written[name]) for name in sorted(written) if "reason" in name or "type" in name)


def _read(connection: pika.BlockingConnection, queue: str) -> list[str]:
    channel = connection.channel()
    found: list[str] = []
    try:
        while True:
            method, properties, _ = channel.basic_get(queue)
            if method is None:
                channel.close()  # what was read goes back, in its order
                return found
            found.append(properties.message_id)
    except pika.exceptions.ChannelClosedByBroker:
        return found


def _purge(connection: pika.BlockingConnection, queue: str) -> None:
    channel = connection.channel()
    try:
        channel.queue_purge(queue)
        channel.close()
    except pika.exceptions.ChannelClosedByBroker:
        return


@dataclass(slots=True)
class HandlerAccount:
    """Where the events of one handler are; each figure counts events, but ``copies`` counts copies."""

    handled: set[str] = field(default_factory=set)
    queued: set[str] = field(default_factory=set)
    dead: dict[str, str] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    phantom: set[str] = field(default_factory=set)
    #: Effects that happened more than once.
    twice: set[str] = field(default_factory=set)
    #: Handled and dead-lettered at once: a copy of the event had another end.
    both: set[str] = field(default_factory=set)
    copies: int = 0


@dataclass(slots=True)
class Account:
    """The law, event by event: ``published = handled + waiting + parked + dead-lettered``."""

    published: set[str]
    outbox: set[str]
    parked: set[str]
    handlers: dict[str, HandlerAccount]
    #: Keys whose events left the outbox in another order than they were published in.
    disordered: dict[str, list[int]]
    #: Copies of events beyond the first that the broker got from relays.
    sent_again: int = 0

    @classmethod
    def draw(
        cls, sql: Query, broker: BrokerView, handlers: Sequence[str], spied: Sequence[str] = ()
    ) -> Account:
        """Ask tables and queues.

        :param spied: what was taken out of the queue of the spy before.
        """
        deeds = {event_id: (key, number) for event_id, key, number in sql(_DEEDS)}
        outbox = {event_id for (event_id,) in sql("SELECT event_id FROM domain_event_broker_outbox")}
        held = dict(sql("SELECT event_id, state FROM domain_event_broker_held"))
        parked = {event_id for event_id, state in held.items() if state == "parked"}
        waiting = outbox | (set(held) - parked)
        spied = [*spied, *broker.queued("spy")]
        account = cls(set(deeds), waiting, parked, {}, _disorder(spied, deeds), len(spied) - len(set(spied)))
        for name in handlers:
            account.handlers[name] = account._of_handler(name, sql, broker)
        return account

    def _of_handler(self, name: str, sql: Query, broker: BrokerView) -> HandlerAccount:
        rows = sql(f"SELECT event_id FROM faults_effect WHERE handler = '{name}'")
        effects = Counter(event_id for (event_id,) in rows)
        queued, letters = broker.queued(name), broker.letters(name)
        mine = HandlerAccount(set(effects), set(queued), dict(letters))
        mine.copies = len(queued) + len(letters)
        mine.twice = {event_id for event_id, count in effects.items() if count > 1}
        mine.both = set(effects) & set(mine.dead)
        somewhere = mine.handled | mine.queued | set(mine.dead) | self.outbox | self.parked
        mine.lost = self.published - somewhere
        mine.phantom = somewhere - self.published
        return mine

    def violations(self) -> list[str]:
        """What breaks the law, in words; empty: it holds."""
        found = [f"order of key {key} not kept: {numbers}" for key, numbers in self.disordered.items()]
        for name, mine in self.handlers.items():
            for what in ("lost", "phantom", "twice"):
                events = getattr(mine, what)
                if events:
                    found.append(f"{name}: {len(events)} {what}: {sorted(events)[:5]}")
        return found


_DEEDS = "SELECT event_id, key, number FROM faults_deed"


def _disorder(spied: Sequence[str], deeds: dict[str, tuple[str, int]]) -> dict[str, list[int]]:
    """Return the numbers around each place at which a key's first arrivals do not ascend."""
    arrived: dict[str, list[int]] = defaultdict(list)
    for event_id in dict.fromkeys(spied):
        if event_id in deeds:
            key, number = deeds[event_id]
            arrived[key].append(number)
    return {key: _around(numbers) for key, numbers in arrived.items() if numbers != sorted(numbers)}


def _around(numbers: Sequence[int]) -> list[int]:
    at = next(i for i in range(1, len(numbers)) if numbers[i] < numbers[i - 1])
    return list(numbers[max(0, at - 3) : at + 3])
