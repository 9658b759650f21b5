"""Subscribing: steps three and four of an event's way.

One thread, the loop, receives deliveries and settles them; it alone touches the connection.
Handlers run in the threads of a pool. A delivery is acknowledged when its handler has
returned; one whose process dies is delivered again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from domain_event_broker import config
from domain_event_broker.codecs import bodies_of
from domain_event_broker.config import BrokerSettings, SubscriberSettings
from domain_event_broker.errors import BrokerUnavailable, HandlerError, HandlerStuck, UnsupportedOption
from domain_event_broker.execution import DirectInbox
from domain_event_broker.handlers import DeadLetter, Handler, HandlerFunction, Registry, normalised
from domain_event_broker.observer import NOBODY, Observer
from domain_event_broker.patience import Outage, StopFlag
from domain_event_broker.ports import Action, Capabilities, Inbox, Settlement, Subscription, Transport
from domain_event_broker.stats import Stats
from domain_event_broker.traced import execution_of
from domain_event_broker.transports import open_transport
from domain_event_broker.workers import Workers

logger = logging.getLogger("domain_event_broker.subscriber")

#: Longest stay in one receive(), in seconds: a stop asked for by a signal waits no longer.
POLL_SECONDS = 0.25
#: Deliveries taken from the transport at once; how many are under way is bounded by prefetch.
RECEIVE_LIMIT = 1000
#: Longest time between two tries to reach a broker that is away, in seconds.
RECONNECT_SECONDS = 5.0
#: A connection that served for so many seconds was a good one: the next loss is a new outage.
STABLE_SECONDS = 30.0
#: A handler that works on one event for so many seconds is told of; then after twice the time.
SLOW_SECONDS = 60.0
#: Declaring the queues of many handlers may take so many seconds, in which the subscriber is not stuck.
DECLARE_SECONDS = 300.0

_inbox: Inbox = DirectInbox()


def install_inbox(inbox: Inbox | None) -> None:
    """Let handlers be called through ``inbox`` from now on; ``None``: directly."""
    global _inbox
    _inbox = inbox or DirectInbox()


def installed_inbox() -> Inbox:
    """Return what handlers are called through."""
    return _inbox


def subscription_of(handler: Handler, defaults: SubscriberSettings) -> Subscription:
    """Return what ``handler`` needs of the broker, with the defaults of the settings filled in."""
    transient = handler.exclusive or handler.auto_delete or not handler.durable
    limits = handler.dead_letter if isinstance(handler.dead_letter, DeadLetter) else DeadLetter()
    prefetch = handler.prefetch or max(defaults.prefetch, 2 * (handler.concurrency or defaults.concurrency))
    return Subscription(
        name=handler.name,
        binding_keys=handler.binding_keys,
        delays=handler.policy(defaults.max_retries).known_delays(),
        dead_letter=bool(handler.dead_letter),
        dead_letter_ttl=limits.seconds,
        dead_letter_limit=limits.max_length,
        prefetch=prefetch,
        queue_type=handler.queue_type or ("classic" if transient else defaults.queue_type),
        adopt=handler.adopt,
        durable=handler.durable,
        exclusive=handler.exclusive,
        auto_delete=handler.auto_delete,
    )


def check_supported(subscription: Subscription, transport: Capabilities) -> None:
    """Refuse what a transport would leave undone without a word.

    :raises UnsupportedOption: it cannot limit dead letters, and the handler asks for it.
    """
    limited = subscription.dead_letter_ttl is not None or subscription.dead_letter_limit is not None
    if limited and not transport.dead_letter_limits:
        raise UnsupportedOption(
            f"handler {subscription.name!r} limits its dead letters with DeadLetter(...), which this broker "
            "cannot; use dead_letter=True, or RabbitMQ (amqp:)"
        )


class Consumer:
    """Receives the events of some handlers until it is stopped, whatever the broker does.

    :param handlers: the handlers; each has a name of its own.
    :param settings: where the broker is, and the defaults of handlers.
    :param inbox: calls the handlers; default: the one that is installed.
    :param threads: handlers that run at once, all in all; default: the sum of what they allow.
    :param connect: opens the transport, anew after each loss.
    :param observer: told how the work goes.
    """

    def __init__(
        self,
        handlers: Sequence[Handler],
        settings: BrokerSettings,
        inbox: Inbox | None = None,
        threads: int | None = None,
        connect: Callable[[BrokerSettings], Transport] = open_transport,
        observer: Observer = NOBODY,
    ) -> None:
        if not handlers:
            raise HandlerError("there is no handler to run; declare one with @subscribe")
        if not settings.subscriber.inbox:
            handlers = [replace(handler, idempotent=False) for handler in handlers]
        self._handlers = {handler.name: handler for handler in handlers}
        self._settings = settings
        self._connect = connect
        self._observer = observer
        self._stopping = StopFlag()
        self._outage = Outage(logger, RECONNECT_SECONDS)
        self._slow: dict[int, float] = {}
        self._look_for_slow_at = 0.0
        self._parked = False
        self._transport: Transport | None = None
        self._served_since: float | None = None
        self._deadline: float | None = None
        defaults = settings.subscriber
        bodies = bodies_of(settings)
        self._executions = {
            each.name: execution_of(
                settings, each, each.policy(defaults.max_retries), inbox or _inbox, bodies
            )
            for each in handlers
        }
        self._limits = {handler.name: handler.concurrency or defaults.concurrency for handler in handlers}
        self._threads = threads
        self._stuck = 0
        #: How many deliveries of each handler ended in which way, by name and outcome.
        self.outcomes: Counter[tuple[str, str]] = Counter()
        #: The same in all, with the names of other libraries' figures.
        self.stats = Stats()

    def run(self, timeout: float | None = None, transport: Transport | None = None) -> None:
        """Receive and handle events until :meth:`stop` is called, or ``timeout`` seconds have passed.

        A broker that is away is tried again for ever. On the way out running handlers get
        ``grace_seconds`` to finish, what was not started goes back to its queue.

        :param transport: an open one to begin with.
        :raises QueueMismatch: a queue exists with other arguments.
        :raises ConfigurationError: the broker cannot serve the handlers as they are declared.
        :raises HandlerStuck: a handler did not come back although its time was up. The others are
            finished, its delivery is settled; only the end of the process ends it.
        """
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._workers = Workers(
            self._executions,
            self._limits,
            self._threads,
            self._stopping,
            self._on_answer,
            may_start=lambda: not self._ended(),
        )
        try:
            while not self._ended():
                try:
                    self._serve(transport)
                except BrokerUnavailable as error:
                    if self._served_since is not None:
                        self._forget_outage_after(time.monotonic() - self._served_since)
                    self._observer.away(error)
                    self._pause(self._outage.failed(error))
                transport = None
        except KeyboardInterrupt:
            self.stop()
        finally:
            self._workers.close()
        if self._stuck:
            raise HandlerStuck(
                f"{self._stuck} handler(s) did not end although their time was up: they wait outside of "
                "Python. Their process has to end, and to be started again"
            )

    def stop(self) -> None:
        """Let :meth:`run` finish what is running and return. Safe from any thread or signal handler."""
        self._stopping.set()

    def _serve(self, transport: Transport | None) -> None:
        """Serve over one connection until stopped; raises when the connection is lost."""
        self._served_since = None
        self._transport = transport or self._connect(self._settings)
        self._workers.begin_session()
        try:
            self._observer.alive(DECLARE_SECONDS)
            self._subscribe(self._transport)
            self._served_since = time.monotonic()
            self.stats.connected()
            self._observer.connected()
            self._observer.back()
            logger.info(
                "consuming %s from %s",
                ", ".join(self._handlers),
                self._settings.masked_url,
                extra={"handlers": list(self._handlers)},
            )
            self._receive_until_ended(self._transport)
            self._finish(self._transport)
        finally:
            # Deliveries of this connection that were not started come back over the next one.
            self._workers.drop_waiting()
            transport, self._transport = self._transport, None
            transport.close()

    def _subscribe(self, transport: Transport) -> None:
        settings = self._settings.subscriber
        subscriptions = [subscription_of(handler, settings) for handler in self._handlers.values()]
        for subscription in subscriptions:
            check_supported(subscription, transport.capabilities)
        if hasattr(transport, "declare_all"):
            transport.declare_all(subscriptions)  # new queues of all handlers are waited for at once
        for subscription in subscriptions:
            transport.subscribe(subscription)

    def _receive_until_ended(self, transport: Transport) -> None:
        try:
            while not self._ended():
                self._turn(transport, RECEIVE_LIMIT, self._wait_seconds())
                self._tell_of_slow_handlers()
                self._leave_if_stuck(transport)
        except KeyboardInterrupt:
            # Ctrl-C in a program without signal handlers of its own: a stop like any other.
            self.stop()

    def _turn(self, transport: Transport, limit: int, wait: float) -> None:
        """Settle what is done, and receive what is there, waiting only if nothing is done."""
        self._observer.alive()
        self._parked = True
        settlements = self._workers.settlements()
        if settlements:
            self._settle(transport, settlements)
        deliveries = transport.receive(limit, 0 if settlements else wait)
        self._parked = False
        if deliveries:
            self.stats.consumed(len(deliveries))
            self._observer.received(deliveries)
            self._workers.submit(deliveries)

    def _settle(self, transport: Transport, settlements: Sequence[Settlement]) -> None:
        transport.settle(settlements)
        self.outcomes.update((each.delivery.queue, each.outcome) for each in settlements)
        self.stats.settled(
            (each.outcome, each.failure.reason if each.failure else "") for each in settlements
        )
        self._observer.settled(settlements)

    def _leave_if_stuck(self, transport: Transport) -> None:
        """Settle the deliveries of handlers that don't come back, and stop: see :class:`HandlerStuck`.

        Settled first, so that the retry of one is counted. The process dies before that: the
        delivery comes back uncounted, as after any crash.
        """
        settlements = self._workers.abandon_stuck()
        for each in settlements:
            logger.critical(
                "%s does not end although its time is up; this process stops, and should be started again",
                each.delivery.queue,
                extra={"handler": each.delivery.queue, "event_id": each.delivery.event_id},
            )
            self._stuck += 1
            self.stop()
        if settlements:
            self._settle(transport, settlements)

    def _finish(self, transport: Transport) -> None:
        """Give back what was not started, wait for what runs, settle it."""
        waiting = [
            Settlement(each, Action.REQUEUE, outcome="requeued") for each in self._workers.drop_waiting()
        ]
        if waiting:
            transport.settle(waiting)
            self._observer.settled(waiting)
        end = time.monotonic() + self._settings.subscriber.grace_seconds
        while self._workers.busy and time.monotonic() < end:
            self._turn(transport, 0, POLL_SECONDS)
            self._leave_if_stuck(transport)
        if self._stuck:
            self._turn(transport, 0, 0)
        if self._workers.running > 0:
            logger.warning(
                "%d handlers did not finish within %g s; their events will be delivered again",
                self._workers.running,
                self._settings.subscriber.grace_seconds,
            )

    def _on_answer(self) -> None:
        if self._parked:
            self._parked = False
            transport = self._transport
            if transport is not None:
                transport.wake()

    def _ended(self) -> bool:
        return self._stopping.is_set() or (self._deadline is not None and time.monotonic() >= self._deadline)

    def _wait_seconds(self) -> float:
        if self._deadline is None:
            return POLL_SECONDS
        return max(0.0, min(POLL_SECONDS, self._deadline - time.monotonic()))

    def _forget_outage_after(self, seconds: float) -> None:
        if seconds >= STABLE_SECONDS:
            self._outage.over()

    def _pause(self, seconds: float) -> None:
        left = seconds if self._deadline is None else self._deadline - time.monotonic()
        self._stopping.wait(min(seconds, left))

    def _tell_of_slow_handlers(self) -> None:
        """Say which handlers work on one event for long: the other events of theirs wait for it."""
        now = time.monotonic()
        if now < self._look_for_slow_at:
            return
        self._look_for_slow_at = now + SLOW_SECONDS / 6
        told, self._slow = self._slow, {}
        for work, since in self._workers.at_work():
            limit = told.get(id(work), SLOW_SECONDS)
            if now - since >= limit:
                limit *= 2
                logger.warning(
                    "%s has worked on %s %s for %d s",
                    work.delivery.queue,
                    work.delivery.routing_key,
                    work.delivery.event_id,
                    now - since,
                    extra={"handler": work.delivery.queue, "event_id": work.delivery.event_id},
                )
            self._slow[id(work)] = limit


class Subscriber:
    """Registers handlers, and calls them with the events that arrive.

    Only one thread handles events: even if several handlers are registered, one event is
    handled at a time. ``async`` handlers take turns on a loop beside it, one event at a time, too.
    ``manage.py run_subscriber`` runs handlers beside each other.

    :param connection_settings: URL of the broker; by default the configured one. ``None``:
        no event arrives.
    :param exchange: exchange that the queues are bound to.
    :param exchange_type: its type, should it have to be made.
    """

    def __init__(
        self,
        connection_settings: str | None = "",
        exchange: str = "domain-events",
        exchange_type: str = "topic",
    ) -> None:
        settings = config.resolve(connection_settings)
        self._settings = config.with_exchange(settings, exchange, exchange_type) if settings else None
        self._registry = Registry()
        self._transport: Transport | None = None
        self._consumer: Consumer | None = None
        self._stopped = False
        #: What it did so far; ``stats.as_dict()`` is ready for JSON.
        self.stats = Stats()

    def connect(self) -> None:
        """Connect to the broker, unless connected; :meth:`register` does so by itself."""
        if self._transport is None and self._settings is not None:
            self._transport = open_transport(self._settings)

    def disconnect(self) -> None:
        """Close the connection; events that were not handled go back to their queues."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def register(
        self,
        handler: HandlerFunction,
        name: str,
        binding_keys: Iterable[str],
        dead_letter: bool = True,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        max_retries: int = 0,
        **options: object,
    ) -> None:
        """Register a handler for one or more kinds of events.

        Its queue exists and is bound when this returns, so no event published after it is
        missed. A classic queue that the older library made is used as it is;
        ``manage.py declare_queues --migrate`` turns it into a quorum queue.

        :param handler: called with one :class:`DomainEvent`.
        :param name: name of the handler and of its queue.
        :param binding_keys: such as ``["user.registered", "user.*"]``; ``#`` for all events.
        :param dead_letter: keep events that failed for good in ``<name>-dl``. ``False`` drops
            them, with a line in the log.
        :param durable: whether the queue survives the broker.
        :param exclusive: whether the queue belongs to this connection and ends with it.
        :param auto_delete: whether the queue ends with its last consumer.
        :param max_retries: how often an event is delivered again when the handler raises
            ``Retry``, before it is dead-lettered.
        :param options: further parameters of :func:`subscribe`, such as ``backoff``.
        :raises HandlerError: it cannot be served as declared.
        :raises QueueMismatch: its queue exists with other arguments.
        :raises BrokerUnavailable: the broker could not be reached.
        """
        keys = (binding_keys,) if isinstance(binding_keys, str) else tuple(binding_keys)
        given = {key: value for key, value in normalised(**options).items() if value is not None}
        declared = Handler(
            call=handler,
            name=name,
            binding_keys=keys,
            dead_letter=dead_letter,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            **{"max_retries": max_retries, "adopt": True, **given},
        )
        self._registry.add(declared)
        if self._settings is not None:
            self.connect()
            assert self._transport is not None  # noqa: S101 - connect() made it or raised
            subscription = subscription_of(declared, self._settings.subscriber)
            check_supported(subscription, self._transport.capabilities)
            self._transport.subscribe(subscription)

    def start_consuming(self, timeout: float | None = None) -> None:
        """Handle events until :meth:`stop_consuming` is called, or ``timeout`` seconds have passed.

        A connection that is lost is opened anew, for ever. Ctrl-C ends it, too.

        :param timeout: in seconds; ``None`` or 0: no end.
        """
        stopped, self._stopped = self._stopped, False
        if self._settings is None or stopped:
            return
        self._consumer = Consumer(self._registry.all(), self._settings, threads=1)
        self._consumer.stats = self.stats
        if self._stopped:  # by another thread, since the first line: it did not see the consumer yet
            self._stopped = False
            self._consumer.stop()
        transport, self._transport = self._transport, None
        try:
            self._consumer.run(timeout or None, transport)
        finally:
            self._consumer = None

    def stop_consuming(self) -> None:
        """Let :meth:`start_consuming` finish the event at hand and return. Safe from any thread.

        Called before it, it makes the next :meth:`start_consuming` return at once.
        """
        consumer = self._consumer
        if consumer is not None:
            consumer.stop()
        else:
            self._stopped = True

    def __enter__(self) -> Subscriber:
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        if self._consumer is not None:
            self._consumer.stop()
        self.disconnect()
