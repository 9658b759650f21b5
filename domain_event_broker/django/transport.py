"""The ``database:`` transport: queues in a database of the Django project, and no other server.

For teams that have no broker yet; one line of settings moves them to RabbitMQ. ``database:``
uses the database ``"default"``, ``database:ALIAS`` another one of ``DATABASES``.

An event is stored once for each handler bound for it. A receiver claims rows for
:data:`LOCK_SECONDS` and keeps renewing its claims while it goes on receiving; if its process
dies, they end by themselves. New rows are found by polling.
"""

from __future__ import annotations

import itertools
import json
import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from django.db import DataError, IntegrityError

from domain_event_broker.config import BrokerSettings
from domain_event_broker.django.transport_letters import DatabaseDeadLetters
from domain_event_broker.django.transport_models import DeadDelivery, QueuedDelivery, TransportQueue
from domain_event_broker.django.transport_rows import (
    CHUNK,
    ClaimedRow,
    DeliveryRows,
    depths,
    read_headers,
    write_headers,
)
from domain_event_broker.django.transport_session import Session
from domain_event_broker.errors import ConfigurationError, UnsupportedOption
from domain_event_broker.events import Message
from domain_event_broker.ports import (
    Action,
    Capabilities,
    Delivery,
    PublishOutcome,
    QueueStats,
    Settlement,
    Stored,
    Subscription,
)
from domain_event_broker.routing import matches

logger = logging.getLogger("domain_event_broker.transports.database")

#: Seconds after which the deliveries of a receiver that died are given to another.
LOCK_SECONDS = 30.0
#: Deaths after which an event is handled with no other under way: what is received with one that
#: kills its process dies with it, and must not be taken for the cause as often.
SUSPECT_CRASHES = 3
#: Seconds between two looks for locks that were written before a clock was set back.
STUCK_SECONDS = 30.0
#: Seconds between two looks for new deliveries: at first, after something came, and at most.
POLL_SECONDS = (0.02, 0.5)
#: Each look that finds nothing makes the time to the next one this many times longer.
POLL_FACTOR = 1.5


