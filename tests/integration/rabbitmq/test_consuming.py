"""Receiving and settling: retries of any delay, queues that vanish, and long decisions over dead letters."""

from __future__ import annotations

import struct
import threading
import time
from datetime import datetime

import pika
import pika.data
import pytest

from domain_event_broker.errors import BrokerUnavailable, PublishFailed
from domain_event_broker.events import HEADER_NOT_BEFORE
from domain_event_broker.failures import Failure
from domain_event_broker.ports import Action, DeadLetter, Decision, SiftReport, Subscription
from domain_event_broker.transports.rabbitmq import transport as transport_module
from domain_event_broker.transports.rabbitmq import wire
from domain_event_broker.transports.rabbitmq.publishing import Sending
from domain_event_broker.transports.rabbitmq.topology import DELIVERY_LIMIT
from domain_event_broker.transports.rabbitmq.transport import WORN
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.rabbitmq.tools import SOON, answer, browse, collect, message, publish

#: Seconds that a retry may come early, for clocks tick in milliseconds.
EARLY = 0.002
#: Seconds that a retry may come late on a machine that has other things to do.
LATE = 1.0


def dead(transport, wanted, *bodies: bytes) -> None:
    """Publish events and let them fail for good."""
    publish(transport, *(message(f"{wanted.name}.x", body) for body in bodies))
    answer(transport, collect(transport, len(bodies)), Action.DEAD, failure=Failure("error"))
    wait_until(lambda: transport.dead_letters(wanted.name).count() == len(bodies))


# --- retries --------------------------------------------------------------------------------


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_any_delay_is_served_on_time(connect, handler, queue_type) -> None:
    delays = [0.0, 0.004, 0.05, 0.1, 0.12, 0.25, 0.3, 0.47, 0.777, 1.0, 1.234, 2.9, 3.6]
    wanted = handler(queue_type=queue_type)
    transport = connect()
    transport.subscribe(wanted)
    publish(transport, *(message(f"{wanted.name}.x", b"%d" % number) for number in range(len(delays))))
    asked: dict[int, float] = {}
    for delivery in collect(transport, len(delays)):
        number = int(delivery.body)
        asked[number] = time.time()
        answer(transport, [delivery], Action.RETRY, delays[number])
    errors: dict[float, float] = {}
    end = time.monotonic() + SOON
    while len(errors) < len(delays):
        assert time.monotonic() < end, f"{len(errors)} came back"
        for delivery in transport.receive(9, 0.1):
            assert delivery.retries == 1
            number = int(delivery.body)
            errors[delays[number]] = time.time() - asked[number] - delays[number]
            answer(transport, [delivery], Action.ACK)
    assert all(-EARLY < error < LATE for error in errors.values()), errors


def test_the_last_moment_of_a_wait_does_not_hang_on_a_clock_that_is_set(
    connect, handler, monkeypatch
) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    publish(transport, message(f"{wanted.name}.x"))
    stopped = wire.now_ms()
    monkeypatch.setattr(wire, "now_ms", lambda: stopped)
    answer(transport, collect(transport, 1), Action.RETRY, 0.05)
    assert collect(transport, 1)[0].retries == 1


def test_an_early_event_goes_on_waiting_without_being_handed_out(connect, handler, channel) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    publish(transport, message(f"{wanted.name}.x"))
    (delivery,) = collect(transport, 1)
    answer(transport, [delivery], Action.RETRY, 3600 * 7)
    wait_until(lambda: transport.stats([wanted.name])[wanted.name].delayed == 1)
    # What the broker does after the first six hours: it comes back, an hour early.
    method, properties, body = channel.basic_get(f"{wanted.name}-wait-21600000", auto_ack=True)
    assert properties.headers[HEADER_NOT_BEFORE] == pytest.approx((time.time() + 3600 * 7) * 1000, abs=5000)
    properties.headers[HEADER_NOT_BEFORE] -= 21_600_000
    channel.basic_publish("", wanted.name, body, properties)
    assert method.routing_key == f"{wanted.name}-wait-21600000"
    assert transport.receive(1, 0.5) == []
    waiting = channel.queue_declare(f"{wanted.name}-wait-3600000", passive=True)
    assert waiting.method.message_count == 1
    assert transport.stats([wanted.name])[wanted.name].ready == 0


