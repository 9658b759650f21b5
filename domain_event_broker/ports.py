"""The sockets of the house: what a transport, an outbox and an inbox promise.

The core is written against these protocols and knows no broker, no database and no
framework. Each member says what it promises; the contract suite
(``domain_event_broker.testing.TransportContract``) holds every transport to it.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from domain_event_broker.events import DomainEvent, Headers, Message

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from domain_event_broker.failures import Failure
    from domain_event_broker.handlers import Handler

Result = TypeVar("Result")


# --- publishing -------------------------------------------------------------------------


class Stored(enum.Enum):
    """What the broker answered to one published message."""

    #: Every queue bound for it has it, as safely as the broker can keep it.
    STORED = "stored"
    #: No queue is bound for it: nobody subscribes to this routing key.
    UNROUTABLE = "unroutable"
    #: The broker will not have it, now or ever; see the reason.
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class PublishOutcome:
    """Answer to one message, with the reason where it was refused.

    :param temporary: it was refused for what passes, such as a queue that is full or whose nodes are
        away: it is no fault of the message, and it is tried for as long as that lasts.
    """

    stored: Stored
    reason: str = ""
    temporary: bool = False


# --- subscribing ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Subscription:
    """What one handler needs of the broker: its queue and what belongs to it.

    :param name: name of the handler and of its queue.
    :param binding_keys: keys the queue is bound to the exchange with.
    :param delays: seconds of the retry delays known beforehand; others are served too.
    :param dead_letter: whether the queue has a dead-letter queue.
    :param dead_letter_ttl: seconds after which a dead letter is deleted; ``None``: never.
    :param dead_letter_limit: dead letters that are kept, the oldest go; ``None``: all.
    :param prefetch: deliveries that may be under way at once; the transport holds no more.
    :param queue_type: ``"quorum"`` or ``"classic"``, where the broker knows the difference.
    :param adopt: use a classic queue that exists as it is, where a quorum queue was asked for.
    """

    name: str
    binding_keys: tuple[str, ...]
    delays: tuple[float, ...] = ()
    dead_letter: bool = True
    prefetch: int = 50
    queue_type: str = "quorum"
    adopt: bool = False
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    dead_letter_ttl: float | None = None
    dead_letter_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event handed to one handler, and not yet settled.

    :param queue: name of the handler.
    :param routing_key: key the event was published with, also after retries and replays.
    :param event_id: identity on the envelope; empty where a foreign producer wrote none.
    :param retries: deliveries to this handler that failed before this one.
    :param crashes: how often the broker took the event back from a process that died or went
        away with it; not every broker counts.
    :param token: the transport's own.
    """

    queue: str
    body: bytes
    routing_key: str
    event_id: str = ""
    headers: Mapping[str, Any] = field(default_factory=dict)
    retries: int = 0
    crashes: int = 0
    token: Any = None


class Action(enum.Enum):
    """How a delivery ends."""

    #: Handled; forget it.
    ACK = "ack"
    #: Deliver it again to this handler after a delay, counted as one more retry.
    RETRY = "retry"
    #: Move it to the dead letters of this handler.
    DEAD = "dead"
    #: Give it back as it is: it was not tried.
    REQUEUE = "requeue"


@dataclass(frozen=True, slots=True)
class Settlement:
    """The answer to one delivery.

    :param delay: seconds until it comes back, for ``RETRY``.
    :param failure: why, for ``DEAD`` and ``RETRY``.
    :param outcome: what happened, in one word, for logs and figures: ``"handled"``,
        ``"duplicate"``, ``"filtered"``, ``"retried"``, ``"dead-lettered"``, ``"dropped"``,
        ``"requeued"``.
    :param seconds: time that it took to handle the event; 0 if that was not tried.
    """

    delivery: Delivery
    action: Action
    delay: float = 0.0
    failure: Failure | None = None
    outcome: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class QueueStats:
    """Depths of one handler's queues; ``None`` where the transport cannot tell.

    :param exists: whether the handler's queue is there at all.
    :param in_flight: delivered and not settled.
    :param delayed: waiting for a retry.
    """

    exists: bool
    ready: int = 0
    in_flight: int | None = None
    delayed: int = 0
    dead: int = 0
    consumers: int | None = None


