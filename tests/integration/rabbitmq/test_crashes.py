"""The broker killed with events everywhere, and handlers that kill their process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from domain_event_broker.errors import BrokerUnavailable
from domain_event_broker.failures import Failure
from domain_event_broker.ports import Action, Stored, Subscription
from domain_event_broker.transports.rabbitmq import topology
from domain_event_broker.transports.rabbitmq.topology import DELIVERY_LIMIT
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.rabbitmq.tools import answer, browse, collect, message, publish

#: Seconds in which at-least-once dead-lettering has tried again; see the harness.
PATIENCE = 60.0
COUNT = 300


@pytest.fixture(scope="module")
def broker() -> Iterator[PrivateRabbitMQ]:
    """A broker that is killed."""
    with PrivateRabbitMQ() as server:
        yield server


def collect_all(transport, numbers: range) -> None:
    """Acknowledge deliveries until each of the numbers came, some of them perhaps twice."""
    found: set[int] = set()

    def look() -> bool:
        batch = transport.receive(500, 0.1)
        answer(transport, batch, Action.ACK)
        found.update(int(each.body) for each in batch)
        return found.issuperset(numbers)

    wait_until(look, PATIENCE, lambda: f"all came; missing are {set(numbers) - found}")


@pytest.mark.usefixtures("settling")
@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_retries_that_wait_survive_the_broker(broker, connect, queue_type) -> None:
    wanted = Subscription(
        f"waiting-{queue_type}", (f"waiting-{queue_type}.#",), prefetch=500, queue_type=queue_type
    )
    transport = connect(broker.url())
    transport.subscribe(wanted)
    publish(transport, *(message(f"{wanted.name}.x", b"%d" % number) for number in range(COUNT)))
    deliveries = collect(transport, COUNT)
    # Some come due while the broker is away, some afterwards.
    for start, delay in ((0, 1.0), (100, 2.3), (200, 15.0)):
        answer(transport, deliveries[start : start + 100], Action.RETRY, delay)
    broker.kill()
    with pytest.raises(BrokerUnavailable):
        collect(transport, 1)
    broker.start()
    again = connect(broker.url())
    again.subscribe(wanted)
    collect_all(again, range(COUNT))
    wait_until(lambda: again.stats([wanted.name])[wanted.name].delayed == 0)


@pytest.mark.usefixtures("settling")
def test_events_dead_letters_and_unanswered_deliveries_survive_the_broker(broker, connect) -> None:
    wanted = Subscription("mixed", ("mixed.#",), prefetch=200)
    transport = connect(broker.url())
    transport.subscribe(wanted)
    publish(transport, *(message("mixed.x", b"%d" % number) for number in range(COUNT)))
    deliveries = collect(transport, 200)
    answer(transport, deliveries[:100], Action.DEAD, failure=Failure("error", message="why"))
    broker.kill()
    broker.start()
    again = connect(broker.url())
    letters = [letter for letter in browse(again, "mixed") if letter.failure]
    assert [int(letter.body) for letter in letters] == list(range(100))
    again.subscribe(wanted)
    collect_all(again, range(100, COUNT))


@pytest.mark.usefixtures("settling")
def test_the_first_event_of_a_new_handler_survives_the_broker(broker, connect) -> None:
    """Killed right after its first subscribe, the broker would have forgotten queue and event."""
    for number in range(3):
        wanted = Subscription(f"newborn-{number}", (f"newborn-{number}.#",))
        transport = connect(broker.url())
        transport.subscribe(wanted)
        publish(transport, message(f"{wanted.name}.x", b"%d" % number))
        broker.kill()
        broker.start()
        again = connect(broker.url())
        again.subscribe(wanted)
        assert collect(again, 1)[0].body == b"%d" % number


def test_a_queue_that_exists_is_not_waited_for(connect, handler, monkeypatch) -> None:
    waits: list[float] = []
    wanted, transport = handler(), connect()
    monkeypatch.setattr(type(transport), "_let_settle", lambda self: waits.append(topology.SETTLE_SECONDS))
    transport.declare(wanted)
    assert len(waits) == 1
    connect().subscribe(wanted)
    transport.subscribe(wanted)
    assert len(waits) == 1


def test_new_queues_of_many_handlers_are_waited_for_once(connect, handler, monkeypatch) -> None:
    waits: list[float] = []
    wanted, transport = [handler() for _ in range(3)], connect()
    monkeypatch.setattr(type(transport), "_let_settle", lambda self: waits.append(topology.SETTLE_SECONDS))
    transport.declare_all(wanted)
    for each in wanted:
        transport.subscribe(each)
    assert len(waits) == 1
    publish(transport, *(message(f"{each.name}.x") for each in wanted))
    assert {each.queue for each in collect(transport, 3)} == {each.name for each in wanted}


def test_processes_that_die_with_an_event_are_counted_and_then_it_is_dead_lettered(connect, handler) -> None:
    wanted = handler()
    publisher = connect()
    publisher.declare(wanted)
    publish(publisher, message(f"{wanted.name}.deadly", b"deadly"))
    for crashes in range(DELIVERY_LIMIT + 1):
        victim = connect()
        victim.subscribe(wanted)
        assert collect(victim, 1)[0].crashes == crashes
        victim.close()
    wait_until(lambda: publisher.dead_letters(wanted.name).count() == 1)
    (letter,) = browse(publisher, wanted.name)
    assert (letter.body, letter.routing_key) == (b"deadly", f"{wanted.name}.deadly")
    assert letter.failure is not None
    assert letter.failure.reason == "delivery_limit"


def test_a_frozen_broker_is_noticed_and_closing_takes_no_answer(connect) -> None:
    with PrivateRabbitMQ() as frozen:
        transport = connect(f"{frozen.url()}?heartbeat=1")
        transport.subscribe(Subscription("frozen", ("frozen.#",)))
        assert transport.publish([message("frozen.x")])[0].stored is Stored.STORED
        frozen.freeze()
        try:
            with pytest.raises(BrokerUnavailable, match=r"(?i)heartbeat"):
                collect(transport, 2, within=PATIENCE)
            transport.close()
        finally:
            frozen.thaw()


def test_an_event_that_kills_its_processes_takes_none_of_those_behind_it_along(connect, handler) -> None:
    wanted = handler(prefetch=10)
    publisher = connect()
    publisher.declare(wanted)
    publish(publisher, message(f"{wanted.name}.deadly", b"deadly"))
    publish(publisher, *(message(f"{wanted.name}.fine", b"%d" % number) for number in range(9)))
    handled: list[int] = []
    while not publisher.dead_letters(wanted.name).count():
        process = connect()
        process.subscribe(wanted)
        _handle_until_death(process, handled)
        process.close()
    assert sorted(handled) == list(range(9))
    assert [letter.body for letter in browse(publisher, wanted.name)] == [b"deadly"]


def _handle_until_death(process, handled: list[int]) -> None:
    """Handle what comes, and what was fetched ahead of it is lost with the process, if it is deadly."""
    for each in [*process.receive(10, 0.3), *process.receive(10, 0.05)]:
        if each.body == b"deadly":
            return
        answer(process, [each], Action.ACK)
        handled.append(int(each.body))