def test_a_thousand_retries_at_once_each_come_back_once(connect, handler) -> None:
    wanted = handler(prefetch=300)
    transport = connect()
    transport.subscribe(wanted)
    for start in range(0, 1000, 200):
        publish(transport, *(message(f"{wanted.name}.x", b"%d" % n) for n in range(start, start + 200)))
    for _ in range(20):
        answer(transport, collect(transport, 50), Action.RETRY, 1.15)
    back = []
    while len(back) < 1000:
        batch = collect(transport, 50)
        answer(transport, batch, Action.ACK)
        back += batch
    assert sorted(int(delivery.body) for delivery in back) == list(range(1000))
    assert transport.receive(10, 0.3) == []


def test_a_delay_queue_that_was_deleted_is_brought_back(connect, handler, channel) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    publish(transport, message(f"{wanted.name}.x", b"1"), message(f"{wanted.name}.x", b"2"))
    deliveries = collect(transport, 2)
    channel.queue_delete(f"{wanted.name}-wait-300")
    answer(transport, deliveries, Action.RETRY, 0.3)
    assert sorted(each.body for each in collect(transport, 2)) == [b"1", b"2"]


def test_a_dead_letter_queue_that_was_deleted_is_brought_back(connect, handler, channel) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    channel.queue_delete(f"{wanted.name}-dl")
    dead(transport, wanted, b"1")
    assert [letter.body for letter in browse(transport, wanted.name)] == [b"1"]


def test_a_copy_that_is_not_stored_leaves_the_original(connect, handler, channel) -> None:
    wanted = handler(queue_type="classic")
    full = {"x-queue-type": "classic", "x-max-length": 0, "x-overflow": "reject-publish"}
    channel.queue_declare(f"{wanted.name}-dl", durable=True, arguments=full)
    channel.basic_publish("", f"{wanted.name}-dl", b"fills it")
    transport = connect()
    transport.subscribe(wanted)
    publish(transport, message(f"{wanted.name}.x", b"kept"))
    deliveries = collect(transport, 1)
    with pytest.raises(BrokerUnavailable, match=r"could not be moved.*-dl.*full"):
        answer(transport, deliveries, Action.DEAD, failure=Failure("error"))
    transport.close()
    again = connect()
    again.subscribe(wanted)
    assert collect(again, 1)[0].body == b"kept"


def test_headers_that_cannot_be_encoded_again_do_not_hold_a_copy_up(connect, handler) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    publish(transport, message(f"{wanted.name}.x", b"1", large="x" * 120_000))
    (delivery,) = collect(transport, 1)
    failure = Failure("error", message="m", traceback="größe" * 3000)
    answer(transport, [delivery], Action.DEAD, failure=failure)
    wait_until(lambda: transport.dead_letters(wanted.name).count() == 1)
    (letter,) = browse(transport, wanted.name)
    assert (letter.body, letter.routing_key, letter.event_id) == (b"1", f"{wanted.name}.x", delivery.event_id)
    assert letter.failure is not None
    assert letter.failure.reason == "error"


def test_settling_twice_does_no_harm(connect, handler) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    publish(transport, message(f"{wanted.name}.x"))
    deliveries = collect(transport, 1)
    answer(transport, deliveries, Action.ACK)
    answer(transport, deliveries, Action.ACK)
    publish(transport, message(f"{wanted.name}.x", b"next"))
    assert collect(transport, 1)[0].body == b"next"