# --- dead letters -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One event in the dead letters of one handler.

    :param failure: why it is there; ``None`` where nobody wrote it down.
    :param replays: how often it was put back to work before.
    """

    queue: str
    body: bytes
    routing_key: str
    event_id: str = ""
    headers: Headers = field(default_factory=dict)
    failure: Failure | None = None
    replays: int = 0


class Decision(str, enum.Enum):
    """What becomes of one dead letter."""

    #: Back into the queue of the handler, with its retries starting anew.
    RETRY = "retry"
    #: It stays.
    LEAVE = "leave"
    #: It is deleted.
    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class SiftReport:
    """What became of the dead letters that were looked at."""

    replayed: int = 0
    discarded: int = 0
    left: int = 0


class DeadLetters(Protocol):
    """The dead letters of one handler."""

    def count(self) -> int:
        """Return how many there are; 0 where the queue does not exist."""

    def sift(self, decide: Callable[[DeadLetter], Decision], limit: int | None = None) -> SiftReport:
        """Show each letter present at the start to ``decide`` once, oldest first, and do as it says.

        Ends, also when every answer is ``LEAVE``. Stops after ``limit`` letters were shown.
        A letter on its way back is stored in the handler's queue before it leaves the dead
        letters: killed in between, it is in both, never in neither. If ``decide`` raises,
        what was decided before is done, the letter at hand and those not shown stay.

        The letters left are not delivered again, moved or changed by being looked at.
        """


# --- the transport ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a transport can do; what it cannot is refused at start, not at run time."""

    #: Events outlive the process that published them.
    durable: bool = True
    #: Publishers, subscribers and replay may be different processes.
    cross_process: bool = True
    #: Queues that vanish with their consumer.
    transient_queues: bool = False
    #: Knows classic and quorum queues apart.
    queue_types: bool = False
    #: Dead letters can be limited in age and number.
    dead_letter_limits: bool = False


class Transport(Protocol):
    """A broker, seen from one thread.

    Only :meth:`wake` may be called from another thread than the one that made it. Every
    member raises :class:`~domain_event_broker.errors.BrokerUnavailable` when the connection
    is lost; the object is then of no further use but for :meth:`close`, and what was not
    settled comes back through another.
    """

    capabilities: Capabilities

    def publish(self, messages: Sequence[Message]) -> list[PublishOutcome]:
        """Send messages in order; return when the broker has answered for each, in that order.

        ``STORED`` means that the broker holds it in every queue bound for it. When this
        raises, any part of the messages may be stored.
        """

    def subscribe(self, subscription: Subscription) -> None:
        """Make sure that the queues of a handler exist and are bound, and receive from them.

        Idempotent. An event published after it returns reaches the handler. Binding keys are
        added, never taken away: events may be on their way because of them.

        :raises QueueMismatch: a queue exists with other arguments.
        :raises UnsupportedOption: the subscription asks for what the transport cannot do.
        """

    def declare(self, subscription: Subscription) -> None:
        """As :meth:`subscribe`, without receiving."""

    def check(self, subscription: Subscription) -> list[str]:
        """Tell, changing nothing, what :meth:`declare` would change; empty: all is in place.

        :raises QueueMismatch: a queue exists with other arguments.
        """

    def receive(self, limit: int, timeout: float) -> list[Delivery]:
        """Return up to ``limit`` deliveries, as soon as there is one, or none after ``timeout`` seconds.

        Keeps the connection alive meanwhile, with a ``limit`` of 0 too, so it must be called
        again within a few seconds as long as deliveries are under way. Events of one queue
        come in the order in which they entered it. One delivery is with one receiver at a
        time; if that one goes away without an answer, another gets it.
        """

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Answer for deliveries of this transport.

        The copy for ``RETRY`` or ``DEAD`` is stored before the original is acknowledged:
        killed in between, there are two, never none. ``DEAD`` for a subscription without dead
        letters deletes it.
        """

    def wake(self) -> None:
        """Make the :meth:`receive` under way in another thread, or else the next one, return early."""

    def dead_letters(self, queue: str) -> DeadLetters:
        """Return the dead letters of the handler ``queue``."""

    def stats(self, queues: Iterable[str]) -> dict[str, QueueStats]:
        """Return the depths of the queues of the named handlers; they need not exist."""

    def close(self) -> None:
        """Disconnect. Deliveries not settled go back to their queues. Never raises."""


class Migrating(Protocol):
    """A transport that can bring queues made by another version into shape."""

    def migrate(self, subscription: Subscription) -> int:
        """Rebuild the queues of a handler as it asks for now; return how many events moved.

        None is lost; killed in the middle, calling it again goes on.
        """


class Pruning(Protocol):
    """A transport whose bindings can be taken away."""

    def unbind(self, queue: str, keys: Iterable[str]) -> None:
        """Let events with these binding keys no longer come into a queue; what is in it stays.

        Idempotent; a queue that does not exist has no bindings.
        """


class Addressing(Protocol):
    """A transport that can put events into the queue of one handler, past all others."""

    def send_to(self, queue: str, messages: Sequence[Message]) -> list[PublishOutcome]:
        """Put messages, in order, at the end of the queue of the handler ``queue``.

        Returns as :meth:`Transport.publish` does; ``UNROUTABLE``: there is no such queue. The handler
        gets them as if they had just been published, with the routing keys that they carry.
        """


# --- the outbox -------------------------------------------------------------------------


class Outbox(Protocol):
    """Where publishers leave events: the database of the business rows."""

    def store(
        self,
        messages: Sequence[Message],
        *,
        using: str | None = None,
        deliver_at: datetime | None = None,
    ) -> None:
        """Write messages, in order, in the caller's transaction: they live and die with it.

        :param using: alias of the database of that transaction; ``None``: the default.
        :param deliver_at: not sent before this (aware) time.
        :raises OutboxUnavailable: they could not be written.
        """

    def in_async(self, call: Callable[..., Result]) -> Callable[..., Awaitable[Result]]:
        """Return ``call`` for use in a coroutine, run where database access is allowed."""


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A stored message that waits to be sent."""

    id: int
    bucket: int
    message: Message
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """Buckets that one relay may send from.

    :param deadline: reading of ``time.monotonic()`` after which nothing more may be sent on
        the strength of it, whatever the database says later.
    :param epochs: for each bucket, the number of times it changed hands.
    """

    epochs: Mapping[int, int]
    deadline: float


