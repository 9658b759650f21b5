"""What was there and is gone: the exchange, bindings, the room that a broker needs to take something in."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.failures import Failure
from domain_event_broker.ports import Action, Stored, Subscription, Transport
from domain_event_broker.transports.rabbitmq import exchange as exchange_module
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.rabbitmq.tools import answer, browse, collect, message, publish

PATIENCE = 60.0


@pytest.fixture
def exchange(handler: object, channel, fresh_name: Callable[[str], str], monkeypatch) -> Iterator[str]:
    """Return the name of an exchange of the test's own; one that is gone is missed for a second."""
    monkeypatch.setattr(exchange_module, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(exchange_module, "MISSING_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(exchange_module, "ABSENCE_SECONDS", 1.0)
    monkeypatch.setattr(exchange_module, "RETURN_SECONDS", 0.5)
    name = fresh_name("exchange")
    yield name
    channel.connection.channel().exchange_delete(name)


def test_an_exchange_that_was_deleted_is_made_again_after_a_while_and_is_said_to(
    connect, handler, channel, rabbitmq_server, exchange
) -> None:
    settings, wanted = {"URL": rabbitmq_server.url(), "EXCHANGE": exchange}, handler()
    transport = connect(settings)
    transport.declare(wanted)
    publish(transport, message(f"{wanted.name}.x"))
    channel.exchange_delete(exchange)
    with pytest.raises(BrokerUnavailable, match=f"'{exchange}' was deleted.*declare_queues"):
        transport.publish([message(f"{wanted.name}.x")])
    with pytest.raises(BrokerUnavailable, match=f"'{exchange}' was deleted"):
        connect(settings).publish([message(f"{wanted.name}.x")])
    # No subscriber runs, so nobody binds the queue: then it is told that nobody subscribes.
    wait_until(lambda: _outcome(connect(settings), wanted) is Stored.UNROUTABLE, PATIENCE)


def test_an_exchange_that_this_process_never_saw_is_made_at_once(
    connect, handler, rabbitmq_server, exchange
) -> None:
    transport = connect({"URL": rabbitmq_server.url(), "EXCHANGE": exchange})
    assert _outcome(transport, handler()) is Stored.UNROUTABLE


def test_when_the_exchange_is_back_queues_are_bound_before_anything_is_published(
    connect, handler, channel, rabbitmq_server, exchange, caplog
) -> None:
    settings = {"URL": rabbitmq_server.url(), "EXCHANGE": exchange}
    wanted, subscriber = [handler(), handler()], connect(settings)
    for each in wanted:
        subscriber.subscribe(Subscription(each.name, ("shared.#",)))
    publish(connect(settings), message("shared.before"))
    assert len(collect(subscriber, 2)) == 2
    channel.exchange_delete(exchange)
    outcomes: list[Stored] = []

    def published() -> bool:
        # A subscriber looks after its bindings whenever it receives.
        subscriber.receive(0, 0.05)
        outcomes.extend(_outcomes(connect(settings), "shared.after"))
        return bool(outcomes)

    with caplog.at_level(logging.WARNING):
        wait_until(published, PATIENCE)
        wait_until(lambda: subscriber.receive(0, 0.05) or "bound to the exchange" in caplog.text, PATIENCE)
    said = [record.message for record in caplog.records if "gone" in record.message]
    assert len(said) == 1, "it is said once"


def test_a_subscriber_that_starts_while_the_exchange_is_missing_lets_the_others_notice(
    connect, handler, channel, rabbitmq_server, exchange, caplog
) -> None:
    settings = {"URL": rabbitmq_server.url(), "EXCHANGE": exchange}
    wanted = [Subscription(handler().name, ("shared.#",)) for _ in range(2)]
    running, starting = connect(settings), connect(settings)
    running.subscribe(wanted[0])
    starting.declare(wanted[1])
    channel.exchange_delete(exchange)
    again = threading.Thread(target=connect(settings).declare, args=(wanted[1],), daemon=True)
    with caplog.at_level(logging.WARNING):
        again.start()
        wait_until(lambda: running.receive(0, 0.05) or not again.is_alive(), PATIENCE)
        wait_until(lambda: running.receive(0, 0.05) or "are bound to the exchange" in caplog.text, PATIENCE)
    publish(starting, message("shared.after"))
    starting.subscribe(wanted[1])
    assert [len(collect(each, 1)) for each in (running, starting)] == [1, 1]


def test_a_binding_that_somebody_took_away_comes_back(
    connect, handler, channel, rabbitmq_server, exchange, monkeypatch
) -> None:
    monkeypatch.setattr(exchange_module, "BIND_SECONDS", 0.5)
    settings, wanted = {"URL": rabbitmq_server.url(), "EXCHANGE": exchange}, handler()
    transport, publisher = connect(settings), connect(settings)
    transport.subscribe(wanted)
    publish(publisher, message(f"{wanted.name}.x"))
    channel.queue_unbind(wanted.name, exchange, f"{wanted.name}.#")
    assert _outcome(publisher, wanted) is Stored.UNROUTABLE
    wait_until(lambda: transport.receive(0, 0.05) or _outcome(publisher, wanted) is Stored.STORED, PATIENCE)


def test_during_an_alarm_failed_events_wait_and_the_others_go_on(connect, caplog) -> None:
    with PrivateRabbitMQ() as broker:
        # A wait for the end of this timeout would be one too long for the test.
        transport = connect(f"{broker.url()}?blocked_connection_timeout=600")
        transport.subscribe(Subscription("alarmed", ("alarmed.#",), prefetch=10))
        publish(transport, *(message("alarmed.x", b"%d" % number) for number in range(40)))
        first = collect(transport, 10)
        broker.ctl("set_disk_free_limit", "100000GB")
        answer(transport, first[:2], Action.RETRY, 0.3)
        answer(transport, first[2:4], Action.DEAD, failure=Failure("error"))
        answer(transport, first[4:], Action.ACK)
        rest = []
        while len(rest) < 30:  # six at a time: four wait for the broker
            batch = collect(transport, 6, within=PATIENCE)
            answer(transport, batch, Action.ACK)
            rest += batch
        assert caplog.text.count("takes nothing in") == 1
        broker.ctl("set_disk_free_limit", "50MB")
        again = collect(transport, 2, within=PATIENCE)
        assert [(each.body, each.retries) for each in again] == [(b"0", 1), (b"1", 1)]
        assert [letter.body for letter in browse(connect(broker.url()), "alarmed")] == [b"2", b"3"]
        assert caplog.text.count("takes events in again") == 1


def test_after_an_alarm_what_was_given_up_meanwhile_is_there_once_and_no_batch_twice(connect) -> None:
    with PrivateRabbitMQ() as broker:
        url = f"{broker.url()}?blocked_connection_timeout=1"
        watcher = connect(broker.url())
        watcher.declare(Subscription("counted", ("counted.#",)))
        broker.ctl("set_disk_free_limit", "100000GB")
        tries = 3
        for _ in range(tries):
            with pytest.raises(BrokerUnavailable, match="memory or disk alarm"):
                connect(url).publish([message("counted.x") for _ in range(500)])
        broker.ctl("set_disk_free_limit", "50MB")
        publish(connect(url), message("counted.last"))
        assert watcher.stats(["counted"])["counted"].ready <= tries + 1


def _outcome(transport: Transport, wanted: Subscription) -> Stored | None:
    return next(iter(_outcomes(transport, f"{wanted.name}.x")), None)


def _outcomes(transport: Transport, key: str) -> list[Stored]:
    try:
        return [outcome.stored for outcome in transport.publish([message(key)])]
    except BrokerUnavailable:
        return []
