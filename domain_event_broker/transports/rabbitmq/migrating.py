"""Rebuilding a handler's queues with other arguments, without losing an event.

RabbitMQ cannot change the arguments of a queue, nor rename one. So the events move to a helper
queue, the old queue is deleted, the new one declared, and the events move back. Killed at any
point, the next run finds the helper and goes on:

1. declare the helper, and bind it where the queue is bound: new events come into both
2. take the queue's bindings away, and move its events to the helper
3. delete the queue when the broker says that it is empty, with an eye on what comes in then
4. declare it anew, bind it, take the helper's bindings away
5. move the events back, and delete the helper

Each event is stored in its next queue before it leaves the last one. Those published during
steps 1 and 4 may be delivered twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from domain_event_broker.errors import BrokerUnavailable, QueueMismatch
from domain_event_broker.ports import Stored, Subscription
from domain_event_broker.transports.rabbitmq import wire
from domain_event_broker.transports.rabbitmq.connection import REPLY_TIMEOUT, Channel, Connection, Fetched
from domain_event_broker.transports.rabbitmq.publishing import Outgoing, Sender
from domain_event_broker.transports.rabbitmq.topology import (
    QueueSpec,
    Topology,
    helper_name,
    is_classic,
    layout_of,
    letters_name,
)

logger = logging.getLogger(__name__)

#: Events moved at once.
BATCH = 500
#: Seconds without an event after which the broker is asked whether the queue is empty.
QUIET_SECONDS = 0.3
#: Times in a row that it must say so.
EMPTY_LOOKS = 2


@dataclass(frozen=True, slots=True)
class _Rebuild:
    """One queue to be rebuilt.

    :param handler: name of the handler it belongs to.
    :param keys: what it is bound with; only the handler's own queue is.
    """

    spec: QueueSpec
    handler: str
    keys: Sequence[str]

    @property
    def helper(self) -> QueueSpec:
        """The queue that its events wait in."""
        return QueueSpec(helper_name(self.spec.name), {"x-queue-type": "quorum"})

    @property
    def old_retry_exchange(self) -> str:
        """Where retries of the older library come from, when their delay is over."""
        return f"{self.handler}-retry"


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
        """Rebuild the queues that differ from what is wanted; return how many events moved.

        :raises QueueMismatch: one that differs has consumers. Nothing was changed.
        """
        self._topology.declare_exchange()
        rebuilds = [
            _Rebuild(spec, wanted.name, wanted.binding_keys if spec.name == wanted.name else ())
            for spec in layout_of(wanted).all()
        ]
        for rebuild in rebuilds:
            self._refuse_if_busy(rebuild.spec)
        return sum(self._rebuild(rebuild) for rebuild in rebuilds)

    def _rebuild(self, queue: _Rebuild) -> int:
        exists = self._topology.state(queue.spec.name) is not None
        if exists and self._topology.mismatch(queue.spec):
            self._take_out(queue)
        elif self._topology.state(queue.helper.name) is None:
            return 0
        return self._put_back(queue)

    def _take_out(self, queue: _Rebuild) -> None:
        self._topology.ensure(queue.helper)
        self._settled()
        self._bind(queue.helper.name, queue)
        self._topology.unbind(queue.spec.name, queue.keys)
        self._empty_and_delete(queue, queue.spec.name, queue.helper.name)

    def _put_back(self, queue: _Rebuild) -> int:
        self._topology.ensure(queue.spec)
        self._settled()
        self._bind(queue.spec.name, queue)
        self._unbind_helper(queue)
        moved = self._empty_and_delete(queue, queue.helper.name, queue.spec.name)
        name = queue.spec.name
        logger.info("queue %s rebuilt, %d events moved", name, moved, extra={"queue": name})
        return moved

    def _bind(self, name: str, queue: _Rebuild) -> None:
        """Bind the queue ``name`` where ``queue`` is, so also for retries of the older library."""
        self._topology.bind(name, queue.keys)
        if queue.keys and self._topology.exchange_exists(queue.old_retry_exchange):
            self._topology.bind(name, queue.keys, exchange=queue.old_retry_exchange)

    def _unbind_helper(self, queue: _Rebuild) -> None:
        self._topology.unbind(queue.helper.name, queue.keys)
        if queue.keys and self._topology.exchange_exists(queue.old_retry_exchange):
            self._topology.unbind(queue.helper.name, queue.keys, exchange=queue.old_retry_exchange)

    def _empty_and_delete(self, queue: _Rebuild, source: str, target: str) -> int:
        """Move all events from ``source`` to ``target``, delete it, and return how many there were."""
        if is_classic(self._topology, source, queue.handler):
            return self._empty_and_delete_classic(queue, source, target)
        return self._empty_and_delete_quorum(queue, source, target)

    def _empty_and_delete_classic(self, queue: _Rebuild, source: str, target: str) -> int:
        """Let the broker delete the queue if it is empty, and else move on: there is no gap."""
        moved = 0
        while True:
            with self._connection.channel() as channel:
                moved += self._move(queue, _Drain(self._connection, channel, source), target)
            # What this channel had not acknowledged is back in the queue now, so it is not empty.
            if self._topology.delete_if_empty(source):
                return moved

    def _empty_and_delete_quorum(self, queue: _Rebuild, source: str, target: str) -> int:
        """Delete a queue that the broker cannot delete "if empty".

        So the last look is that of a consumer which excludes all others: what comes in up to the
        deletion is delivered to it before the broker cancels it, and moves after the deletion.
        That is a matter of milliseconds, and concerns nothing but retries and replays that
        arrive in them: only those would be lost if this process were killed just then, too. No
        order of steps closes the gap, for nothing keeps the default exchange from a queue.
        """
        with self._connection.channel() as channel:
            drain = _Drain(self._connection, channel, source)
            moved = self._move_all(queue, drain, source, target)
            self._topology.delete(source)
            try:
                drain.wait_for_the_end()
            finally:
                moved += self._move(queue, drain, target)
            return moved

    def _move_all(self, queue: _Rebuild, drain: _Drain, source: str, target: str) -> int:
        """Move events until the broker says that there are no more: silence alone may be a stall."""
        moved = looks = 0
        patience = time.monotonic() + REPLY_TIMEOUT
        while looks < EMPTY_LOOKS:
            batch = self._move(queue, drain, target)
            empty = self._is_empty(source)
            looks = looks + 1 if empty and not batch else 0
            moved += batch
            if batch or empty:
                patience = time.monotonic() + REPLY_TIMEOUT
            elif time.monotonic() > patience:
                raise BrokerUnavailable(
                    f"queue {source!r} has events left and hands none out. Nothing is lost; run it again"
                )
        return moved

    def _is_empty(self, source: str) -> bool:
        state = self._topology.state(source)
        # A quorum queue without a leader is reported with no events, and without our consumer.
        return state is None or (state.ready == 0 and state.consumers != 0)

    def _move(self, queue: _Rebuild, drain: _Drain, target: str) -> int:
        """Move events until none has come for a moment; return how many."""
        moved = 0
        while batch := drain.batch():
            self._store([_copy(fetched, target, queue) for fetched in batch])
            drain.ack(batch)
            moved += len(batch)
        return moved

    def _store(self, copies: Sequence[Outgoing]) -> None:
        # Nothing is acknowledged unless all are stored: a batch cut short moves again as a whole.
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


class _Drain:
    """The only consumer of a queue that is about to be deleted."""

    def __init__(self, connection: Connection, channel: Channel, queue: str) -> None:
        self._connection = connection
        self._channel = channel
        self._arrived: list[Fetched] = []
        self._ended: list[object] = []
        channel.pika.add_on_cancel_callback(self._ended.append)
        channel.ask(channel.pika.basic_qos, prefetch_count=BATCH)
        channel.ask(
            channel.pika.basic_consume,
            queue=queue,
            on_message_callback=lambda _channel, *message: self._arrived.append(Fetched(*message)),
            exclusive=True,
        )

    def batch(self) -> list[Fetched]:
        """Return what has come; nothing, if it stays quiet for a moment."""
        if not self._ended:
            self._connection.run_until(lambda: self._arrived, QUIET_SECONDS)
        batch, self._arrived = self._arrived, []
        return batch

    def ack(self, batch: Sequence[Fetched]) -> None:
        """Acknowledge what was moved; the broker does not mind that the queue is gone."""
        self._channel.ensure_open()
        self._channel.pika.basic_ack(batch[-1].method.delivery_tag, multiple=True)

    def wait_for_the_end(self) -> None:
        """Wait until the broker says that nothing will come any more.

        :raises BrokerUnavailable: it did not say so in time.
        """
        if not self._connection.run_until(lambda: self._ended, REPLY_TIMEOUT):
            raise BrokerUnavailable(
                f"the broker did not end the consumer of a deleted queue within {REPLY_TIMEOUT:g} s; "
                "an event that came in at that moment may be missing"
            )


def _copy(fetched: Fetched, target: str, queue: _Rebuild) -> Outgoing:
    key = wire.original_routing_key(fetched.properties, fetched.method.routing_key, queue.handler)
    is_letter = queue.spec.name == letters_name(queue.handler)
    failure = wire.failure_of(fetched.properties, queue.handler) if is_letter else None
    # The broker's own record of why a letter is dead does not travel with a copy: write it down.
    changes = failure.to_headers() if failure is not None else {}
    return Outgoing("", target, wire.copied(fetched.properties, key, changes), fetched.body)