@pytest.mark.parametrize("order", ["forward", "backward", "middle first"])
def test_acknowledging_in_any_order_leaves_nothing_behind(connect, handler, order) -> None:
    wanted = handler(prefetch=20)
    transport = connect()
    transport.subscribe(wanted)
    publish(transport, *(message(f"{wanted.name}.x", b"%d" % number) for number in range(20)))
    deliveries = collect(transport, 20)
    parts = {
        "forward": [deliveries],
        "backward": [[each] for each in reversed(deliveries)],
        "middle first": [deliveries[5:15], deliveries[:5], deliveries[15:19]],
    }[order]
    for part in parts:
        answer(transport, part, Action.ACK)
    transport.close()
    other = connect()
    other.subscribe(wanted)
    left = other.receive(20, 0.5)
    assert [each.body for each in left] == ([b"19"] if order == "middle first" else [])


# --- giving back ------------------------------------------------------------------------------


def test_stopping_again_and_again_dead_letters_nothing_that_nobody_tried(connect, handler) -> None:
    wanted = handler(prefetch=3)
    publisher = connect()
    publisher.declare(wanted)
    publish(publisher, *(message(f"{wanted.name}.{number}", b"%d" % number) for number in range(3)))
    crashes: list[int] = []
    for _ in range(2 * DELIVERY_LIMIT):
        subscriber = connect()
        subscriber.subscribe(wanted)
        deliveries = collect(subscriber, 1)
        deliveries += subscriber.receive(2, 0.1)
        crashes.append(deliveries[0].crashes)
        answer(subscriber, deliveries, Action.REQUEUE)
        assert subscriber.receive(0, 0.05) == []
        subscriber.close()
    assert max(crashes) <= WORN
    assert crashes[:3] == [0, 1, 2], "each stop counts once"
    last = connect()
    last.subscribe(wanted)
    found: dict[bytes, str] = {}
    for _ in range(3):
        (delivery,) = collect(last, 1)
        found[delivery.body] = delivery.routing_key
        answer(last, [delivery], Action.ACK)
    assert found == {b"%d" % number: f"{wanted.name}.{number}" for number in range(3)}
    assert last.dead_letters(wanted.name).count() == 0


def test_what_was_given_back_comes_again_to_who_asks_for_it(connect, handler) -> None:
    wanted = handler()
    transport, other = connect(), connect()
    transport.subscribe(wanted)
    publish(transport, *(message(f"{wanted.name}.x", b"%d" % number) for number in range(3)))
    deliveries = collect(transport, 3)
    answer(transport, deliveries[1:], Action.REQUEUE)
    wait_until(
        lambda: transport.receive(0, 0.01) == [] and other.stats([wanted.name])[wanted.name].ready == 2
    )
    answer(transport, deliveries[:1], Action.ACK)
    assert [each.body for each in collect(transport, 2)] == [b"1", b"2"]


def test_an_event_that_cannot_be_copied_is_given_back_itself(connect, handler, monkeypatch) -> None:
    monkeypatch.setattr(transport_module, "WORN", 0)
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    publish(transport, message(f"{wanted.name}.x", b"kept"))
    deliveries = collect(transport, 1)

    def lose(*_: object, patient: bool) -> None:
        raise BrokerUnavailable("the broker takes nothing in")

    with monkeypatch.context() as patched:
        patched.setattr(Sending, "go_on", lose)
        answer(transport, deliveries, Action.REQUEUE)
    (again,) = collect(transport, 1)
    assert (again.body, again.crashes) == (b"kept", 1)
    answer(transport, [again], Action.REQUEUE)
    (copy,) = collect(transport, 1)
    assert (copy.body, copy.crashes, copy.routing_key) == (b"kept", 0, f"{wanted.name}.x")


# --- what other programs write ----------------------------------------------------------------

#: Thirteen digits: milliseconds where AMQP wants seconds, in the year 55840.
FAR_AWAY = 1_700_000_000_000


def _timestamp(seconds: int) -> bytes:
    return b"T" + struct.pack(">Q", seconds)


