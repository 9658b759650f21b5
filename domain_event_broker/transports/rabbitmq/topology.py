"""The queues of a handler: what they are called, which arguments they have, and how they come to be.

==================  =======================  ====================================================
queue               name                     arguments
==================  =======================  ====================================================
handler             ``<name>``               quorum, dead-letters at least once to ``<name>-dl``
waiting for retry   ``<name>-wait-<ms>``     quorum, returns at least once to ``<name>`` after ms
dead letters        ``<name>-dl``            quorum, keeps a letter however often it is looked at
==================  =======================  ====================================================

All of it goes through the default exchange, whose bindings nobody can remove; the handler's
queue alone is bound to the exchange of the events. The delay queues are not named
``<name>-delay-<ms>``, because the older library declares queues of that name with arguments of
its own, and stumbles over ours, as long as both serve one handler.

Arguments: https://www.rabbitmq.com/docs/quorum-queues and https://www.rabbitmq.com/docs/dlx.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pika.exceptions

from domain_event_broker.config import BrokerSettings
from domain_event_broker.errors import QueueMismatch, UnsupportedOption
from domain_event_broker.ports import Subscription
from domain_event_broker.transports.rabbitmq.connection import Channel, Connection
from domain_event_broker.transports.rabbitmq.ladder import LADDER_MS

logger = logging.getLogger(__name__)

#: Seconds that a quorum queue must have existed before anything is trusted to it. The broker
#: writes its name down lazily: killed less than a second after the declaration, it comes back
#: with the queue forgotten and confirmed messages gone (seen on 3.10, 4.0 and 4.3 up to 0.8 s;
#: https://github.com/rabbitmq/rabbitmq-server/issues/15725). It costs a handler's first start only.
SETTLE_SECONDS = 2.0

#: Times that a handler's queue takes an event back from a process that died with it, before it is
#: dead-lettered: the net for a handler that kills its process.
DELIVERY_LIMIT = 20

#: The same where there is nowhere to go from, so that the broker would delete: for dead letters,
#: where each look counts, and for a handler without dead letters. RabbitMQ 4 has a limit of 20 where
#: none is set, and no limit at all cannot be said in a way that all versions understand.
NO_DELIVERY_LIMIT = 1_000_000

#: Milliseconds that a delay queue of an auto-delete handler outlives its last use. Declaring
#: renews it, publishing does not: see :data:`LEASE_SECONDS`.
EXPIRES_MS = 3_600_000
#: Seconds after which the lease of such a queue is renewed when it is used: well before it ends,
#: for the queue is deleted with the events in it.
LEASE_SECONDS = 1_200.0

#: Arguments that decide whether events survive; a queue that differs in one is not adopted.
_VITAL = ("x-queue-type", "durable", "exclusive", "auto_delete")

_NOT_FOUND, _LOCKED, _REFUSED, _MISMATCH = 404, 405, 403, 406


@dataclass(frozen=True, slots=True)
class QueueSpec:
    """A queue as we want it."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False

    @property
    def is_quorum(self) -> bool:
        """Whether it is replicated, and so must settle."""
        return self.arguments.get("x-queue-type") == "quorum"


@dataclass(frozen=True, slots=True)
class QueueState:
    """A queue as it is."""

    ready: int
    consumers: int | None


@dataclass(frozen=True, slots=True)
class Layout:
    """The queues of one handler."""

    handler: QueueSpec
    letters: QueueSpec | None
    delays: Mapping[int, QueueSpec]

    def all(self) -> list[QueueSpec]:
        """Return them in the order of declaration: each after those it sends to when it fails."""
        return [*([self.letters] if self.letters else []), self.handler, *self.delays.values()]


@dataclass(frozen=True, slots=True)
class _Made:
    """The queues of a handler that can be used, and whether some of them must settle first."""

    layout: Layout
    is_young: bool


def letters_name(name: str) -> str:
    """Return the name of the dead-letter queue of the handler ``name``."""
    return f"{name}-dl"


def delay_name(name: str, step: int) -> str:
    """Return the name of a delay queue; ``step`` is in milliseconds."""
    return f"{name}-wait-{step}"


def helper_name(name: str) -> str:
    """Return the name of the queue that events wait in while the queue ``name`` is rebuilt."""
    return f"{name}-migrating"


def layout_of(subscription: Subscription) -> Layout:
    """Return the queues that a subscription asks for.

    :raises UnsupportedOption: a quorum queue cannot be exclusive, auto-delete or not durable.
    """
    _check_options(subscription)
    return Layout(
        handler=_handler_queue(subscription),
        letters=letters_queue(subscription) if subscription.dead_letter else None,
        delays={step: _delay_queue(subscription, step) for step in LADDER_MS},
    )