@dataclass(frozen=True, slots=True)
class Sent:
    """A row that is done with: the broker has it, or nobody wants it.

    :param unroutable: no queue was bound for it.
    """

    row: OutboxRow
    unroutable: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A row that the broker refused.

    :param retry_in: seconds until the next try; ``None``: parked until somebody decides.
    :param block_key: whether later rows of the same key wait for it.
    """

    row: OutboxRow
    reason: str
    retry_in: float | None
    block_key: bool


class RelayOutbox(Protocol):
    """The outbox as a relay sees it. Every member may raise ``OutboxUnavailable``."""

    def renew(self) -> Lease:
        """Join the relays or stay among them, and return the buckets that are ours now.

        Takes a fair share: with N relays alive, each ends with about 1/N of the buckets
        within seconds; those of a dead one move on when its lease has ended.
        """

    def fetch(self, lease: Lease, limit: int) -> list[OutboxRow]:
        """Return rows of our buckets that are due, in the order of their ids.

        Leaves out those whose key is blocked by a held row. No row is passed over for good,
        in whatever order transactions committed.
        """

    def settle(self, lease: Lease, sent: Sequence[Sent], held: Sequence[Held]) -> None:
        """Take sent rows out of the outbox (into the archive), and set refused ones aside.

        ``sent`` needs no lease: the broker has them. ``held`` is done only for buckets that
        are still ours.
        """

    def wait(self, timeout: float) -> None:
        """Return when new rows may be there, or after ``timeout`` seconds."""

    def wake(self) -> None:
        """Make the :meth:`wait` under way in another thread, or else the next one, return early."""

    def pending(self, limit: int = 10_000) -> int:
        """Return how many rows wait to be sent, counting no further than ``limit``."""

    def leave(self) -> None:
        """Give the lease back, so that others need not wait for its end. Never raises."""


# --- the inbox --------------------------------------------------------------------------


class Inbox(Protocol):
    """Runs handlers, and remembers for which events they took effect."""

    def run(self, handler: Handler, event: DomainEvent) -> bool:
        """Call ``handler`` with ``event`` unless it took effect for it before.

        Returns ``False`` for a duplicate. For an idempotent handler the memory is written in
        the transaction that the handler runs in, so both happen or neither does. What the
        handler raises passes through. An async handler is awaited meanwhile.

        :raises InboxUnavailable: the memory could not be asked, or its database went away, so
            nothing took effect; calling again later is safe.
        """

    async def arun(self, handler: Handler, event: DomainEvent, threads: Executor) -> bool:
        """As :meth:`run`, for an async handler, from the loop that it shall run on.

        :param threads: for what may wait: the memory, and the transaction.
        """
