"""Subscribing: steps three and four of an event's way.

One thread, the loop, receives deliveries and settles them; it alone touches the connection.
Handlers run in the threads of a pool. A delivery is acknowledged when its handler has
returned; one whose process dies is delivered again.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from domain_event_broker import config
from domain_event_broker.config import BrokerSettings, SubscriberSettings
from domain_event_broker.errors import BrokerUnavailable, HandlerError, InboxUnavailable
from domain_event_broker.execution import DirectInbox, execute
from domain_event_broker.handlers import Handler, HandlerFunction, Registry
from domain_event_broker.pool import HandlerPool, Job
from domain_event_broker.ports import Action, Delivery, Inbox, Settlement, Subscription, Transport
from domain_event_broker.transports import open_transport

logger = logging.getLogger("domain_event_broker.subscriber")

#: Longest stay in one receive(), in seconds: a stop asked for by a signal waits no longer.
POLL_SECONDS = 0.25
#: Deliveries taken from the transport at once; how many are under way is bounded by prefetch.
RECEIVE_LIMIT = 1000
#: Seconds between two tries to reach a broker or an inbox that is away: at first, and at most.
RECONNECT_SECONDS = (0.2, 5.0)

_inbox: Inbox = DirectInbox()


def install_inbox(inbox: Inbox | None) -> None:
    """Let handlers be called through ``inbox`` from now on; ``None``: directly."""
    global _inbox
    _inbox = inbox or DirectInbox()


def subscription_of(handler: Handler, defaults: SubscriberSettings) -> Subscription:
    """Return what ``handler`` needs of the broker, with the defaults of the settings filled in."""
    transient = handler.exclusive or handler.auto_delete or not handler.durable
    prefetch = handler.prefetch or max(defaults.prefetch, 2 * (handler.concurrency or defaults.concurrency))
    return Subscription(
        name=handler.name,
        binding_keys=handler.binding_keys,
        delays=handler.policy(defaults.max_retries).known_delays(),
        dead_letter=handler.dead_letter,
        prefetch=prefetch,
        queue_type=handler.queue_type or ("classic" if transient else defaults.queue_type),
        adopt=handler.adopt,
        durable=handler.durable,
        exclusive=handler.exclusive,
        auto_delete=handler.auto_delete,
    )


@dataclass(frozen=True, slots=True)
class _Work:
    """A delivery, and the number of the connection it came over."""

    session: int
    delivery: Delivery


class Consumer:
    """Receives the events of some handlers until it is stopped, whatever the broker does.

    :param handlers: the handlers; each has a name of its own.
    :param settings: where the broker is, and the defaults of handlers.
    :param inbox: calls the handlers; default: the one that is installed.
    :param threads: handlers that run at once, all in all; default: the sum of what they allow.
    :param connect: opens the transport, anew after each loss.
    """

    def __init__(
        self,
        handlers: Sequence[Handler],
        settings: BrokerSettings,
        inbox: Inbox | None = None,
        threads: int | None = None,
        connect: Callable[[BrokerSettings], Transport] = open_transport,
    ) -> None:
        if not handlers:
            raise HandlerError("there is no handler to run; declare one with @subscribe")
        if not settings.subscriber.inbox:
            handlers = [replace(handler, idempotent=False) for handler in handlers]
        self._handlers = {handler.name: handler for handler in handlers}
        self._settings = settings
        self._inbox = inbox or _inbox
        self._connect = connect
        self._stopping = threading.Event()
        self._parked = False
        self._transport: Transport | None = None
        self._session = 0
        self._was_serving = False
        self._deadline: float | None = None
        defaults = settings.subscriber
        self._policies = {handler.name: handler.policy(defaults.max_retries) for handler in handlers}
        self._limits = {handler.name: handler.concurrency or defaults.concurrency for handler in handlers}
        self._threads = threads or sum(self._limits.values())

    def run(self, timeout: float | None = None, transport: Transport | None = None) -> None:
        """Receive and handle events until :meth:`stop` is called, or ``timeout`` seconds have passed.

        A broker that is away is tried again for ever. On the way out running handlers get
        ``grace_seconds`` to finish, what was not started goes back to its queue.

        :param transport: an open one to begin with.
        :raises QueueMismatch: a queue exists with other arguments.
        :raises ConfigurationError: the broker cannot serve the handlers as they are declared.
        """
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._pool = HandlerPool(
            self._execute,
            self._limits,
            self._threads,
            self._on_answer,
            may_start=lambda: not self._ended(),
        )
        failures = 0
        try:
            while not self._ended():
                try:
                    self._serve(transport)
                    failures = 0
                except BrokerUnavailable as error:
                    failures = 0 if self._was_serving else failures + 1
                    self._lost(error, failures)
                    self._pause(failures)
                transport = None
        finally:
            self._pool.close()

    def stop(self) -> None:
        """Let :meth:`run` finish what is running and return. Safe from any thread or signal handler."""
        self._stopping.set()

    def _serve(self, transport: Transport | None) -> None:
        """Serve over one connection until stopped; raises when the connection is lost."""
        self._was_serving = False
        self._transport = transport or self._connect(self._settings)
        self._session += 1
        try:
            for handler in self._handlers.values():
                self._transport.subscribe(subscription_of(handler, self._settings.subscriber))
            self._was_serving = True
            logger.info(
                "consuming %s from %s",
                ", ".join(self._handlers),
                self._settings.masked_url,
                extra={"handlers": list(self._handlers)},
            )
            while not self._ended():
                self._turn(self._transport, RECEIVE_LIMIT, self._wait_seconds())
            self._finish(self._transport)
        finally:
            # Deliveries of this connection that were not started come back over the next one.
            self._pool.drop_waiting()
            transport, self._transport = self._transport, None
            transport.close()

    def _turn(self, transport: Transport, limit: int, wait: float) -> None:
        """Settle what is done, and receive what is there, waiting only if nothing is done."""
        self._parked = True
        answers = self._pool.answers()
        settlements = [settlement for session, settlement in answers if session == self._session]
        if settlements:
            transport.settle(settlements)
        deliveries = transport.receive(limit, 0 if settlements else wait)
        self._parked = False
        if deliveries:
            self._pool.submit(Job(each.queue, _Work(self._session, each)) for each in deliveries)

    def _finish(self, transport: Transport) -> None:
        """Give back what was not started, wait for what runs, settle it."""
        waiting = [work.delivery for work in self._pool.drop_waiting() if work.session == self._session]
        if waiting:
            transport.settle([Settlement(delivery, Action.REQUEUE) for delivery in waiting])
        end = time.monotonic() + self._settings.subscriber.grace_seconds
        while self._pool.busy and time.monotonic() < end:
            self._turn(transport, 0, POLL_SECONDS)
        if self._pool.running:
            logger.warning(
                "%d handlers did not finish within %g s; their events will be delivered again",
                self._pool.running,
                self._settings.subscriber.grace_seconds,
            )

    def _execute(self, work: _Work) -> tuple[int, Settlement]:
        handler = self._handlers[work.delivery.queue]
        wait = RECONNECT_SECONDS[0]
        while True:
            try:
                return work.session, execute(
                    work.delivery, handler, self._policies[handler.name], self._inbox
                )
            except InboxUnavailable as error:
                # The delivery is kept, not given back: the event is fine, the database is not.
                logger.warning("%s waits for the inbox: %s", handler.name, error)
                if self._stopping.wait(wait) or work.session != self._session:
                    return work.session, Settlement(work.delivery, Action.REQUEUE)
                wait = min(wait * 2, RECONNECT_SECONDS[1])

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

    def _lost(self, error: BrokerUnavailable, failures: int) -> None:
        if failures <= 1:
            logger.error("%s; trying again until it is back", error)
        else:
            logger.debug("still no broker: %s", error)

    def _pause(self, failures: int) -> None:
        seconds = min(RECONNECT_SECONDS[0] * 2 ** min(failures, 10), RECONNECT_SECONDS[1])
        left = seconds * random.uniform(0.5, 1.0)  # noqa: S311 - spreads reconnects, no secret
        if self._deadline is not None:
            left = max(0.0, min(left, self._deadline - time.monotonic()))
        self._stopping.wait(left)


class Subscriber:
    """Registers handlers, and calls them with the events that arrive.

    Only one thread handles events: even if several handlers are registered, one event is
    handled at a time. ``manage.py run_subscriber`` runs handlers beside each other.

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
        declared = Handler(
            call=handler,
            name=name,
            binding_keys=keys,
            dead_letter=dead_letter,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            max_retries=max_retries,
            **{"adopt": True, **options},  # type: ignore[arg-type]
        )
        self._registry.add(declared)
        if self._settings is not None:
            self.connect()
            assert self._transport is not None  # noqa: S101 - connect() made it or raised
            self._transport.subscribe(subscription_of(declared, self._settings.subscriber))

    def start_consuming(self, timeout: float | None = None) -> None:
        """Handle events until :meth:`stop_consuming` is called, or ``timeout`` seconds have passed.

        A connection that is lost is opened anew, for ever.
        """
        if self._settings is None or self._stopped:
            return
        self._consumer = Consumer(self._registry.all(), self._settings, threads=1)
        if not self._stopped:  # stop_consuming() may have been called in between
            transport, self._transport = self._transport, None
            self._consumer.run(timeout, transport)
        self._stopped = False

    def stop_consuming(self) -> None:
        """Let :meth:`start_consuming` finish the event at hand and return. Safe from any thread."""
        if self._consumer is not None:
            self._consumer.stop()
        else:
            self._stopped = True
