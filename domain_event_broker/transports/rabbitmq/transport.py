"""The RabbitMQ transport: a broker seen from one thread."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import ParamSpec, TypeVar

import pika.exceptions

from domain_event_broker.config import BrokerSettings
from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.events import HEADER_NOT_BEFORE, Message
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
from domain_event_broker.transports.rabbitmq import exchange, wire
from domain_event_broker.transports.rabbitmq import topology as queues
from domain_event_broker.transports.rabbitmq.connection import PIKA_ERRORS, Connection, Loop, broker_errors
from domain_event_broker.transports.rabbitmq.consuming import (
    Consumer,
    Early,
    acknowledge,
    by_consumer,
    token_of,
)
from domain_event_broker.transports.rabbitmq.deadletters import RabbitMQDeadLetters
from domain_event_broker.transports.rabbitmq.ladder import LADDER_MS, step_for
from domain_event_broker.transports.rabbitmq.migrating import Migration
from domain_event_broker.transports.rabbitmq.moving import Mover
from domain_event_broker.transports.rabbitmq.publishing import Outgoing, Sender
from domain_event_broker.transports.rabbitmq.topology import Layout, QueueSpec, Topology

_NOT_FOUND = 404

#: Deliveries counted by the broker from which on an event is given back as a copy, which counts anew:
#: well below the limit, for others may take some before the next stop.
WORN = queues.DELIVERY_LIMIT // 2

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _translated(method: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Let errors of pika leave a method as ours."""

    @functools.wraps(method)
    def translated(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with broker_errors():
            return method(*args, **kwargs)

    return translated


class RabbitMQTransport:
    """Events over RabbitMQ 3.10 or newer, with the promises of :class:`~domain_event_broker.ports.Transport`.

    Receiving and publishing have a connection each, opened when first needed: the broker stops
    reading from one that publishes while it is short of memory, and acknowledgements must not
    wait for that (https://www.rabbitmq.com/docs/connection-blocked).

    :param settings: URLs, tried in turn, and the exchange.
    :raises ConfigurationError: a URL is wrong.
    :raises BrokerUnavailable: no URL answered.
    :raises AccessRefused: wrong credentials, virtual host or permission.
    """

    capabilities = Capabilities(transient_queues=True, queue_types=True, dead_letter_limits=True)

    def __init__(self, settings: BrokerSettings) -> None:
        self._settings = settings
        self._loop = Loop()
        self._consuming: Connection | None = None
        self._known_topology: Topology | None = None
        self._sender: Sender | None = None
        self._knows_exchange: Sender | None = None
        self._bindings: exchange.Bindings | None = None
        self._mover = Mover(self._any_sender, self._declare_again)
        self._consumers: dict[str, Consumer] = {}
        self._layouts: dict[str, Layout] = {}
        #: What was declared here and not subscribed to, each as its queues can serve it.
        self._declared: dict[Subscription, Subscription] = {}
        self._renewed: dict[str, float] = {}
        self._arrived: deque[Delivery] = deque()
        self._ready: deque[Delivery] = deque()
        self._early = Early()
        self._woken = False
        #: Opened at once, so that an unreachable broker is told at once; the first need takes it.
        self._spare: Connection | None = self._first_connection()

    # --- publishing ---------------------------------------------------------------------

    @_translated
    def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        """Send messages in order; return when the broker has answered for each, in that order.

        Pipelined: the whole batch is on its way at once. What cannot be sent (too large, or not
        encodable) is ``REFUSED``, and the others go on.

        :raises BrokerUnavailable: the connection was lost, or no answer came in time.
        """
        return self._publish(messages, self._sender_to_exchange, self._outgoing)

    @_translated
    def send_to(self, queue: str, messages: Sequence[Message]) -> list[PublishOutcome]:
        """See :class:`~domain_event_broker.ports.Addressing`; pipelined and refused as by :meth:`publish`."""
        return self._publish(
            messages,
            self._any_sender,
            lambda each: Outgoing("", queue, wire.for_one_handler(each), each.body),
        )

    def _publish(
        self,
        messages: Sequence[Message],
        sender: Callable[[], Sender],
        outgoing: Callable[[Message], Outgoing],
    ) -> list[PublishOutcome]:
        outcomes = [self._refusal(message) for message in messages]
        accepted = [index for index, refused in enumerate(outcomes) if refused is None]
        if accepted:
            sent = self._send(sender(), [outgoing(messages[index]) for index in accepted])
            for index, outcome in zip(accepted, sent, strict=True):
                outcomes[index] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def _send(self, sender: Sender, messages: Sequence[Outgoing]) -> list[PublishOutcome]:
        try:
            return sender.send(messages)
        except pika.exceptions.ChannelClosedByBroker as error:
            if error.reply_code == _NOT_FOUND:
                raise exchange.missed(self._settings) from error
            raise

    def _refusal(self, message: Message) -> PublishOutcome | None:
        limit = self._settings.max_payload_bytes
        if len(message.body) <= limit:
            return None
        text = f"its body has {len(message.body)} bytes, and at most {limit} are allowed"
        return PublishOutcome(Stored.REFUSED, f"{text} (setting MAX_PAYLOAD_BYTES)")

    def _outgoing(self, message: Message) -> Outgoing:
        return Outgoing(self._settings.exchange, message.routing_key, wire.for_message(message), message.body)

    # --- queues -------------------------------------------------------------------------

    @_translated
    def subscribe(self, subscription: Subscription) -> None:
        """Make sure that the queues of a handler exist and are bound, and receive from them.

        The first time ever it takes two seconds: see :data:`.topology.SETTLE_SECONDS`.

        :raises QueueMismatch: a queue exists with other arguments.
        :raises UnsupportedOption: a quorum queue was asked for that is not durable or shared.
        """
        if subscription not in self._declared:
            self._declare([subscription])
        subscription = self._declared.pop(subscription)
        known = self._consumers.get(subscription.name)
        if known is not None and known.subscription == subscription:
            return
        if known is not None:
            known.close()
        self._consumers[subscription.name] = Consumer(
            self._receiver(), subscription, self._arrived.append, self._settings.max_payload_bytes
        )

    @_translated
    def declare(self, subscription: Subscription) -> None:
        """As :meth:`subscribe`, without receiving."""
        self._declare([subscription])

    @_translated
    def declare_all(self, subscriptions: Sequence[Subscription]) -> None:
        """As :meth:`declare` for each, with one wait of two seconds for all queues that are new."""
        self._declare(subscriptions)

    @_translated
    def check(self, subscription: Subscription) -> list[str]:
        """Tell, changing nothing, what :meth:`declare` would change; empty: all is in place.

        Bindings cannot be read over AMQP, so a missing one is not told.

        :raises QueueMismatch: a queue exists with other arguments.
        """
        return self._topology().check(subscription)

    @_translated
    def migrate(self, subscription: Subscription) -> int:
        """Rebuild the queues of a handler as it asks for now; return how many events moved.

        None is lost; killed in the middle, calling it again goes on.

        :raises QueueMismatch: a queue has consumers, which must be stopped first.
        """
        migration = Migration(self._receiver(), self._topology(), self._any_sender(), self._let_settle)
        moved = migration.run(subscription)
        self._declare([subscription])
        return moved

    @_translated
    def unbind(self, queue: str, keys: Iterable[str]) -> None:
        """Let events with these binding keys no longer come into a queue; what is in it stays."""
        if self._topology().state(queue) is not None:
            self._topology().unbind(queue, keys)

    @_translated
    def stats(self, queues: Iterable[str]) -> dict[str, QueueStats]:
        """Return the depths of the queues of the named handlers; they need not exist.

        What is delivered and not settled cannot be told over AMQP.
        """
        return {name: self._stats(name) for name in queues}

    def _declare(self, wanted: Sequence[Subscription]) -> None:
        """Declare the queues; take note of the subscriptions as these queues can serve them."""
        self._let_others_miss_the_exchange(wanted)
        served = [self._topology().adopted(each) for each in wanted]
        layouts = self._topology().declare(served, self._let_settle)
        for each, subscription, layout in zip(wanted, served, layouts, strict=True):
            self._layouts[subscription.name] = layout
            self._declared[each] = subscription

    def _let_others_miss_the_exchange(self, wanted: Sequence[Subscription]) -> None:
        """Leave an exchange that somebody deleted missing for a while; see :mod:`.exchange`.

        Made at once, it would have the bindings of these subscriptions only, and events would pass
        the other queues. One that no queue was made for yet is new.
        """
        name, topology = self._settings.exchange, self._topology()
        if not name or topology.exchange_exists(name):
            return
        if any(topology.state(each.name) is not None for each in wanted):
            exchange.say_gone(name)
            self._wait(exchange.ABSENCE_SECONDS)

    def _stats(self, name: str) -> QueueStats:
        topology = self._topology()
        state = topology.state(name)
        waiting = [topology.state(queues.delay_name(name, step)) for step in LADDER_MS]
        return QueueStats(
            exists=state is not None,
            ready=state.ready if state is not None else 0,
            delayed=sum(each.ready for each in waiting if each is not None),
            dead=self.dead_letters(name).count(),
            consumers=state.consumers if state is not None else None,
        )

    # --- receiving ----------------------------------------------------------------------

    @_translated
    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        """Return up to ``limit`` deliveries, as soon as there is one, or none after ``timeout`` seconds.

        Keeps the connections alive meanwhile, with a ``limit`` of 0 too. An event whose retry is
        not due yet is sent to wait again, and not handed out.

        :raises BrokerUnavailable: the connection was lost, or the broker ended a consumer.
        """
        deadline = time.monotonic() + timeout
        if limit > 0:
            self._resume()
        self._loop.turn()
        self._keep_house()
        while True:
            self._ensure_alive()
            self._sort_arrived()
            found = [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
            left = deadline - time.monotonic()
            if found or self._woken or left <= 0:
                self._woken = False
                return found
            self._loop.run_until(self._has_news, self._early.next_in(left))

    def _keep_house(self) -> None:
        """Do what is to be done from time to time: a subscriber receives at least every few seconds."""
        self._mover.go_on()
        if self._consumers:
            if self._bindings is None:
                self._bindings = exchange.Bindings(self._topology(), self._settings)
            self._bindings.keep([consumer.subscription for consumer in self._consumers.values()])

    def _resume(self) -> None:
        for consumer in self._consumers.values():
            consumer.resume()

    def wake(self) -> None:
        """Make a :meth:`receive` under way in another thread return early; else the next. Never raises."""
        self._woken = True
        self._loop.wake()

    def _has_news(self) -> bool:
        return bool(self._arrived) or self._woken or self._is_lost()

    def _is_lost(self) -> bool:
        lost = self._consuming is not None and not self._consuming.is_open
        return lost or any(consumer.is_lost for consumer in self._consumers.values())

    def _ensure_alive(self) -> None:
        if self._consuming is not None:
            self._consuming.ensure_open()
        for consumer in self._consumers.values():
            consumer.ensure_alive()

    def _sort_arrived(self) -> None:
        """Tell apart what is due, what comes due in a moment, and what must wait in a queue again."""
        again: list[tuple[Delivery, Outgoing]] = []
        while self._arrived:
            delivery = self._arrived.popleft()
            wait = wire.wait_ms(token_of(delivery).properties)
            if not wait:
                self._ready.append(delivery)
            elif step_for(wait, self._steps(delivery.queue)) is None:
                self._early.add(delivery, wait)
            else:
                again.append((delivery, self._again(delivery, wait / 1000)))
        self._ready.extend(self._early.due())
        if again:
            self._move(again)

    # --- settling -----------------------------------------------------------------------

    @_translated
    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Answer for deliveries of this transport; the copies of all are stored before their originals go.

        What is given back comes again after the next :meth:`receive` with a limit above 0. While
        the broker takes nothing in, originals whose copy cannot be stored stay unanswered until it does.

        :raises BrokerUnavailable: a copy could not be stored. Its original comes back.
        """
        copies: list[tuple[Delivery, Outgoing]] = []
        done: list[Delivery] = []
        back: list[Delivery] = []
        for settlement in settlements:
            copy = self._copy(settlement)
            if copy is not None:
                copies.append((settlement.delivery, copy))
            else:
                (back if settlement.action is Action.REQUEUE else done).append(settlement.delivery)
        # First what needs no copy: it must not wait for a broker that takes nothing in.
        acknowledge(done)
        self._give_back([each for each in back if each.crashes < WORN])
        if copies:
            self._move(copies)
        self._give_back_anew([each for each in back if each.crashes >= WORN])

    def _copy(self, settlement: Settlement) -> Outgoing | None:
        delivery = settlement.delivery
        if settlement.action is Action.RETRY:
            not_before = wire.now_ms() + round(settlement.delay * 1000)
            return self._waiting(delivery, settlement.delay, delivery.retries + 1, not_before)
        if settlement.action is Action.DEAD and token_of(delivery).consumer.subscription.dead_letter:
            properties = wire.for_dead_letter(
                token_of(delivery).properties, delivery.routing_key, delivery.retries, settlement.failure
            )
            return Outgoing("", queues.letters_name(delivery.queue), properties, delivery.body)
        return None

    def _again(self, delivery: Delivery, wait: float) -> Outgoing:
        """Return the copy of an event that came back early, for the rest of its wait."""
        not_before = wire.header_number(token_of(delivery).properties, HEADER_NOT_BEFORE)
        return self._waiting(delivery, wait, delivery.retries, not_before)

    def _waiting(self, delivery: Delivery, wait: float, retries: int, not_before: int) -> Outgoing:
        """Return the copy of an event for the delay queue it waits in next, or for the handler's own."""
        properties = wire.for_retry(token_of(delivery).properties, delivery.routing_key, retries, not_before)
        step = step_for(wait * 1000, self._steps(delivery.queue))
        target = delivery.queue if step is None else queues.delay_name(delivery.queue, step)
        return Outgoing("", target, properties, delivery.body)

    def _move(self, copies: Sequence[tuple[Delivery, Outgoing]]) -> None:
        for _, copy in copies:
            self._renew(copy.routing_key)
        self._mover.move(copies)

    def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        for consumer, tags in by_consumer(deliveries):
            consumer.pause()
            consumer.requeue(tags)

    def _give_back_anew(self, deliveries: Sequence[Delivery]) -> None:
        """Give back events which the broker has counted often: as copies, at the end of the queue.

        The count cannot be set back otherwise, and with each stop of a subscriber it comes nearer
        to the limit, although nobody has tried them.
        """
        if not deliveries:
            return
        for consumer, _ in by_consumer(deliveries):
            consumer.pause()
        with suppress(BrokerUnavailable, *PIKA_ERRORS):
            self._move([(each, self._anew(each)) for each in deliveries])
        # Where copies could not be stored the originals go back; the others are answered.
        self._give_back(deliveries)

    def _anew(self, delivery: Delivery) -> Outgoing:
        properties = wire.copied(token_of(delivery).properties, delivery.routing_key)
        return Outgoing("", delivery.queue, properties, delivery.body)

    def _steps(self, queue: str) -> Sequence[int]:
        return tuple(self._layouts[queue].delays)

    def _spec(self, name: str) -> QueueSpec | None:
        specs = (spec for layout in self._layouts.values() for spec in layout.all())
        return next((spec for spec in specs if spec.name == name), None)

    def _declare_again(self, names: Iterable[str]) -> None:
        """Bring back queues that somebody deleted."""
        for name in sorted(names):
            spec = self._spec(name)
            if spec is not None:
                self._topology().ensure(spec)
        self._let_settle()

    def _renew(self, name: str) -> None:
        """Keep the delay queue of an auto-delete handler from expiring with the events in it."""
        spec = self._spec(name)
        if spec is None or "x-expires" not in spec.arguments:
            return
        if time.monotonic() - self._renewed.get(name, 0.0) > queues.LEASE_SECONDS:
            self._topology().renew(spec)
            self._renewed[name] = time.monotonic()

    # --- dead letters, end --------------------------------------------------------------

    @_translated
    def dead_letters(self, queue: str) -> RabbitMQDeadLetters:
        """Return the dead letters of the handler ``queue``."""
        return RabbitMQDeadLetters(
            queue,
            self._loop,
            self._receiver(),
            self._topology(),
            self._any_sender,
            self._settings.max_payload_bytes,
        )

    def close(self) -> None:
        """Disconnect. Deliveries not settled go back to their queues. Never raises."""
        publishing = self._sender.connection if self._sender is not None else None
        for connection in (self._consuming, publishing, self._spare):
            if connection is not None:
                connection.close()
        self._consumers.clear()
        self._loop.close()

    # --- connections --------------------------------------------------------------------

    def _first_connection(self) -> Connection:
        try:
            return Connection(self._loop, self._settings.url)
        except BaseException:
            self._loop.close()
            raise

    def _connect(self) -> Connection:
        spare, self._spare = self._spare, None
        if spare is not None and spare.is_open:
            return spare
        return Connection(self._loop, self._settings.url)

    def _receiver(self) -> Connection:
        if self._consuming is None:
            self._consuming = self._connect()
        return self._consuming

    def _topology(self) -> Topology:
        if self._known_topology is None:
            self._known_topology = Topology(self._receiver(), self._settings)
        return self._known_topology

    def _any_sender(self) -> Sender:
        """Return the sender, over a new connection if the last one was lost while it was idle."""
        self._loop.turn()
        if self._sender is None or not self._sender.connection.is_open:
            self._sender = Sender(self._connect())
        return self._sender

    def _sender_to_exchange(self) -> Sender:
        sender = self._any_sender()
        if sender is not self._knows_exchange:
            exchange.make_ready(Topology(sender.connection, self._settings), self._settings, self._wait)
            self._knows_exchange = sender
        return sender

    def _let_settle(self) -> None:
        """Wait until queues just created are safe, with the connections alive."""
        self._wait(queues.SETTLE_SECONDS)

    def _wait(self, seconds: float) -> None:
        """Wait, with the connections alive."""
        self._loop.run_until(lambda: False, seconds)
