"""Queues: what is declared, what is adopted from the older library, and what differs."""

from __future__ import annotations

import logging
from dataclasses import replace

import pika
import pytest

from domain_event_broker.errors import QueueMismatch, UnsupportedOption
from domain_event_broker.failures import Failure
from domain_event_broker.ports import Action, Decision, Stored
from domain_event_broker.transports.rabbitmq import ladder, topology
from tests.harness.waiting import wait_until
from tests.integration.rabbitmq.tools import answer, browse, collect, message, publish

QUORUM = {"x-queue-type": "quorum"}


def arguments_of(rabbitmq_server) -> dict[str, str]:
    """Return the arguments of all queues, as the broker prints them."""
    listed = rabbitmq_server.ctl("list_queues", "name", "arguments", "--no-table-headers")
    return dict(line.split("\t") for line in listed.splitlines() if "\t" in line)


def older_library_declares(channel, name: str, *, dead_letter: bool) -> None:
    """Declare what release 3.0.2 of the older library does for a handler bound to ``<name>.*``."""
    arguments = {"x-dead-letter-exchange": f"{name}-dlx"} if dead_letter else None
    if dead_letter:
        channel.exchange_declare(f"{name}-dlx", "topic")
        channel.queue_declare(f"{name}-dl", durable=True)
        channel.queue_bind(f"{name}-dl", f"{name}-dlx", f"{name}.*")
    channel.queue_declare(name, durable=True, arguments=arguments)
    channel.queue_bind(name, "domain-events", f"{name}.*")
    channel.exchange_declare(f"{name}-retry", "topic")
    channel.queue_bind(name, f"{name}-retry", f"{name}.*")


def older_library_delays(channel, name: str, milliseconds: int, expires: int = 60_000) -> None:
    """Declare the delay queue that the older library makes when a handler raises ``Retry``."""
    delay = f"{name}-delay-{milliseconds}"
    arguments = {
        "x-dead-letter-exchange": f"{name}-retry",
        "x-message-ttl": milliseconds,
        "x-expires": expires,
    }
    channel.queue_declare(delay, durable=True, arguments=arguments)


@pytest.fixture
def events_exchange(connect) -> None:
    """Make sure that the exchange of the events is there, for those who declare by hand."""
    connect().publish([message("makes.the.exchange")])


# --- what is declared ---------------------------------------------------------------------


def test_queues_and_arguments_are_as_documented(connect, handler, rabbitmq_server) -> None:
    wanted = handler(delays=(42.0,))
    connect().declare(wanted)
    found = {
        name.removeprefix(wanted.name): text
        for name, text in arguments_of(rabbitmq_server).items()
        if name.startswith(wanted.name)
    }
    assert set(found) == {"", "-dl", *(f"-wait-{step}" for step in ladder.LADDER_MS)}
    assert all('"x-queue-type","quorum"' in text for text in found.values())
    assert '{"x-dead-letter-strategy","at-least-once"}' in found[""]
    assert f'{{"x-dead-letter-routing-key","{wanted.name}-dl"}}' in found[""]
    assert '{"x-overflow","reject-publish"}' in found[""]
    assert '{"x-delivery-limit",20}' in found[""]
    assert '{"x-delivery-limit",1000000}' in found["-dl"]
    assert "x-message-ttl" not in found["-dl"]
    for step in ladder.LADDER_MS:
        text = found[f"-wait-{step}"]
        assert f'{{"x-message-ttl",{step}}}' in text
        assert '{"x-dead-letter-strategy","at-least-once"}' in text
        assert '{"x-overflow","reject-publish"}' in text
        assert "x-expires" not in text


def test_without_dead_letters_there_is_no_queue_for_them(connect, handler, rabbitmq_server) -> None:
    wanted = handler(dead_letter=False)
    connect().declare(wanted)
    found = arguments_of(rabbitmq_server)
    assert f"{wanted.name}-dl" not in found
    assert "x-dead-letter-exchange" not in found[wanted.name]
    assert '{"x-delivery-limit",1000000}' in found[wanted.name]


def test_without_dead_letters_the_broker_deletes_nothing_that_processes_died_with(connect, handler) -> None:
    """RabbitMQ 4 has a limit of 20 for queues that set none, and drops what exceeds it."""
    wanted = handler(dead_letter=False)
    publisher = connect()
    publisher.declare(wanted)
    publish(publisher, message(f"{wanted.name}.x", b"kept"))
    for crashes in range(topology.DELIVERY_LIMIT + 2):
        victim = connect()
        victim.subscribe(wanted)
        assert collect(victim, 1)[0].crashes == crashes
        victim.close()
    survivor = connect()
    survivor.subscribe(wanted)
    assert collect(survivor, 1)[0].body == b"kept"


@pytest.mark.parametrize("option", [{"exclusive": True}, {"auto_delete": True}, {"durable": False}])
def test_queues_that_do_not_last_serve_retries_too(connect, handler, option) -> None:
    wanted = handler(queue_type="classic", **option)
    transport = connect()
    transport.subscribe(wanted)
    publish(transport, message(f"{wanted.name}.x"))
    answer(transport, collect(transport, 1), Action.RETRY, 0.35)
    (again,) = collect(transport, 1)
    assert again.retries == 1
    answer(transport, [again], Action.ACK)
    transport.close()
    other = connect()
    assert other.stats([wanted.name])[wanted.name].exists is ("durable" in option)


