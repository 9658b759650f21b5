"""Publishing: every message gets the answer that the broker gave to it, whatever happens to the others."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pika
import pytest

from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.events import Message
from domain_event_broker.ports import Action, Stored, Subscription
from domain_event_broker.transports.rabbitmq import RabbitMQTransport
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.rabbitmq.tools import SOON, answer, collect, message, publish

STORED, UNROUTABLE, REFUSED = Stored.STORED, Stored.UNROUTABLE, Stored.REFUSED


@pytest.fixture
def small_broker() -> Iterator[PrivateRabbitMQ]:
    """A broker of the test's own that takes bodies up to 100 kB."""
    broker = PrivateRabbitMQ()
    with broker:
        broker.ctl("eval", "application:set_env(rabbit, max_message_size, 100000).")
        broker.ctl("eval", "persistent_term:put(max_message_size, 100000).")
        yield broker


def test_a_mixed_batch_of_three_thousand_gets_the_right_answers(connect, handler, channel) -> None:
    taken, full = handler(prefetch=1), handler()
    transport = connect()
    transport.declare(taken)
    channel.queue_declare(
        full.name,
        durable=True,
        arguments={"x-queue-type": "classic", "x-max-length": 0, "x-overflow": "reject-publish"},
    )
    channel.queue_bind(full.name, "domain-events", f"{full.name}.#")
    keys = {
        STORED: f"{taken.name}.placed",
        UNROUTABLE: f"nobody-listens-to.{taken.name}",
        REFUSED: f"{full.name}.placed",
    }
    expected = [
        REFUSED if number % 7 == 3 else UNROUTABLE if number % 5 == 1 else STORED for number in range(3000)
    ]
    # The first into a queue of no length is taken: fill it.
    transport.publish([message(keys[REFUSED])])
    outcomes = transport.publish([message(keys[kind], b"%d" % n) for n, kind in enumerate(expected)])
    assert [outcome.stored for outcome in outcomes] == expected
    assert {outcome.reason for outcome in outcomes if outcome.stored is REFUSED} == {
        "the broker said no (basic.nack): a queue bound for it is full or lacks its majority"
    }
    wait_until(lambda: transport.stats([taken.name])[taken.name].ready == expected.count(STORED))


def test_messages_that_look_alike_are_told_apart_by_their_order(connect, handler) -> None:
    wanted = handler()
    transport = connect()
    transport.declare(wanted)
    twin, stranger = message(f"{wanted.name}.x"), message(f"unknown.{wanted.name}")
    batch = [stranger, twin, stranger, twin, stranger]
    assert [each.stored for each in transport.publish(batch)] == [
        UNROUTABLE,
        STORED,
        UNROUTABLE,
        STORED,
        UNROUTABLE,
    ]


def test_one_that_cannot_be_encoded_is_refused_and_the_others_flow(connect, handler) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    key = f"{wanted.name}.x"
    poison = [
        Message("k" * 300, b"key too long", "1"),
        Message(key, b"surrogate", "2", headers={"bad": "\ud800"}),
        Message(key, b"header too large for AMQP", "3", headers={"n": 2**70}),
        Message(key, b"headers larger than a frame", "4", headers={"n": "x" * 200_000}),
        Message(key, b"identity too long", "5" * 300),
    ]
    odd = Message(key, b"odd time", "6", timestamp=float("inf"))
    good = [message(key, b"%d" % number) for number in range(len(poison))]
    batch = [*(each for pair in zip(poison, good, strict=True) for each in pair), odd]
    outcomes = transport.publish(batch)
    assert [each.stored for each in outcomes] == [REFUSED, STORED] * len(poison) + [STORED]
    assert all("cannot be encoded" in each.reason for each in outcomes[:-1:2])
    assert "frame" in outcomes[6].reason
    assert [each.body for each in collect(transport, len(good))] == [each.body for each in good]
    assert collect(transport, 1)[0].body == odd.body


def test_a_body_over_the_limit_of_the_settings_is_not_even_sent(connect, handler, rabbitmq_server) -> None:
    wanted = handler()
    transport = connect({"URL": rabbitmq_server.url(), "MAX_PAYLOAD_BYTES": 1000})
    transport.declare(wanted)
    outcomes = transport.publish([message(f"{wanted.name}.x", b"x" * size) for size in (1001, 1000)])
    assert [each.stored for each in outcomes] == [REFUSED, STORED]
    assert "1001 bytes" in outcomes[0].reason
    assert "MAX_PAYLOAD_BYTES" in outcomes[0].reason


def test_a_body_over_the_limit_of_the_broker_is_refused_and_the_others_flow(small_broker, connect) -> None:
    transport = connect(small_broker.url())
    transport.subscribe(Subscription("small", ("small.#",), prefetch=1000))
    sizes = [10, 100_001, 20, 30, 100_002, 40]
    outcomes = transport.publish([message("small.x", b"x" * size) for size in sizes])
    assert [each.stored for each in outcomes] == [STORED, REFUSED, STORED, STORED, REFUSED, STORED]
    assert "larger than" in outcomes[1].reason
    # Those around it may have come twice, and none of them is missing.
    seen: set[int] = set()
    wait_until(lambda: seen.update(len(each.body) for each in transport.receive(9, 0.1)) or len(seen) == 4)
    assert seen == {10, 20, 30, 40}


