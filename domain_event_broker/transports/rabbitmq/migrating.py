"""Rebuilding a handler's queues with other arguments, without losing an event.

RabbitMQ cannot change the arguments of a queue, nor rename one. So the events move to a helper
queue, the old queue is deleted, the new one declared, and the events move back. Killed at any
point, the next run finds the helper and goes on:

1. declare the helper, and bind it where the queue is bound: new events come into both
2. take the queue's bindings away, and move its events to the helper
3. delete the queue, which the broker does only if it is empty and has no consumer
4. declare it anew, bind it, take the helper's bindings away
5. move the events back, and delete the helper if it is empty

Each event is stored in its next queue before it leaves the last one. Those published during
step 1 may be delivered twice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from domain_event_broker.errors import BrokerUnavailable, QueueMismatch
from domain_event_broker.ports import Stored, Subscription
from domain_event_broker.transports.rabbitmq import wire
from domain_event_broker.transports.rabbitmq.connection import Channel, Connection, Fetched
from domain_event_broker.transports.rabbitmq.publishing import Outgoing, Sender
from domain_event_broker.transports.rabbitmq.topology import QueueSpec, Topology, layout_of, letters_name

logger = logging.getLogger(__name__)

#: Events moved at once.
BATCH = 500

#: Exchange through which the older library brings retries back to the queue of a handler.
_OLD_RETRY_EXCHANGE = "{name}-retry"


class Migration:
    """Rebuilds queues over a connection to read from and a sender.

    :param settled: returns when quorum queues just created are safe.
    """

    def __init__(
        self, connection: Connection, topology: Topology, sender: Sender, settled: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._topology = topology
        self._sender = sender
        self._settled = settled

    def run(self, wanted: Subscription) -> int:
        """Rebuild the queues that differ from what is wanted; return how many events moved."""
        self._topology.declare_exchange()
        specs = layout_of(wanted).all()
        for spec in specs:
            self._refuse_if_busy(spec)
        return sum(self._rebuild(spec, wanted) for spec in specs)

    def _rebuild(self, spec: QueueSpec, wanted: Subscription) -> int:
        helper = QueueSpec(_helper_name(spec.name), {"x-queue-type": "quorum"})
        keys = wanted.binding_keys if spec.name == wanted.name else ()
        exists = self._topology.state(spec.name) is not None
        if exists and self._topology.mismatch(spec):
            self._take_out(spec, helper, keys)
        elif self._topology.state(helper.name) is None:
            return 0
        return self._put_back(spec, helper, keys)

    def _take_out(self, spec: QueueSpec, helper: QueueSpec, keys: Sequence[str]) -> None:
        self._topology.ensure(helper)
        self._settled()
        self._bind(helper.name, spec.name, keys)
        self._topology.unbind(spec.name, keys)
        while True:
            self._move(spec.name, helper.name, spec.name)
            if self._topology.delete_if_idle(spec.name):
                return
            # Something came in after the last look: by the old exchange of retries, for instance.
            self._refuse_if_busy(spec)

    def _put_back(self, spec: QueueSpec, helper: QueueSpec, keys: Sequence[str]) -> int:
        self._topology.ensure(spec)
        self._settled()
        self._bind(spec.name, spec.name, keys)
        self._topology.unbind(helper.name, keys)
        moved = 0
        while True:
            moved += self._move(helper.name, spec.name, spec.name)
            if self._topology.delete_if_idle(helper.name):
                logger.info("queue %s rebuilt, %d events moved", spec.name, moved, extra={"queue": spec.name})
                return moved

    def _bind(self, queue: str, name: str, keys: Sequence[str]) -> None:
        """Bind ``queue`` where the queue ``name`` is bound, also for retries of the older library."""
        self._topology.bind(queue, keys)
        old = _OLD_RETRY_EXCHANGE.format(name=name)
        if keys and self._topology.exchange_exists(old):
            self._topology.bind(queue, keys, exchange=old)

    def _move(self, source: str, target: str, name: str) -> int:
        """Move what is in ``source`` to ``target``; ``name`` is the queue they stand for."""
        moved = 0
        with self._connection.channel() as channel:
            while batch := self._fetch(channel, source):
                self._store([_copy(fetched, target, name) for fetched in batch])
                channel.pika.basic_ack(batch[-1].method.delivery_tag, multiple=True)
                moved += len(batch)
        return moved

    def _fetch(self, channel: Channel, source: str) -> list[Fetched]:
        batch: list[Fetched] = []
        while len(batch) < BATCH and (fetched := channel.get(source)) is not None:
            batch.append(fetched)
        return batch

    def _store(self, copies: Sequence[Outgoing]) -> None:
        # Nothing is acknowledged unless all are stored: what is left of a batch moves again.
        for outcome in self._sender.send(copies):
            if outcome.stored is not Stored.STORED:
                reason = outcome.reason or "it does not exist"
                raise BrokerUnavailable(
                    f"queue {copies[0].routing_key!r} did not take an event: {reason}. "
                    "Nothing is lost; run it again"
                )

    def _refuse_if_busy(self, spec: QueueSpec) -> None:
        state = self._topology.state(spec.name)
        if state is not None and state.consumers and self._topology.mismatch(spec):
            raise QueueMismatch(
                f"the queue {spec.name!r} has {state.consumers} consumers and cannot be rebuilt under them; "
                "stop its subscribers first, then migrate again"
            )


def _helper_name(name: str) -> str:
    return f"{name}-migrating"


def _copy(fetched: Fetched, target: str, name: str) -> Outgoing:
    properties = fetched.properties
    handler = name.removesuffix(letters_name(""))
    key = wire.original_routing_key(properties, fetched.method.routing_key, handler)
    failure = wire.failure_of(properties, handler) if name != handler else None
    # The broker's own record of why a letter is dead does not travel with a copy: write it down.
    changes = failure.to_headers() if failure is not None else {}
    return Outgoing("", target, wire.copied(properties, key, changes), fetched.body)