@pytest.mark.parametrize("option", [{"exclusive": True}, {"auto_delete": True}, {"durable": False}])
def test_a_quorum_queue_that_does_not_last_is_refused(connect, handler, option) -> None:
    transport, wanted = connect(), handler(**option)
    for member in (transport.declare, transport.subscribe, transport.check):
        with pytest.raises(UnsupportedOption, match="classic"):
            member(wanted)


def test_delay_queues_of_an_auto_delete_handler_live_while_they_are_used(
    connect, handler, monkeypatch
) -> None:
    monkeypatch.setattr(topology, "EXPIRES_MS", 700)
    monkeypatch.setattr(topology, "LEASE_SECONDS", 0.3)
    wanted = handler(queue_type="classic", auto_delete=True, prefetch=1)
    transport = connect()
    transport.subscribe(wanted)
    publish(transport, message(f"{wanted.name}.x"), message(f"{wanted.name}.x"))
    # Twice the life of the queue without a renewal, and an event in it all the time.
    for _ in range(14):
        answer(transport, collect(transport, 1), Action.RETRY, 0.3)
    assert sorted(each.retries for each in collect(transport, 1)) == [7]
    transport.close()
    other = connect()
    wait_until(lambda: not other.stats([wanted.name])[wanted.name].exists)


def test_an_exclusive_queue_of_another_connection_is_seen_and_not_touched(connect, handler) -> None:
    wanted = handler(queue_type="classic", exclusive=True)
    connect().subscribe(wanted)
    assert connect().stats([wanted.name])[wanted.name].exists


# --- what differs -------------------------------------------------------------------------


def test_a_classic_queue_where_quorum_is_wanted_is_told_with_the_cure(connect, handler, channel) -> None:
    wanted = handler(dead_letter=False)
    channel.queue_declare(wanted.name, durable=True)
    transport = connect()
    for member in (transport.declare, transport.subscribe, transport.check):
        with pytest.raises(QueueMismatch) as told:
            member(wanted)
        assert f"declare_queues --migrate {wanted.name}" in str(told.value)
        assert "queue_type='quorum'" in str(told.value)
        assert "current is none" in str(told.value)


def test_another_argument_is_told_with_both_values(connect, handler, channel) -> None:
    wanted = handler(dead_letter=False)
    channel.queue_declare(
        wanted.name, durable=True, arguments={**QUORUM, "x-overflow": "reject-publish", "x-delivery-limit": 7}
    )
    with pytest.raises(QueueMismatch, match=r"x-delivery-limit.*'1000000'.*'7'"):
        connect().declare(wanted)


def test_a_quorum_queue_where_classic_is_wanted_is_told(connect, handler) -> None:
    wanted = handler(dead_letter=False)
    connect().declare(wanted)
    with pytest.raises(QueueMismatch, match=r"'classic'.*'quorum'.*x-queue-type"):
        connect().declare(replace(wanted, queue_type="classic"))


def test_an_exchange_of_another_type_is_told(connect, handler, channel, fresh_name, rabbitmq_server) -> None:
    name = fresh_name("exchange")
    channel.exchange_declare(name, "fanout", durable=True)
    transport = connect({"URL": rabbitmq_server.url(), "EXCHANGE": name})
    with pytest.raises(QueueMismatch, match=r"EXCHANGE_TYPE"):
        transport.declare(handler())
    channel.exchange_delete(name)


def test_check_names_each_queue_that_is_missing(connect, handler, channel) -> None:
    wanted = handler()
    transport = connect()
    transport.declare(wanted)
    channel.queue_delete(f"{wanted.name}-dl")
    channel.queue_delete(f"{wanted.name}-wait-1000")
    missing = transport.check(wanted)
    assert missing == [
        f"the queue '{wanted.name}-dl' does not exist",
        f"the queue '{wanted.name}-wait-1000' does not exist",
    ]


# --- adoption ------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"queue_type": "classic"}, {"adopt": True}], ids=["classic", "adopt"])
@pytest.mark.parametrize("dead_letter", [True, False])
@pytest.mark.usefixtures("events_exchange")
def test_queues_of_the_older_library_are_adopted(
    connect, handler, channel, caplog, dead_letter, asked
) -> None:
    wanted = handler(**asked, dead_letter=dead_letter)
    older_library_declares(channel, wanted.name, dead_letter=dead_letter)
    channel.basic_publish("domain-events", f"{wanted.name}.old", b"old")
    transport = connect()
    with caplog.at_level(logging.WARNING, logger="domain_event_broker"):
        transport.subscribe(wanted)
    adopted = [record for record in caplog.records if "used as it is" in record.getMessage()]
    assert [record.queue for record in adopted] == ([f"{wanted.name}-dl"] if dead_letter else []) + (
        [wanted.name] if dead_letter else []
    )
    (old,) = collect(transport, 1)
    assert (old.body, old.routing_key, old.event_id) == (b"old", f"{wanted.name}.old", "")
    answer(transport, [old], Action.RETRY, 0.3)
    (again,) = collect(transport, 1)
    assert (again.routing_key, again.retries) == (f"{wanted.name}.old", 1)
    answer(transport, [again], Action.DEAD, failure=Failure("error"))
    if dead_letter:
        letters = transport.dead_letters(wanted.name)
        wait_until(lambda: letters.count() == 1)
        assert letters.sift(lambda letter: Decision.RETRY).replayed == 1
        assert collect(transport, 1)[0].routing_key == f"{wanted.name}.old"
    for exchange in ("dlx", "retry"):
        channel.exchange_delete(f"{wanted.name}-{exchange}")