def letters_queue(wanted: Subscription) -> QueueSpec:
    """Return the dead-letter queue of a handler.

    Its limits lose letters, as they were asked to: the broker deletes those that are too old, and the
    oldest when there are too many (https://www.rabbitmq.com/docs/maxlength, ``drop-head``).
    """
    arguments: dict[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": NO_DELIVERY_LIMIT}
    if wanted.dead_letter_ttl is not None:
        arguments["x-message-ttl"] = round(wanted.dead_letter_ttl * 1000)
    if wanted.dead_letter_limit is not None:
        arguments |= {"x-max-length": wanted.dead_letter_limit, "x-overflow": "drop-head"}
    return QueueSpec(letters_name(wanted.name), arguments)


def _handler_queue(wanted: Subscription) -> QueueSpec:
    arguments: dict[str, Any] = {"x-queue-type": wanted.queue_type}
    if wanted.queue_type == "quorum":
        limit = DELIVERY_LIMIT if wanted.dead_letter else NO_DELIVERY_LIMIT
        arguments |= {"x-overflow": "reject-publish", "x-delivery-limit": limit}
    if wanted.dead_letter:
        arguments |= {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": letters_name(wanted.name)}
        if wanted.queue_type == "quorum":
            arguments["x-dead-letter-strategy"] = "at-least-once"
    return QueueSpec(wanted.name, arguments, wanted.durable, wanted.exclusive, wanted.auto_delete)


def _delay_queue(wanted: Subscription, step: int) -> QueueSpec:
    """Return a delay queue, which lives as long as the handler's queue.

    It is a quorum queue also where that one is classic: a classic queue loses confirmed events
    when the broker is killed while they expire.
    """
    arguments: dict[str, Any] = {
        "x-message-ttl": step,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": wanted.name,
    }
    if not _is_transient(wanted):
        arguments |= {
            "x-queue-type": "quorum",
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",  # without it the broker falls back to at most once
        }
        return QueueSpec(delay_name(wanted.name, step), arguments)
    arguments["x-queue-type"] = "classic"
    if wanted.auto_delete and not wanted.exclusive:
        arguments["x-expires"] = step + EXPIRES_MS
    return QueueSpec(delay_name(wanted.name, step), arguments, wanted.durable, wanted.exclusive)


def _is_transient(wanted: Subscription) -> bool:
    return wanted.exclusive or wanted.auto_delete or not wanted.durable


def _check_options(wanted: Subscription) -> None:
    if wanted.queue_type == "quorum" and _is_transient(wanted):
        raise UnsupportedOption(
            f"handler {wanted.name!r}: a quorum queue is always durable, shared and kept; "
            "use queue_type='classic' with exclusive, auto_delete or durable=False"
        )


class Topology:
    """Declares and inspects queues over one connection."""

    def __init__(self, connection: Connection, settings: BrokerSettings) -> None:
        self._connection = connection
        self._settings = settings
        self._channel: Channel | None = None

    def declare_exchange(self) -> None:
        """Make sure that the exchange of the events exists; that takes no more rights than publishing."""
        if not self._exchange_exists():
            self._ensure_exchange()
            logger.info("exchange %s declared", self._settings.exchange)

    def declare(self, wanted: Sequence[Subscription], settled: Callable[[], None]) -> list[Layout]:
        """Declare and bind what subscriptions need; return for each the queues that can be used.

        :param settled: called once when quorum queues were created; returns when they are safe.
        :raises QueueMismatch: a queue exists with other arguments; those before it are ready.
        """
        self._ensure_exchange()
        made: list[_Made] = []
        try:
            for each in wanted:
                made.append(self._make(each))
        finally:
            if any(each.is_young for each in made):
                settled()
            # Bound last: no event may enter a queue that could still vanish.
            for subscription in wanted[: len(made)]:
                self.bind(subscription.name, subscription.binding_keys)
        return [each.layout for each in made]

    def _make(self, wanted: Subscription) -> _Made:
        layout = layout_of(wanted)
        self._refuse_half_migrated(layout, wanted)
        usable: set[str] = set()
        created = [spec for spec in layout.all() if self._declare(spec, wanted, usable)]
        if created:
            logger.info("%d queues declared for handler %s", len(created), wanted.name)
        delays = {ms: spec for ms, spec in layout.delays.items() if spec.name in usable}
        return _Made(replace(layout, delays=delays), any(spec.is_quorum for spec in created))

    def adopted(self, wanted: Subscription) -> Subscription:
        """Return what is wanted, with a classic queue where there is one that may be used as it is."""
        if not wanted.adopt or wanted.queue_type != "quorum" or self.state(wanted.name) is None:
            return wanted
        difference = self.mismatch(_handler_queue(wanted))
        if not difference:
            return wanted
        logger.warning(
            "handler %s uses the queue that is there, which can lose events when its node is killed; "
            "'manage.py declare_queues --migrate %s' makes it a quorum queue: %s",
            wanted.name,
            wanted.name,
            difference,
            extra={"queue": wanted.name},
        )
        return replace(wanted, queue_type="classic")

    def ensure(self, spec: QueueSpec) -> None:
        """Declare a queue, in whatever shape it may be."""
        if self.state(spec.name) is None:
            error = self._active(spec)
            if error is not None:
                raise error

    def renew(self, spec: QueueSpec) -> None:
        """Declare a queue again, so that it does not expire."""
        error = self._active(spec)
        if error is not None:
            raise error

    def check(self, wanted: Subscription) -> list[str]:
        """Tell what :meth:`declare` would do. Bindings cannot be read over AMQP.

        :raises QueueMismatch: a queue exists with other arguments.
        """
        missing: list[str] = []
        if not self._exchange_exists():
            missing.append(f"the exchange {self._settings.exchange!r} does not exist")
        for spec in layout_of(wanted).all():
            if self.state(spec.name) is None:
                missing.append(f"the queue {spec.name!r} does not exist")
            else:
                self._verify(spec, wanted)
        return missing

    def state(self, name: str) -> QueueState | None:
        """Return the depth of a queue; ``None``: it does not exist."""
        found: list[QueueState] = []

        def ask(channel: Channel) -> None:
            reply = channel.ask(channel.pika.queue_declare, queue=name, passive=True)
            found.append(QueueState(reply.message_count, reply.consumer_count))

        error = self._attempt(ask)
        if error is None:
            return found[0]
        if error.reply_code == _LOCKED:  # exclusive to another connection: it is there, and tells no more
            return QueueState(0, None)
        if error.reply_code == _NOT_FOUND:
            return None
        raise error

    def mismatch(self, spec: QueueSpec) -> str:
        """Return the broker's words on how an existing queue differs from ``spec``; empty: it does not."""
        error = self._active(spec)
        if error is None:
            return ""
        if error.reply_code in (_MISMATCH, _LOCKED):
            return str(error.reply_text)
        raise error

    def bind(self, queue: str, keys: Iterable[str], exchange: str | None = None) -> None:
        """Bind a queue to an exchange, by default to that of the events."""
        source = self._settings.exchange if exchange is None else exchange
        if source:
            self._on_bindings(lambda channel: channel.pika.queue_bind, queue, keys, source)

    def unbind(self, queue: str, keys: Iterable[str], exchange: str | None = None) -> None:
        """Take bindings of a queue away, by default those to the exchange of the events."""
        source = self._settings.exchange if exchange is None else exchange
        if source:
            self._on_bindings(lambda channel: channel.pika.queue_unbind, queue, keys, source)

    def exchange_exists(self, name: str) -> bool:
        """Tell whether there is an exchange of this name."""
        return self._attempt(lambda c: c.ask(c.pika.exchange_declare, exchange=name, passive=True)) is None

    def delete(self, name: str) -> None:
        """Delete a queue."""
        error = self._attempt(lambda channel: channel.ask(channel.pika.queue_delete, queue=name))
        if error is not None:
            raise error

    def delete_if_empty(self, name: str) -> bool:
        """Delete a classic queue that has neither events nor consumers; tell whether it is gone.

        Never for a quorum queue: the broker closes the connection of who asks that.
        """
        error = self._attempt(
            lambda channel: channel.ask(channel.pika.queue_delete, queue=name, if_unused=True, if_empty=True)
        )
        if error is not None and error.reply_code != _MISMATCH:
            raise error
        return error is None

    def _refuse_half_migrated(self, layout: Layout, wanted: Subscription) -> None:
        """Refuse to start beside the helper of a migration that was killed: events would gather there."""
        for spec in (layout.handler, layout.letters):
            if spec is not None and self.state(helper_name(spec.name)) is not None:
                raise QueueMismatch(
                    f"a migration of queue {spec.name!r} was interrupted, and events wait in "
                    f"{helper_name(spec.name)!r}; run 'manage.py declare_queues --migrate {wanted.name}' "
                    "to finish it"
                )

    def _declare(self, spec: QueueSpec, wanted: Subscription, usable: set[str]) -> bool:
        """Declare one queue; tell whether it was created."""
        if self.state(spec.name) is not None:
            if self._verify(spec, wanted):
                usable.add(spec.name)
            return False
        error = self._active(spec)
        if error is not None:
            raise error
        usable.add(spec.name)
        return True

    def _verify(self, spec: QueueSpec, wanted: Subscription) -> bool:
        """Compare an existing queue with what is wanted; tell whether it serves.

        :raises QueueMismatch: it does not, and nothing else can take its place.
        """
        difference = self.mismatch(spec)
        if not difference:
            return True
        if self._is_our_quorum_queue(spec, wanted):
            difference = "received 'classic' but current is 'quorum' for arg 'x-queue-type'"
            raise QueueMismatch(_mismatch_text(spec, wanted, difference))
        vital = _argument(difference) in _VITAL
        if wanted.queue_type != "classic" or (vital and spec.name == wanted.name):
            raise QueueMismatch(_mismatch_text(spec, wanted, difference))
        # Our own copies go through the default exchange and need none of its arguments, so the
        # queues of the older library serve as they are. A delay queue does not: its arguments
        # are what it is for.
        is_delay = spec.name not in (wanted.name, letters_name(wanted.name))
        logger.warning(
            "queue %s exists with other arguments and is %s: %s",
            spec.name,
            "not used" if is_delay else "used as it is",
            difference,
            extra={"queue": spec.name},
        )
        return not is_delay

    def _is_our_quorum_queue(self, spec: QueueSpec, wanted: Subscription) -> bool:
        """Tell whether this handler used to ask for a quorum queue; the broker may name another argument."""
        if wanted.queue_type == "quorum" or spec.name != wanted.name or _is_transient(wanted):
            return False
        return not self.mismatch(_handler_queue(replace(wanted, queue_type="quorum")))

    def _active(self, spec: QueueSpec) -> pika.exceptions.ChannelClosedByBroker | None:
        return self._attempt(
            lambda channel: channel.ask(
                channel.pika.queue_declare,
                queue=spec.name,
                durable=spec.durable,
                exclusive=spec.exclusive,
                auto_delete=spec.auto_delete,
                arguments=dict(spec.arguments),
            )
        )

    def _attempt(self, command: Callable[[Channel], object]) -> pika.exceptions.ChannelClosedByBroker | None:
        """Run a command; return the broker's refusal, which closes the channel it came on."""
        if self._channel is None or self._channel.reason is not None:
            self._channel = self._connection.open_channel()
        try:
            command(self._channel)
        except pika.exceptions.ChannelClosedByBroker as error:
            return error
        return None

    def _ensure_exchange(self) -> None:
        """Declare the exchange, or compare it with what is wanted.

        :raises QueueMismatch: it exists with another type.
        """
        name, kind = self._settings.exchange, self._settings.exchange_type
        if not name:
            return
        error = self._attempt(
            lambda c: c.ask(c.pika.exchange_declare, exchange=name, exchange_type=kind, durable=True)
        )
        # Who may not make it need not: a user of subscribers can do without the right to delete it.
        if error is not None and not (error.reply_code == _REFUSED and self._exchange_exists()):
            self._raise_exchange_error(error)

    def _exchange_exists(self) -> bool:
        return not self._settings.exchange or self.exchange_exists(self._settings.exchange)

    def _raise_exchange_error(self, error: pika.exceptions.ChannelClosedByBroker) -> None:
        if error.reply_code != _MISMATCH:
            raise error
        raise QueueMismatch(
            f"the exchange {self._settings.exchange!r} exists with other arguments: {error.reply_text}. "
            "Set EXCHANGE or EXCHANGE_TYPE in DOMAIN_EVENT_BROKER to what it is, or delete it on the broker."
        )

    def _on_bindings(
        self, method: Callable[[Channel], Any], queue: str, keys: Iterable[str], exchange: str
    ) -> None:
        def ask(channel: Channel) -> None:
            for key in keys:
                channel.ask(method(channel), queue=queue, exchange=exchange, routing_key=key)

        error = self._attempt(ask)
        if error is not None:
            raise error


def is_classic(topology: Topology, queue: str, handler: str) -> bool:
    """Tell whether an existing queue is surely a classic one.

    The type cannot be read over AMQP, so it is compared with those that this library and the
    older one declare for ``handler``. One with arguments that neither uses is not recognized.
    """
    shapes: list[Mapping[str, Any]] = [{}, {"x-dead-letter-exchange": f"{handler}-dlx"}]
    for dead_letter in (True, False):
        ours = _handler_queue(Subscription(handler, (), dead_letter=dead_letter, queue_type="classic"))
        shapes.append(ours.arguments)
    return any(not topology.mismatch(QueueSpec(queue, shape)) for shape in shapes)


def _argument(difference: str) -> str:
    """Return the argument that the broker names first in its refusal."""
    found = re.search(r"inequivalent arg '([^']+)'", difference)
    return found.group(1) if found else ""


def _mismatch_text(spec: QueueSpec, wanted: Subscription, difference: str) -> str:
    return (
        f"the queue {spec.name!r} exists with other arguments than handler {wanted.name!r} "
        f"(queue_type={wanted.queue_type!r}) asks for: {difference}. Stop its subscribers and run "
        f"'manage.py declare_queues --migrate {wanted.name}': it rebuilds the queue and keeps its events."
    )