class DatabaseTransport:
    """Deliveries in tables of the Django project.

    :param settings: its URL is ``database:`` or ``database:ALIAS``; the exchange must be a topic one.
    :raises ConfigurationError: no such database, or its tables do not exist.
    :raises BrokerUnavailable: the database does not answer.
    """

    capabilities = Capabilities()
    #: Seconds for which a claim lasts without being renewed.
    lock_seconds = LOCK_SECONDS

    def __init__(self, settings: BrokerSettings) -> None:
        self._session = Session(_alias(settings))
        self._exchange = settings.exchange
        self._rows = DeliveryRows(self._session, secrets.randbits(62))
        self._subscriptions: dict[str, tuple[int, Subscription]] = {}
        self._held: dict[int, tuple[int, Delivery]] = {}
        self._numbers = itertools.count(1)
        self._careful: set[str] = set()
        self._stuck: set[tuple[int, int]] = set()
        self._look_for_stuck_at = time.monotonic() + STUCK_SECONDS
        self._renewed = 0.0
        self._poll = POLL_SECONDS[0]
        self._woken = threading.Event()
        # Fails here, and not at the first event, where the tables do not exist.
        self._session.run(lambda: TransportQueue.objects.using(self._session.alias).first())

    def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        """See :class:`~domain_event_broker.ports.Transport`.

        A batch is stored in one transaction, all of it or nothing.

        :raises ConfigurationError: called inside a transaction on this database: nothing would
            be stored until it commits.
        """
        self._session.refuse_transaction("publish")
        if not messages:
            return []
        # Read anew for each batch: a handler that subscribed before it began misses nothing.
        return self._publish_all(self._session.run(self._bound_queues), messages)

    def send_to(self, queue: str, messages: Sequence[Message]) -> list[PublishOutcome]:
        """See :class:`~domain_event_broker.ports.Addressing`.

        As dead letters it may be used inside a transaction: what is done then lives and dies with it.
        """
        named = TransportQueue.objects.using(self._session.alias).filter(name=queue)
        ids = self._session.run(lambda: list(named.values_list("id", flat=True)))
        return self._publish_all([(queue_id, ("#",)) for queue_id in ids], messages) if messages else []

    def subscribe(self, subscription: Subscription) -> None:
        """See :class:`~domain_event_broker.ports.Transport`."""
        self.declare(subscription)
        queue = self._find(subscription.name)
        self._subscriptions[subscription.name] = queue.id, subscription

    def declare(self, subscription: Subscription) -> None:
        """See :class:`~domain_event_broker.ports.Transport`."""
        if self.check(subscription):
            self._session.run(lambda: self._bind(subscription))

    def check(self, subscription: Subscription) -> list[str]:
        """See :class:`~domain_event_broker.ports.Transport`."""
        _check_options(subscription)
        queues = TransportQueue.objects.using(self._session.alias).filter(name=subscription.name)
        queue = self._session.run(queues.first)
        if queue is None:
            return [f"queue {subscription.name!r} does not exist"]
        bound = _bindings(queue.bindings).get(self._exchange, ())
        unbound = [key for key in subscription.binding_keys if key not in bound]
        return [f"queue {subscription.name!r} is not bound with {key!r}" for key in unbound]

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        """See :class:`~domain_event_broker.ports.Transport`.

        :raises ConfigurationError: called inside a transaction on this database.
        """
        self._session.refuse_transaction("receive")
        end = time.monotonic() + timeout
        while True:
            self._renew()
            self._end_stuck_locks()
            rooms = self._rooms() if limit > 0 else {}
            deliveries = self._claim(rooms, limit) if rooms else []
            left = end - time.monotonic()
            if deliveries or left <= 0 or self._woken.wait(min(left, self._pause(bool(rooms)))):
                self._woken.clear()
                return deliveries

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """See :class:`~domain_event_broker.ports.Transport`.

        All answers of a batch are one transaction: killed in it, none was given.

        :raises ConfigurationError: called inside a transaction on this database.
        """
        self._session.refuse_transaction("settle")
        held = {each.delivery.token: each for each in settlements if each.delivery.token in self._held}
        if held:
            ours = {self._held[number][0]: settlement for number, settlement in held.items()}
            self._session.run(lambda: self._settle(ours))
            for number in held:  # not before: what was not answered is given back by close()
                del self._held[number]
            self._poll = POLL_SECONDS[0]  # a retry may be due soon

    def wake(self) -> None:
        """See :class:`~domain_event_broker.ports.Transport`."""
        self._woken.set()

    def dead_letters(self, queue: str) -> DatabaseDeadLetters:
        """See :class:`~domain_event_broker.ports.Transport`."""
        return DatabaseDeadLetters(self._session, self._rows, queue)

    def stats(self, queues: Iterable[str]) -> dict[str, QueueStats]:
        """See :class:`~domain_event_broker.ports.Transport`."""
        names = list(queues)
        there = {queue.name for queue in self._session.run(self._all_queues)}
        figures = self._session.run(lambda: depths(self._session, names))
        return {
            name: QueueStats(exists=name in there, **{"in_flight": 0, **figures.get(name, {})})
            for name in names
        }

    def close(self) -> None:
        """See :class:`~domain_event_broker.ports.Transport`."""
        held, self._held = self._held, {}
        try:
            if held:
                ids = [row_id for row_id, _ in held.values()]
                self._session.run(lambda: self._rows.give_back(ids))
            self._session.close()
        except Exception as error:
            # Their locks will end: whoever closes because the database is away has that to see to.
            logger.debug("%d deliveries come back when their locks end: %s", len(held), error)

    # --- publishing ------------------------------------------------------------------------

    def _all_queues(self) -> list[TransportQueue]:
        return list(TransportQueue.objects.using(self._session.alias).order_by("id"))

    def _bound_queues(self) -> list[tuple[int, tuple[str, ...]]]:
        """Return the queues that are bound to our exchange, each with its binding keys."""
        bindings = [(queue.id, _bindings(queue.bindings)) for queue in self._all_queues()]
        return [(queue_id, each[self._exchange]) for queue_id, each in bindings if self._exchange in each]

    def _publish_all(
        self, queues: Sequence[tuple[int, tuple[str, ...]]], messages: Sequence[Message]
    ) -> list[PublishOutcome]:
        try:
            return self._publish(queues, messages)
        except (DataError, IntegrityError, ValueError):
            return [self._publish_one(queues, message) for message in messages]

    def _publish(
        self, queues: Sequence[tuple[int, tuple[str, ...]]], messages: Sequence[Message]
    ) -> list[PublishOutcome]:
        limit = self._session.run(lambda: self._session.max_event_bytes)
        copies = [_copies(queues, message, limit) for message in messages]
        rows = list(itertools.chain.from_iterable(copies))
        self._session.run(lambda: self._insert(rows))
        return [PublishOutcome(Stored.STORED if each else Stored.UNROUTABLE) for each in copies]

    def _publish_one(self, queues: Sequence[tuple[int, tuple[str, ...]]], message: Message) -> PublishOutcome:
        """Publish one of a batch in which some message cannot be stored, and tell if it is this one."""
        try:
            return self._publish(queues, [message])[0]
        except (DataError, IntegrityError, ValueError) as error:
            return PublishOutcome(Stored.REFUSED, " ".join(str(error).split()) or type(error).__name__)

    def _insert(self, rows: Sequence[QueuedDelivery]) -> None:
        # STORED is answered after this has committed: killed before, the relay sends again.
        with self._session.writing():
            self._rows.insert(rows)

    # --- subscribing -----------------------------------------------------------------------

    def _find(self, name: str) -> TransportQueue:
        return self._session.run(lambda: TransportQueue.objects.using(self._session.alias).get(name=name))

    def _bind(self, subscription: Subscription) -> None:
        """Add keys, and take none away: a process of the last release may still rely on them."""
        with self._session.writing():
            queues = TransportQueue.objects.using(self._session.alias)
            queues.get_or_create(name=subscription.name)
            queue = queues.select_for_update().get(name=subscription.name)
            bindings = dict(_bindings(queue.bindings))
            keys = (*bindings.get(self._exchange, ()), *subscription.binding_keys)
            bindings[self._exchange] = tuple(dict.fromkeys(keys))
            queue.bindings = json.dumps(bindings)
            queue.save(update_fields=["bindings"])

    # --- receiving -------------------------------------------------------------------------

    def _rooms(self) -> dict[int, int]:
        """Return how much each queue may deliver now, by its id; those that may nothing are left out."""
        held = Counter(delivery.queue for _, delivery in self._held.values())
        rooms = {
            queue_id: (1 if name in self._careful else subscription.prefetch) - held[name]
            for name, (queue_id, subscription) in self._subscriptions.items()
        }
        return {queue_id: room for queue_id, room in rooms.items() if room > 0}

    def _claim(self, rooms: Mapping[int, int], limit: int) -> list[Delivery]:
        milliseconds = round(self.lock_seconds * 1000)
        if not self._held:
            self._renewed = time.monotonic()
        rows = self._session.run(lambda: self._rows.claim(rooms, limit, milliseconds))
        names = {queue_id: name for name, (queue_id, _) in self._subscriptions.items()}
        deliveries = [self._hold(names[row.queue_id], row) for row in self._single_out(names, rows)]
        if deliveries:
            self._poll = POLL_SECONDS[0]
            # Another queue is first next time: one that always has something leaves room for others.
            name = deliveries[0].queue
            self._subscriptions[name] = self._subscriptions.pop(name)
        return deliveries

    def _single_out(self, names: Mapping[int, str], rows: Sequence[ClaimedRow]) -> list[ClaimedRow]:
        """Leave out events that several processes died with, but one, if it is alone.

        They are put back, and their queue gives nothing until what is under way is answered
        for; then one at a time, until one comes that is not suspect. Killed before they are
        back, they have died with us once more.
        """
        busy = {delivery.queue for _, delivery in self._held.values()}
        kept: list[ClaimedRow] = []
        for queue_id in dict.fromkeys(row.queue_id for row in rows):
            ours = [row for row in rows if row.queue_id == queue_id]
            unsuspected = [row for row in ours if row.crashes < SUSPECT_CRASHES]
            name = names[queue_id]
            if len(unsuspected) == len(ours):
                self._careful.discard(name)
            else:
                self._careful.add(name)
            kept += unsuspected or ([] if name in busy else ours[:1])
        back = {row.id for row in rows}.difference(row.id for row in kept)
        if back:
            self._session.run(lambda: self._rows.put_first(sorted(back)))
        return [row for row in rows if row.id not in back]

    def _hold(self, queue: str, row: ClaimedRow) -> Delivery:
        number = next(self._numbers)
        headers = read_headers(row.headers)
        delivery = Delivery(
            queue, row.body, row.routing_key, row.event_id, headers, row.retries, row.crashes, number
        )
        self._held[number] = row.id, delivery
        return delivery

    def _pause(self, polling: bool) -> float:
        """Return the time until the next look, or until the locks must be renewed."""
        if not polling:
            return self.lock_seconds / 3
        pause, self._poll = self._poll, min(self._poll * POLL_FACTOR, POLL_SECONDS[1])
        return pause

    def _renew(self) -> None:
        """Renew all locks, when a third of their time is over.

        What was lost is forgotten: we stood still for too long, and another receiver has it.
        """
        if not self._held or time.monotonic() - self._renewed < self.lock_seconds / 3:
            return
        self._renewed = time.monotonic()
        ids = [row_id for row_id, _ in self._held.values()]
        lost = self._session.run(lambda: self._rows.renew(ids, round(self.lock_seconds * 1000)))
        if lost:
            logger.warning("%d deliveries were given to another receiver: their locks had ended", len(lost))
            self._held = {number: each for number, each in self._held.items() if each[0] not in lost}

    def _end_stuck_locks(self) -> None:
        """End locks that end too far ahead, and that nobody has renewed since we looked before.

        The clock of the database was set back; a holder that lives writes a time of today.
        """
        if time.monotonic() < self._look_for_stuck_at:
            return
        self._look_for_stuck_at = time.monotonic() + max(STUCK_SECONDS, self.lock_seconds)
        queue_ids = [queue_id for queue_id, _ in self._subscriptions.values()]
        too_far = round(2 * self.lock_seconds * 1000)
        found = self._session.run(lambda: self._rows.held_beyond(queue_ids, too_far))
        self._session.run(lambda: self._rows.end_locks(found & self._stuck))
        self._stuck = found

    # --- settling --------------------------------------------------------------------------

    def _settle(self, settlements: Mapping[int, Settlement]) -> None:
        """Carry out answers, by the id of their row."""
        acts = {row_id: self._act(settlement) for row_id, settlement in settlements.items()}
        acknowledged = [row_id for row_id, act in acts.items() if act is Action.ACK]
        if len(acknowledged) == len(acts) <= CHUNK:
            self._rows.delete(acknowledged)  # one statement needs no transaction of its own
            return
        with self._session.writing():
            self._rows.delete(acknowledged)
            self._rows.give_back([row_id for row_id, act in acts.items() if act is Action.REQUEUE])
            for row_id, settlement in settlements.items():
                if acts[row_id] is Action.RETRY:
                    self._rows.delay(row_id, settlement.delay, _headers_with_failure(settlement))
            dead = {row_id: settlements[row_id] for row_id, act in acts.items() if act is Action.DEAD}
            self._rows.bury({row_id: self._letter(each) for row_id, each in dead.items()})

    def _act(self, settlement: Settlement) -> Action:
        _, subscription = self._subscriptions[settlement.delivery.queue]
        if settlement.action is Action.DEAD and not subscription.dead_letter:
            return Action.ACK
        return settlement.action

    def _letter(self, settlement: Settlement) -> DeadDelivery:
        delivery = settlement.delivery
        queue_id, _ = self._subscriptions[delivery.queue]
        return DeadDelivery(
            queue_id=queue_id,
            event_id=delivery.event_id,
            routing_key=delivery.routing_key,
            body=delivery.body,
            headers=_headers_with_failure(settlement),
        )


