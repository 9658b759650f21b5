"""Rebuilding queues under a new set of arguments: nothing lost, wherever it is interrupted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pika
import pytest

from domain_event_broker.errors import BrokerUnavailable, QueueMismatch
from domain_event_broker.ports import Action, Stored, Subscription
from domain_event_broker.transports.rabbitmq import migrating
from domain_event_broker.transports.rabbitmq.migrating import Migration
from domain_event_broker.transports.rabbitmq.topology import Topology
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.rabbitmq.test_topology import older_library_declares, older_library_delays
from tests.integration.rabbitmq.tools import answer, browse, collect, message, publish

EVENTS = 500


class Killed(BaseException):
    """The process dies here."""


@pytest.fixture(scope="module")
def broker() -> Iterator[PrivateRabbitMQ]:
    """A broker that is frozen now and then."""
    with PrivateRabbitMQ() as server:
        yield server


@pytest.fixture
def old(connect, handler, channel) -> Subscription:
    """A handler of the older library, with events, a dead letter and a retry that waits."""
    wanted = handler(prefetch=1000, binding_keys=())
    wanted = replace(wanted, binding_keys=(f"{wanted.name}.*",))
    publisher = connect()
    publisher.publish([message("makes.the.exchange")])
    older_library_declares(channel, wanted.name, dead_letter=True)
    publish(publisher, message(f"{wanted.name}.dead", b"dead"))
    wait_until(lambda: _reject(channel, wanted.name))
    publish(publisher, *(message(f"{wanted.name}.{n}", b"%d" % n) for n in range(EVENTS)))
    wait_until(lambda: publisher.stats([wanted.name])[wanted.name].ready == EVENTS)
    wait_until(lambda: publisher.dead_letters(wanted.name).count() == 1)
    yield wanted
    for exchange in ("dlx", "retry"):
        channel.exchange_delete(f"{wanted.name}-{exchange}")
    channel.queue_delete(f"{wanted.name}-delay-1500")


def assert_all_there(connect: Callable, wanted: Subscription, *more: bytes, once: bool = True) -> None:
    """Check that the handler has all its events, keys and dead letters."""
    transport = connect()
    transport.subscribe(wanted)
    got = collect(transport, EVENTS + len(more))
    got += transport.receive(1000, 0.5)
    answer(transport, got, Action.ACK)
    bodies = [delivery.body for delivery in got]
    assert set(bodies) == {b"%d" % n for n in range(EVENTS)} | set(more)
    assert len(bodies) == len(set(bodies)) or not once
    assert {each.routing_key for each in got if each.body == b"7"} == {f"{wanted.name}.7"}
    letter, *copies = browse(transport, wanted.name)
    assert not copies or not once
    assert (letter.body, letter.routing_key) == (b"dead", f"{wanted.name}.dead")
    assert letter.failure is not None
    assert letter.failure.reason == "rejected"


def test_the_older_library_s_queues_become_quorum_queues_with_all_their_events(
    connect, old, rabbitmq_server
) -> None:
    transport = connect()
    with pytest.raises(QueueMismatch, match="--migrate"):
        transport.subscribe(old)
    assert transport.migrate(old) == EVENTS + 1
    assert transport.check(old) == []
    listed = rabbitmq_server.ctl("list_queues", "name", "type", "--no-table-headers")
    types = dict(line.split("\t") for line in listed.splitlines() if line.startswith(old.name))
    assert set(types.values()) == {"quorum"}
    assert not [name for name in types if name.endswith("-migrating")]
    publish(transport, message(f"{old.name}.new", b"new"))
    assert_all_there(connect, old, b"new")
    assert transport.migrate(old) == 0


def test_their_order_is_kept(connect, old) -> None:
    transport = connect()
    transport.migrate(old)
    transport.subscribe(old)
    assert [int(each.body) for each in collect(transport, EVENTS)] == list(range(EVENTS))


def test_a_retry_of_the_older_library_comes_back_into_the_new_queue(connect, old, channel) -> None:
    older_library_delays(channel, old.name, 1500)
    channel.queue_bind(f"{old.name}-delay-1500", "amq.topic", f"{old.name}.late")
    channel.basic_publish("amq.topic", f"{old.name}.late", b"late")
    connect().migrate(old)
    # Coming back while both queues are bound, it is in both.
    assert_all_there(connect, old, b"late", once=False)


def test_a_migration_under_running_subscribers_is_refused_and_changes_nothing(connect, old) -> None:
    classic = replace(old, queue_type="classic")
    running = connect()
    running.subscribe(classic)
    with pytest.raises(QueueMismatch, match=r"1 consumers.*stop its subscribers"):
        connect().migrate(old)
    running.close()
    assert_all_there(connect, classic)


STEPS = [
    (Topology, "ensure", 1),
    (Topology, "bind", 1),
    (Topology, "unbind", 1),
    (Migration, "_store", 1),
    (Migration, "_store", 2),
    (Topology, "delete_if_empty", 1),
    (Topology, "delete", 1),
    (Topology, "ensure", 2),
    (Topology, "bind", 3),
    (Topology, "unbind", 3),
    (Migration, "_store", 4),
    (Topology, "delete_if_empty", 2),
]


@pytest.mark.parametrize(
    ("where", "step", "times"), STEPS, ids=lambda value: getattr(value, "__name__", value)
)
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_step_nothing_is_lost_and_the_next_run_ends_it(
    connect, old, monkeypatch, where, step, times, moment
) -> None:
    real, left = getattr(where, step), [times]

    def deadly(self: object, *args: object, **kwargs: object) -> object:
        left[0] -= 1
        if left[0] == 0 and moment == "before":
            raise Killed
        result = real(self, *args, **kwargs)
        if left[0] == 0:
            raise Killed
        return result

    monkeypatch.setattr(where, step, deadly)
    victim = connect()
    with pytest.raises(Killed):
        victim.migrate(old)
    victim.close()
    monkeypatch.setattr(where, step, real)
    publisher = connect()
    assert publisher.publish([message(f"{old.name}.meanwhile", b"meanwhile")])[0].stored is Stored.STORED
    with pytest.raises(QueueMismatch, match="--migrate"):
        publisher.subscribe(old)
    connect().migrate(old)
    assert_all_there(connect, old, b"meanwhile", once=False)


STALLED = 2000


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
@pytest.mark.parametrize("batches", [1, 3, 6])
def test_a_broker_that_stalls_in_the_middle_loses_nothing(
    broker, connect, monkeypatch, queue_type, batches
) -> None:
    """Silence is not emptiness: the broker is frozen for longer than the migration listens for events."""
    wanted = Subscription(f"stalled-{queue_type}-{batches}", (f"stalled-{queue_type}-{batches}.#",))
    old_arguments = {"x-queue-type": "quorum", "x-delivery-limit": 7} if queue_type == "quorum" else {}
    transport = connect(broker.url())
    transport.publish([message("makes.the.exchange")])
    with pika.BlockingConnection(pika.URLParameters(broker.url())) as connection:
        channel = connection.channel()
        channel.queue_declare(wanted.name, durable=True, arguments=old_arguments)
        channel.queue_bind(wanted.name, "domain-events", wanted.binding_keys[0])
    publish(transport, *(message(f"{wanted.name}.x", b"%d" % number) for number in range(STALLED)))
    wait_until(lambda: transport.stats([wanted.name])[wanted.name].ready == STALLED)
    store, calls = Migration._store, []

    def store_and_stall(self: Migration, copies: object) -> None:
        store(self, copies)
        calls.append(copies)
        if len(calls) == batches:
            broker.freeze()
            thaw.start()

    take = migrating._Drain.batch

    def take_all_there_is(self: migrating._Drain) -> list[object]:
        # So that nothing more is under way when the broker stalls before the next.
        self._connection.run_until(lambda: len(self._arrived) == migrating.BATCH, 0.5)
        return take(self)

    thaw = threading.Timer(4 * migrating.QUIET_SECONDS, broker.thaw)
    monkeypatch.setattr(migrating._Drain, "batch", take_all_there_is)
    monkeypatch.setattr(Migration, "_store", store_and_stall)
    assert connect(broker.url()).migrate(wanted) >= STALLED
    thaw.join()
    again = connect(broker.url())
    again.subscribe(wanted)
    found: set[int] = set()
    while batch := again.receive(1000, 1.0):
        answer(again, batch, Action.ACK)
        found.update(int(each.body) for each in batch)
    assert len(found) == STALLED


def test_a_classic_queue_into_which_an_event_slips_is_not_deleted(connect, old, monkeypatch) -> None:
    real, slipped = Topology.delete_if_empty, []

    def slip_in(self: Topology, name: str) -> bool:
        if name == old.name and not slipped:
            slipped.append(name)
            with pika.BlockingConnection(pika.URLParameters(self._connection._url)) as connection:
                connection.channel().confirm_delivery()
                connection.channel().basic_publish("", name, b"slipped in")
            wait_until(lambda: self.state(name).ready == 1)
        return real(self, name)

    monkeypatch.setattr(Topology, "delete_if_empty", slip_in)
    transport = connect()
    assert transport.migrate(old) == EVENTS + 2
    transport.subscribe(old)
    assert b"slipped in" in [each.body for each in collect(transport, EVENTS + 1)]


def test_an_end_that_the_broker_does_not_tell_is_an_error(connect, old, monkeypatch) -> None:
    monkeypatch.setattr(migrating, "REPLY_TIMEOUT", 0.5)
    monkeypatch.setattr(Topology, "delete", lambda self, name: None)
    with pytest.raises(BrokerUnavailable, match="did not end the consumer"):
        connect().migrate(old)


def _reject(channel, queue: str) -> bool:
    method, _, _ = channel.basic_get(queue)
    if method is not None:
        channel.basic_reject(method.delivery_tag, requeue=False)
    return method is not None