def test_a_routing_key_that_is_forbidden_is_refused_and_the_others_flow(
    connect, handler, channel, rabbitmq_server, fresh_name
) -> None:
    wanted, user = handler(prefetch=1000), fresh_name("restricted")
    connect().declare(wanted)
    rabbitmq_server.add_user(user, "secret")
    pattern = f"^{wanted.name}[.]allowed"
    rabbitmq_server.ctl("set_topic_permissions", "-p", "/", user, "domain-events", pattern, ".*")
    transport = connect(rabbitmq_server.url(user, "secret"))
    ends = ["forbidden" if number in (3, 4, 150) else "allowed" for number in range(200)]
    outcomes = transport.publish(
        [message(f"{wanted.name}.{end}", b"%d" % number) for number, end in enumerate(ends)]
    )
    expected = [STORED if end == "allowed" else REFUSED for end in ends]
    assert [each.stored for each in outcomes] == expected
    assert f"access to topic '{wanted.name}.forbidden'" in outcomes[3].reason
    # The connection goes on, and a refusal that concerns all of them is an outage as before.
    publish(transport, message(f"{wanted.name}.allowed", b"more"))
    rabbitmq_server.ctl("set_permissions", "-p", "/", user, "", "", "")
    with pytest.raises(BrokerUnavailable, match="access to exchange"):
        connect(rabbitmq_server.url(user, "secret")).publish([message(f"{wanted.name}.allowed")])
    rabbitmq_server.ctl("delete_user", user)
    receiver = connect()
    receiver.subscribe(wanted)
    found: set[bytes] = set()
    wait_until(lambda: found.update(each.body for each in receiver.receive(1000, 0.1)) or b"more" in found)
    assert {b"%d" % number for number, end in enumerate(ends) if end == "allowed"} < found
    assert b"3" not in found


def test_large_bodies_are_split_into_frames_and_arrive_whole(connect, handler) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    bodies = [bytes([number]) * (4_000_000 + number) for number in range(6)]
    publish(transport, *(message(f"{wanted.name}.x", body) for body in bodies))
    assert [each.body for each in collect(transport, 6)] == bodies


def test_headers_that_send_copies_elsewhere_are_not_sent(connect, handler) -> None:
    wanted, other = handler(), handler()
    transport = connect()
    transport.subscribe(wanted)
    transport.subscribe(other)
    sent = Message(
        f"{wanted.name}.x", b"{}", "1", headers={"CC": f"{other.name}.x", "x-own": "1", "kept": "1"}
    )
    publish(transport, sent)
    (got,) = collect(transport, 1)
    assert (got.queue, dict(got.headers)) == (wanted.name, {"kept": "1"})


def test_a_connection_lost_while_idle_is_replaced_before_anything_is_sent(
    connect, handler, rabbitmq_server
) -> None:
    wanted = handler()
    transport = connect()
    publisher = connect()
    transport.subscribe(wanted)
    publish(publisher, message(f"{wanted.name}.x"))
    rabbitmq_server.ctl("close_all_connections", "maintenance")
    publish(publisher, message(f"{wanted.name}.x"))
    with pytest.raises(BrokerUnavailable, match="maintenance"):
        collect(transport, 3)


def test_an_alarm_blocks_publishing_for_a_while_and_acknowledging_not_at_all(connect) -> None:
    with PrivateRabbitMQ() as broker:
        transport = connect(f"{broker.url()}?blocked_connection_timeout=2")
        transport.subscribe(Subscription("alarmed", ("alarmed.#",)))
        publish(transport, *(message("alarmed.x") for _ in range(10)))
        deliveries = collect(transport, 10)
        broker.ctl("set_vm_memory_high_watermark", "0")
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match="memory or disk alarm"):
            transport.publish([message("alarmed.x")])
        assert 1.5 < time.monotonic() - began < SOON
        answer(transport, deliveries, Action.ACK)
        wait_until(lambda: transport.receive(1, 0.05) == [] and _unacknowledged(broker, "alarmed") == 0)
        broker.ctl("set_vm_memory_high_watermark", "0.4")
        wait_until(lambda: _stored(transport))


def test_the_parts_of_pika_that_we_lean_on_are_there(connect, handler) -> None:
    """pika does not promise these; if a release drops one, this test says which."""
    wanted = handler()
    transport = connect()
    transport.declare(wanted)
    publish(transport, message(f"{wanted.name}.x"))
    connection = transport._sender.connection._pika
    before = connection.bytes_sent
    connection._output_marshaled_frames([])
    assert connection.bytes_sent == before
    assert callable(connection._terminate_stream)
    header = pika.frame.Header(1, 5, pika.BasicProperties(delivery_mode=2)).marshal()
    assert header == bytes.fromhex("02 0001 0000000f 003c 0000 0000000000000005 1000 02 ce".replace(" ", ""))
    loop = transport._loop.ioloop
    assert all(callable(getattr(loop, name)) for name in ("poll", "process_timeouts", "activate_poller"))


def _unacknowledged(broker: PrivateRabbitMQ, queue: str) -> int:
    listed = broker.ctl("list_queues", "name", "messages", "--no-table-headers").splitlines()
    return {name: int(count) for name, count in (line.split() for line in listed)}[queue]


def _stored(transport: RabbitMQTransport) -> bool:
    try:
        return transport.publish([message("alarmed.x")])[0].stored is STORED
    except BrokerUnavailable:
        return False
