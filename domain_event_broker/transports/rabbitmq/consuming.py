"""Receiving from one handler's queue, and answering for what was received."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from heapq import heappop, heappush

import pika
import pika.spec

from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.events import HEADER_ATTEMPT
from domain_event_broker.ports import Delivery, Subscription
from domain_event_broker.transports.rabbitmq import wire
from domain_event_broker.transports.rabbitmq.connection import Connection


@dataclass(frozen=True, slots=True)
class Token:
    """What is needed to answer for a delivery."""

    consumer: Consumer
    tag: int
    properties: pika.BasicProperties


class Consumer:
    """A consumer on a channel of its own, so that its deliveries are numbered for it alone.

    :param subscription: whose queue, and how many deliveries may be unanswered.
    :param arrived: called with each delivery as it comes in.
    """

    def __init__(
        self, connection: Connection, subscription: Subscription, arrived: Callable[[Delivery], None]
    ) -> None:
        self.subscription = subscription
        self._arrived = arrived
        self._cancelled = False
        #: Deliveries without an answer, in the order of their numbers.
        self._open: dict[int, None] = {}
        self._channel = connection.open_channel()
        self._channel.pika.add_on_cancel_callback(self._on_cancel)
        self._channel.ask(self._channel.pika.basic_qos, prefetch_count=subscription.prefetch)
        self._channel.ask(
            self._channel.pika.basic_consume, queue=subscription.name, on_message_callback=self._on_message
        )

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

    def requeue(self, tags: Iterable[int]) -> None:
        """Give deliveries back to the queue."""
        for tag in sorted(self._take(tags)):
            self._open.pop(tag)
            self._channel.pika.basic_nack(tag, requeue=True)

    def close(self) -> None:
        """Stop receiving; what has no answer goes back to the queue."""
        self._channel.close()

    def _take(self, tags: Iterable[int]) -> set[int]:
        """Leave out those answered before: the broker closes the channel on a second answer."""
        self._channel.ensure_open()
        return {tag for tag in tags if tag in self._open}

    def _on_message(
        self, _channel: object, method: pika.spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
    ) -> None:
        self._open[method.delivery_tag] = None
        self._arrived(self._delivery(method, properties, body))

    def _on_cancel(self, _frame: object) -> None:
        self._cancelled = True

    def _delivery(
        self, method: pika.spec.Basic.Deliver, properties: pika.BasicProperties, body: bytes
    ) -> Delivery:
        queue = self.subscription.name
        return Delivery(
            queue=queue,
            body=body,
            routing_key=wire.original_routing_key(properties, method.routing_key, queue),
            event_id=properties.message_id or "",
            headers=properties.headers or {},
            retries=wire.header_number(properties, HEADER_ATTEMPT),
            crashes=wire.header_number(properties, "x-delivery-count"),
            token=Token(self, method.delivery_tag, properties),
        )


class Early:
    """Deliveries that came before their time, and wait in memory for the last fraction of a second."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, Delivery]] = []
        self._count = 0

    def add(self, delivery: Delivery, wait_ms: int) -> None:
        """Keep ``delivery`` for so many milliseconds."""
        self._count += 1
        heappush(self._waiting, (wire.now_ms() + wait_ms, self._count, delivery))

    def due(self) -> Iterable[Delivery]:
        """Take out those whose time has come."""
        now = wire.now_ms()
        while self._waiting and self._waiting[0][0] <= now:
            yield heappop(self._waiting)[2]

    def next_in(self, limit: float) -> float:
        """Return seconds until the next one is due, at most ``limit``."""
        if not self._waiting:
            return limit
        return max(0.0, min(limit, (self._waiting[0][0] - wire.now_ms()) / 1000))