def _alias(settings: BrokerSettings) -> str:
    if len(settings.url) != 1:
        raise ConfigurationError(f"database: is one database; these are {len(settings.url)} URLs")
    if settings.exchange_type != "topic":
        raise UnsupportedOption(
            f"database: knows topic exchanges only, not EXCHANGE_TYPE={settings.exchange_type!r}"
        )
    return settings.url[0].partition(":")[2].strip("/") or "default"


def _check_options(subscription: Subscription) -> None:
    for option in ("exclusive", "auto_delete"):
        if getattr(subscription, option):
            raise UnsupportedOption(
                f"handler {subscription.name!r} has {option}=True: queues of database: do not vanish "
                "with their consumer; RabbitMQ (amqp:) has such queues"
            )
    if subscription.dead_letter_ttl is not None or subscription.dead_letter_limit is not None:
        raise UnsupportedOption(
            f"handler {subscription.name!r} limits its dead letters with DeadLetter(...): database: keeps "
            "them until somebody decides; RabbitMQ (amqp:) can limit them"
        )


@lru_cache(maxsize=256)
def _bindings(text: str) -> dict[str, tuple[str, ...]]:
    """Read the column: the same text is read again for each batch that is published."""
    return {exchange: tuple(keys) for exchange, keys in json.loads(text).items()}


def _copies(
    queues: Sequence[tuple[int, tuple[str, ...]]], message: Message, max_bytes: float
) -> list[QueuedDelivery]:
    """Return a row for each queue that is bound for ``message``.

    :raises ValueError: the database could not take it.
    """
    bound = [queue_id for queue_id, keys in queues if any(matches(key, message.routing_key) for key in keys)]
    headers = write_headers(message.headers)
    size = len(message.body) + len(headers)
    if bound and size > max_bytes:
        raise ValueError(
            f"it is {size} bytes long; this database takes {max_bytes:.0f} (raise its max_allowed_packet)"
        )
    return [
        QueuedDelivery(
            queue_id=queue_id,
            event_id=message.event_id,
            routing_key=message.routing_key,
            body=message.body,
            headers=headers,
        )
        for queue_id in bound
    ]


def _headers_with_failure(settlement: Settlement) -> str:
    failure = settlement.failure.to_headers() if settlement.failure else {}
    return write_headers({**settlement.delivery.headers, **failure})
