"""Receiving from one handler's queue, and answering for what was received."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush

import pika
import pika.spec

from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.events import HEADER_ATTEMPT
from domain_event_broker.masking import one_line
from domain_event_broker.ports import Delivery, Subscription
from domain_event_broker.transports.rabbitmq import wire
from domain_event_broker.transports.rabbitmq.connection import Connection

logger = logging.getLogger(__name__)

#: Processes that died with an event before it is suspected to be the cause. The broker counts for
#: every event that was fetched ahead, so what waits behind the cause would be dead-lettered with it.
SUSPICIOUS = 3

#: Names of the consumer that a channel begins with, and of the one that takes its place. When the
#: channel ends the broker takes deliveries back in the order of these names.
_CAREFUL, _USUAL = "1-careful", "2-usual"


@dataclass(frozen=True, slots=True)
class Token:
    """What is needed to answer for a delivery."""

    consumer: Consumer
    tag: int
    properties: pika.BasicProperties


class Consumer:
    """A consumer on a channel of its own, so that its deliveries are numbered for it alone.

    It fetches nothing ahead until a delivery comes that no series of crashes precedes: events that
    kill their process come back first, and so take no other with them.

    :param subscription: whose queue, and how many deliveries may be unanswered.
    :param arrived: called with each delivery as it comes in.
    :param max_bytes: largest body that is handed out, where the queue can refuse others by itself.
    """

    def __init__(
        self,
        connection: Connection,
        subscription: Subscription,
        arrived: Callable[[Delivery], None],
        max_bytes: int,
    ) -> None:
        self.subscription = subscription
        self._arrived = arrived
        refusing = subscription.queue_type == "quorum" and subscription.dead_letter
        self._max_bytes = max_bytes if refusing else math.inf
        self._cancelled = False
        self._paused = False
        #: Deliveries without an answer, in the order of their numbers.
        self._open: dict[int, None] = {}
        #: Those beyond the prefetch; see :meth:`_fetch_ahead`.
        self._excess: deque[Delivery] = deque()
        self._channel = connection.open_channel()
        self._channel.pika.add_on_cancel_callback(self._on_cancel)
        # Classic queues count no crashes, and one that is auto-delete ends with its consumer.
        self._careful = subscription.queue_type == "quorum" and subscription.prefetch > 1
        prefetch = 1 if self._careful else subscription.prefetch
        self._channel.ask(self._channel.pika.basic_qos, prefetch_count=prefetch)
        self._consume()

    @property
    def is_lost(self) -> bool:
        """Whether nothing will come any more."""
        return self._cancelled or self._channel.reason is not None

    def ensure_alive(self) -> None:
        """Raise if nothing will come any more.

        :raises BrokerUnavailable: the broker cancelled the consumer. Reconnecting declares the
            queue again.
        """
        self._channel.ensure_open()
        if self._cancelled:
            raise BrokerUnavailable(
                f"the broker ended the consumer of queue {self.subscription.name!r}: the queue was deleted "
                "or moved, or a delivery was not answered within the broker's consumer_timeout"
            )

    def ack(self, tags: Iterable[int]) -> None:
        """Acknowledge deliveries; many with one frame where they are the oldest ones."""
        wanted = self._take(tags)
        last = 0
        for tag in self._open:
            if tag not in wanted:
                break
            last = tag
        if last:
            self._channel.pika.basic_ack(last, multiple=True)
        for tag in sorted(wanted):
            self._open.pop(tag)
            if tag > last:
                self._channel.pika.basic_ack(tag)
        self._hand_out_excess()

    def pause(self) -> None:
        """Let nothing come, so that what is given back is not fetched again at once.

        Each time it is, a quorum queue counts a delivery more. Classic queues count none, and one
        that is auto-delete would end with its consumer: they are not paused.
        """
        if self._paused or self.subscription.queue_type != "quorum":
            return
        self._channel.ensure_open()
        self._paused = True
        for tag in self._channel.pika.consumer_tags:
            self._channel.pika.basic_cancel(tag, callback=_nothing)
        self._channel.wait(lambda: not self._channel.pika.consumer_tags)

    def resume(self) -> None:
        """Let deliveries come again after a :meth:`pause`."""
        if self._paused:
            self._paused = False
            self._consume()

    def requeue(self, tags: Iterable[int]) -> None:
        """Give deliveries back to the queue."""
        for tag in sorted(self._take(tags)):
            self._open.pop(tag)
            self._channel.pika.basic_nack(tag, requeue=True)
        self._hand_out_excess()

    def close(self) -> None:
        """Stop receiving; what has no answer goes back to the queue."""
        self._channel.close()

    def _consume(self) -> None:
        self._channel.ask(
            self._channel.pika.basic_consume,
            queue=self.subscription.name,
            on_message_callback=self._on_message,
            consumer_tag=_CAREFUL if self._careful else _USUAL,
        )

    def _take(self, tags: Iterable[int]) -> set[int]:
        """Leave out those answered before: the broker closes the channel on a second answer."""
        self._channel.ensure_open()
        return {tag for tag in tags if tag in self._open}

    def _on_message(
        self, _channel: object, method: pika.spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
    ) -> None:
        if len(body) > self._max_bytes:
            self._refuse(method, len(body))
            return
        self._open[method.delivery_tag] = None
        delivery = self._delivery(method, properties, body)
        self._excess.append(delivery)
        self._hand_out_excess()
        if self._careful and delivery.crashes < SUSPICIOUS:
            self._fetch_ahead()

    def _refuse(self, method: pika.spec.Basic.Deliver, size: int) -> None:
        """Let the broker dead-letter what is too large, before the next one is read.

        A publisher of ours would not send it. Those fetched ahead would fill the memory, and so would
        the copy that a dead letter of ours is.
        """
        self._channel.pika.basic_nack(method.delivery_tag, requeue=False)
        logger.error(
            "%s dead-lettered in %s: its body has %d bytes, and at most %d are allowed (setting "
            "MAX_PAYLOAD_BYTES)",
            one_line(str(method.routing_key)),
            self.subscription.name,
            size,
            self._max_bytes,
            extra={"handler": self.subscription.name, "outcome": "dead-lettered"},
        )

    def _fetch_ahead(self) -> None:
        """Begin to consume anew, with the prefetch that is wanted: it holds for new consumers only.

        The delivery at hand stays ours, and does not count for the new one: until it is answered
        the broker sends one more than is wanted, which is kept back here
        (https://www.rabbitmq.com/docs/consumer-prefetch).
        """
        self._careful = False
        channel = self._channel.pika
        channel.basic_cancel(_CAREFUL, callback=_nothing)
        channel.basic_qos(prefetch_count=self.subscription.prefetch, callback=_nothing)
        channel.basic_consume(self.subscription.name, self._on_message, consumer_tag=_USUAL)

    def _hand_out_excess(self) -> None:
        while self._excess and len(self._open) - len(self._excess) < self.subscription.prefetch:
            self._arrived(self._excess.popleft())

    def _on_cancel(self, _frame: object) -> None:
        self._cancelled = True

    def _delivery(
        self, method: pika.spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
    ) -> Delivery:
        queue = self.subscription.name
        key = wire.text_of(method.routing_key)  # bytes, where it is no UTF-8
        if method.exchange:
            # Straight from a publisher, whose headers say nothing of what happened since.
            properties = wire.as_published(properties)
        else:
            key = wire.original_routing_key(properties, key, queue)
        return Delivery(
            queue=queue,
            body=body,
            routing_key=key,
            event_id=wire.event_id_of(properties),
            headers=wire.received_headers(properties),
            retries=wire.header_number(properties, HEADER_ATTEMPT),
            crashes=self._crashes(method, properties),
            token=Token(self, method.delivery_tag, properties),
        )

    def _crashes(self, method: pika.spec.Basic.Deliver, properties: pika.BasicProperties) -> int:
        """Return how often the broker took the delivery back: only quorum queues count that.

        The first time, and on a classic queue, the header is whatever the publisher wrote into it
        (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
        """
        is_counted = method.redelivered and self.subscription.queue_type == "quorum"
        return wire.header_number(properties, "x-delivery-count") if is_counted else 0


def _nothing(_reply: object) -> None:
    """Take note of a reply that nobody waits for."""


def token_of(delivery: Delivery) -> Token:
    """Return what is needed to answer for a delivery."""
    token: Token = delivery.token
    return token


def by_consumer(deliveries: Iterable[Delivery]) -> list[tuple[Consumer, list[int]]]:
    """Return the numbers of deliveries, with the consumer that each of them came to."""
    found: dict[int, tuple[Consumer, list[int]]] = {}
    for delivery in deliveries:
        token = token_of(delivery)
        found.setdefault(id(token.consumer), (token.consumer, []))[1].append(token.tag)
    return list(found.values())


def acknowledge(deliveries: Iterable[Delivery]) -> None:
    """Acknowledge deliveries."""
    for consumer, tags in by_consumer(deliveries):
        consumer.ack(tags)


class Early:
    """Deliveries that came before their time, and wait in memory for the last fraction of a second.

    They wait by a clock that nobody sets: after a step back of the other they would wait for long.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Delivery]] = []
        self._count = 0

    def add(self, delivery: Delivery, wait_ms: int) -> None:
        """Keep ``delivery`` for so many milliseconds."""
        self._count += 1
        heappush(self._waiting, (time.monotonic() + wait_ms / 1000, self._count, delivery))

    def due(self) -> Iterable[Delivery]:
        """Take out those whose time has come."""
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            yield heappop(self._waiting)[2]

    def next_in(self, limit: float) -> float:
        """Return seconds until the next one is due, at most ``limit``."""
        if not self._waiting:
            return limit
        return max(0.0, min(limit, self._waiting[0][0] - time.monotonic()))