@pytest.mark.usefixtures("events_exchange")
def test_dead_letters_of_the_older_library_are_read_and_replayed(connect, handler, channel) -> None:
    wanted = handler(queue_type="classic")
    older_library_declares(channel, wanted.name, dead_letter=True)
    channel.basic_publish("domain-events", f"{wanted.name}.old", b"old")
    wait_until(lambda: _reject_one(channel, wanted.name))
    transport = connect()
    wait_until(lambda: transport.dead_letters(wanted.name).count() == 1)
    (letter,) = browse(transport, wanted.name)
    assert (letter.body, letter.routing_key) == (b"old", f"{wanted.name}.old")
    assert letter.failure is not None
    assert letter.failure.reason == "rejected"
    assert transport.dead_letters(wanted.name).sift(lambda letter: Decision.RETRY).replayed == 1
    transport.subscribe(wanted)
    (back,) = collect(transport, 1)
    assert (back.body, back.routing_key, back.retries) == (b"old", f"{wanted.name}.old", 0)
    for exchange in ("dlx", "retry"):
        channel.exchange_delete(f"{wanted.name}-{exchange}")


@pytest.mark.usefixtures("events_exchange")
def test_ours_and_the_older_library_share_a_queue_for_a_while(connect, handler, channel) -> None:
    """Their delay queues have other names than ours, so neither stumbles over the other's."""
    wanted = handler(queue_type="classic", delays=(0.3,))
    older_library_declares(channel, wanted.name, dead_letter=True)
    transport = connect()
    transport.subscribe(wanted)
    for step in ladder.LADDER_MS:
        older_library_delays(channel, wanted.name, step, expires=step + 10_000)
    older_library_declares(channel, wanted.name, dead_letter=True)
    # A retry of theirs comes back through their exchange, to whoever receives.
    channel.queue_bind(f"{wanted.name}-delay-300", "amq.topic", f"{wanted.name}.late")
    channel.basic_publish("amq.topic", f"{wanted.name}.late", b"late")
    (late,) = collect(transport, 1)
    assert (late.body, late.routing_key) == (b"late", f"{wanted.name}.late")
    for step in ladder.LADDER_MS:
        channel.queue_delete(f"{wanted.name}-delay-{step}")
    for exchange in ("dlx", "retry"):
        channel.exchange_delete(f"{wanted.name}-{exchange}")


def test_a_delay_queue_with_other_arguments_is_left_out(connect, handler, channel, caplog) -> None:
    wanted = handler(queue_type="classic")
    broken = f"{wanted.name}-wait-300"
    channel.queue_declare(broken, durable=True, arguments={"x-message-ttl": 100_000})
    transport = connect()
    with caplog.at_level(logging.WARNING, logger="domain_event_broker"):
        transport.subscribe(wanted)
    assert [record.queue for record in caplog.records if "not used" in record.getMessage()] == [broken]
    publish(transport, message(f"{wanted.name}.x"))
    answer(transport, collect(transport, 1), Action.RETRY, 0.4)
    assert collect(transport, 1)[0].retries == 1


def _reject_one(channel: pika.adapters.blocking_connection.BlockingChannel, queue: str) -> bool:
    method, _, _ = channel.basic_get(queue)
    if method is None:
        return False
    channel.basic_reject(method.delivery_tag, requeue=False)
    return True


def test_what_is_published_reaches_queues_bound_by_hand(connect, channel, handler) -> None:
    """Other programs may listen to the exchange with plain AMQP."""
    wanted = handler()
    transport = connect()
    transport.declare(wanted)
    queue = channel.queue_declare("", exclusive=True).method.queue
    channel.queue_bind(queue, "domain-events", f"{wanted.name}.#")
    sent = message(f"{wanted.name}.placed", b'{"data": {}}', traceparent="00-1-2-01")
    assert transport.publish([sent])[0].stored is Stored.STORED
    method, properties, body = channel.basic_get(queue, auto_ack=True)
    assert (method.exchange, method.routing_key, body) == ("domain-events", sent.routing_key, sent.body)
    assert (properties.message_id, properties.type) == (sent.event_id, sent.routing_key)
    assert (properties.delivery_mode, properties.content_type) == (2, "application/json")
    assert properties.timestamp == int(sent.timestamp)
    assert properties.headers == {"traceparent": "00-1-2-01"}