@pytest.fixture
def odd_headers(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Headers that other programs can write and pika cannot: it is taught one more kind of value."""
    encode = pika.data.encode_value

    def encode_odd(pieces: list[bytes], value: object) -> int:
        if not isinstance(value, Encoded):
            return encode(pieces, value)
        pieces.append(value)
        return len(value)

    monkeypatch.setattr(pika.data, "encode_value", encode_odd)
    return {
        "far": Encoded(_timestamp(FAR_AWAY)),
        "before": Encoded(_timestamp(2**64 - 1)),
        "list": [Encoded(_timestamp(FAR_AWAY)), "two"],
        "near": Encoded(_timestamp(1_700_000_000)),
    }


class Encoded(bytes):
    """A value of a header as it goes over the wire."""


def test_headers_beyond_python_s_years_are_handled_like_any_other(
    connect, handler, channel, odd_headers
) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    properties = pika.BasicProperties(timestamp=FAR_AWAY, headers=odd_headers)
    channel.basic_publish("domain-events", f"{wanted.name}.odd", b"odd", properties)
    (delivery,) = collect(transport, 1)
    assert (delivery.headers["far"], delivery.headers["before"]) == (FAR_AWAY, -1)
    assert delivery.headers["list"] == [FAR_AWAY, "two"]
    assert isinstance(delivery.headers["near"], datetime)
    answer(transport, [delivery], Action.RETRY, 0.1)
    (again,) = collect(transport, 1)
    assert (again.retries, again.headers["far"]) == (1, FAR_AWAY)
    answer(transport, [again], Action.DEAD, failure=Failure("error"))
    wait_until(lambda: transport.dead_letters(wanted.name).count() == 1)
    (letter,) = browse(transport, wanted.name)
    assert (letter.body, letter.headers["far"]) == (b"odd", FAR_AWAY)
    assert transport.dead_letters(wanted.name).sift(lambda letter: Decision.RETRY).replayed == 1
    answer(transport, collect(transport, 1), Action.ACK)


def test_dead_letters_beyond_python_s_years_can_be_looked_at(connect, handler, channel, odd_headers) -> None:
    wanted = handler()
    transport = connect()
    transport.declare(wanted)
    channel.basic_publish("", f"{wanted.name}-dl", b"odd", pika.BasicProperties(headers=odd_headers))
    wait_until(lambda: transport.dead_letters(wanted.name).count() == 1)
    assert [letter.body for letter in browse(transport, wanted.name)] == [b"odd"]
    report = transport.dead_letters(wanted.name).sift(lambda letter: Decision.DISCARD)
    assert report == SiftReport(discarded=1)


def test_pika_s_decoder_is_changed_for_nothing_but_what_it_cannot_decode(connect) -> None:
    connect()
    wrapped = pika.data.decode_value
    connect()
    assert pika.data.decode_value is wrapped
    assert wrapped(_timestamp(FAR_AWAY), 0) == (FAR_AWAY, 9)
    assert wrapped(_timestamp(0), 0) == wrapped._decode(_timestamp(0), 0)
    with pytest.raises(pika.exceptions.InvalidFieldTypeException):
        wrapped(b"?", 0)


# --- what goes away -------------------------------------------------------------------------


def test_a_queue_deleted_under_its_consumer_is_told(connect, handler, channel) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    channel.queue_delete(wanted.name)
    with pytest.raises(BrokerUnavailable, match=f"queue '{wanted.name}'.*deleted"):
        collect(transport, 1)
    again = connect()
    again.subscribe(wanted)
    publish(again, message(f"{wanted.name}.x"))
    assert len(collect(again, 1)) == 1


def test_a_channel_that_the_broker_closes_is_told(connect) -> None:
    """An event that is not answered within the broker's consumer_timeout, for instance."""
    with PrivateRabbitMQ() as broker:
        broker.ctl("eval", "application:set_env(rabbit, consumer_timeout, 1000).")
        broker.ctl("eval", "application:set_env(rabbit, channel_tick_interval, 500).")
        transport = connect(broker.url())
        transport.subscribe(Subscription("slow", ("slow.#",), queue_type="classic"))
        publish(transport, message("slow.x"))
        collect(transport, 1)
        with pytest.raises(BrokerUnavailable, match="timed out"):
            collect(transport, 1, within=60)


# --- dead letters -----------------------------------------------------------------------------


def test_a_decision_may_take_longer_than_the_heartbeat(connect, handler, rabbitmq_server) -> None:
    wanted = handler()
    transport = connect(f"{rabbitmq_server.url()}?heartbeat=1")
    transport.subscribe(wanted)
    dead(transport, wanted, b"1", b"2")

    def decide(letter: DeadLetter) -> Decision:
        if letter.body == b"1":
            threading.Event().wait(6)
        return Decision.RETRY

    assert transport.dead_letters(wanted.name).sift(decide) == SiftReport(replayed=2)
    assert len(collect(transport, 2)) == 2


def test_an_answer_by_hand_takes_effect_before_the_next_question(connect, handler) -> None:
    wanted = handler()
    transport, other = connect(), connect()
    transport.subscribe(wanted)
    dead(transport, wanted, b"1", b"2")

    def decide(letter: DeadLetter) -> Decision:
        threading.Event().wait(0.6)
        if letter.body == b"2":
            wait_until(lambda: collect(transport, 1)[0].body == b"1")
        return Decision.RETRY

    assert other.dead_letters(wanted.name).sift(decide).replayed == 2


def test_a_connection_lost_while_deciding_loses_no_letter(connect, handler, rabbitmq_server) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    dead(transport, wanted, b"1", b"2", b"3")

    def decide(letter: DeadLetter) -> Decision:
        if letter.body == b"2":
            rabbitmq_server.ctl("close_all_connections", "maintenance")
        return Decision.RETRY

    with pytest.raises(BrokerUnavailable, match="maintenance"):
        transport.dead_letters(wanted.name).sift(decide)
    other = connect()
    other.subscribe(wanted)
    wait_until(lambda: other.dead_letters(wanted.name).count() >= 2)
    kept = {letter.body for letter in browse(other, wanted.name)}
    back = {delivery.body for delivery in other.receive(9, 0.3)}
    assert kept | back == {b"1", b"2", b"3"}


def test_errors_of_decide_pass_through_as_they_are(connect, handler) -> None:
    wanted = handler()
    transport = connect()
    transport.subscribe(wanted)
    dead(transport, wanted, b"1")

    def decide(letter: DeadLetter) -> Decision:
        raise OSError("no terminal")

    with pytest.raises(OSError, match="no terminal"):
        transport.dead_letters(wanted.name).sift(decide)
    wait_until(lambda: len(browse(transport, wanted.name)) == 1)


def test_letters_whose_queue_is_missing_stay(connect, handler, channel) -> None:
    wanted = handler()
    transport, replayer = connect(), connect()
    transport.subscribe(wanted)
    dead(transport, wanted, b"1", b"2")
    transport.close()
    channel.queue_delete(wanted.name)
    with pytest.raises(PublishFailed, match=r"cannot go back.*declare_queues"):
        replayer.dead_letters(wanted.name).sift(lambda letter: Decision.RETRY)
    wait_until(lambda: len(browse(replayer, wanted.name)) == 2)


def test_two_thousand_letters_are_left_in_order(connect, handler) -> None:
    wanted = handler(prefetch=1000)
    transport = connect()
    transport.subscribe(wanted)
    for start in range(0, 2000, 1000):
        batch = [message(f"{wanted.name}.x", b"%d" % number) for number in range(start, start + 1000)]
        publish(transport, *batch)
        answer(transport, collect(transport, 1000), Action.DEAD, failure=Failure("error"))
    wait_until(lambda: transport.dead_letters(wanted.name).count() == 2000)
    for _ in range(2):
        bodies = [int(letter.body) for letter in browse(transport, wanted.name)]
        assert bodies == list(range(2000))
