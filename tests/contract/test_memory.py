"""The contract over ``memory:``, in real time and in virtual time, and what only it has."""

from __future__ import annotations

import threading

import pytest

from domain_event_broker.config import parse
from domain_event_broker.errors import BrokerUnavailable, ConfigurationError, UnsupportedOption
from domain_event_broker.events import Message
from domain_event_broker.ports import Action, Settlement, Stored, Subscription
from domain_event_broker.testing import TransportContract
from domain_event_broker.transports import open_transport
from domain_event_broker.transports.memory import MemoryTransport, broker, forget


def connect(value: object) -> MemoryTransport:
    """Open the transport of a setting."""
    settings = parse(value)
    assert settings is not None
    transport = open_transport(settings)
    assert isinstance(transport, MemoryTransport)
    return transport


class TestMemory(TransportContract):
    """Real time: the clock is left alone."""

    title = "memory"

    @pytest.fixture(autouse=True)
    def _a_broker_of_its_own(self):
        self.broker_name = self.fresh_name()
        yield
        forget(self.broker_name)

    def open(self) -> MemoryTransport:
        return connect(f"memory://{self.broker_name}")


class TestMemoryInVirtualTime(TestMemory):
    """Virtual time: nothing waits for a delay."""

    title = "memory, virtual time"
    virtual_time = True

    def now(self) -> float:
        return broker(self.broker_name).clock.now()

    def advance(self, seconds: float) -> None:
        broker(self.broker_name).clock.advance(seconds)

    def test_a_retry_of_a_day_comes_when_the_clock_says_so(self) -> None:
        transport, handler = self.start_handler()
        self.answer(transport, self.deliver(transport, handler, b"{}"), Action.RETRY, 86_400.0)
        self.advance(86_399)
        assert transport.receive(1, 0) == []
        self.advance(1)
        assert transport.receive(1, 0)[0].retries == 1

    def test_moving_the_clock_wakes_a_receive_under_way(self) -> None:
        transport, handler = self.start_handler()
        self.answer(transport, self.deliver(transport, handler, b"{}"), Action.RETRY, 86_400.0)
        timer = threading.Timer(0.1, self.advance, [86_400])
        timer.start()
        assert len(transport.receive(1, self.patience)) == 1
        timer.join()

    def test_the_clock_does_not_go_back(self) -> None:
        with pytest.raises(ValueError, match="time does not go back"):
            self.advance(-1)


@pytest.fixture
def name(fresh_name):
    """The name of a broker that is forgotten afterwards."""
    name = fresh_name("broker")
    yield name
    forget(name)


HANDLER = Subscription("billing", ("order.*",))
EVENT = Message("order.placed", b"{}", "id-1")


def test_brokers_of_different_names_share_nothing(name) -> None:
    connect(f"memory://{name}").subscribe(HANDLER)
    other = connect(f"memory://{name}-other")
    assert other.publish([EVENT])[0].stored is Stored.UNROUTABLE
    forget(f"{name}-other")


def test_the_url_without_a_name_is_one_broker() -> None:
    forget("")
    one, other = connect("memory:"), connect("memory://")
    one.subscribe(HANDLER)
    assert other.publish([EVENT])[0].stored is Stored.STORED
    forget("")
    assert connect("memory:").publish([EVENT])[0].stored is Stored.UNROUTABLE
    forget("")


def test_exchanges_are_told_apart(name) -> None:
    transport = connect({"URL": f"memory://{name}", "EXCHANGE": "one"})
    transport.subscribe(HANDLER)
    other = connect({"URL": f"memory://{name}", "EXCHANGE": "other"})
    assert other.publish([EVENT])[0].stored is Stored.UNROUTABLE
    assert transport.publish([EVENT])[0].stored is Stored.STORED


def test_forgetting_all_brokers_leaves_none(name) -> None:
    before = broker(name)
    forget()
    assert broker(name) is not before


def test_a_queue_that_always_has_something_leaves_room_for_others(name) -> None:
    transport = connect(f"memory://{name}")
    transport.subscribe(HANDLER)
    transport.subscribe(Subscription("shipping", ("order.*",)))
    transport.publish([EVENT] * 10)
    queues = []
    for _ in range(4):
        (delivery,) = transport.receive(1, 0)
        transport.settle([Settlement(delivery, Action.ACK)])
        queues.append(delivery.queue)
    assert queues == ["billing", "shipping", "billing", "shipping"]


def test_an_answer_that_comes_twice_counts_once(name) -> None:
    transport = connect(f"memory://{name}")
    transport.subscribe(HANDLER)
    transport.publish([EVENT])
    (delivery,) = transport.receive(1, 0)
    transport.settle([Settlement(delivery, Action.REQUEUE), Settlement(delivery, Action.ACK)])
    (again,) = transport.receive(1, 0)
    transport.settle([Settlement(delivery, Action.ACK)])
    stats = transport.stats(["billing"])["billing"]
    assert (again.event_id, stats.in_flight, stats.ready) == ("id-1", 1, 0)


def test_a_closed_connection_says_so(name) -> None:
    transport = connect(f"memory://{name}")
    transport.close()
    with pytest.raises(BrokerUnavailable, match="closed"):
        transport.publish([EVENT])


def test_stats_count_receivers_and_deliveries_under_way(name) -> None:
    one, other = connect(f"memory://{name}"), connect(f"memory://{name}")
    one.subscribe(HANDLER)
    other.subscribe(HANDLER)
    one.publish([EVENT, EVENT])
    one.receive(1, 0)
    stats = one.stats(["billing"])["billing"]
    assert (stats.consumers, stats.in_flight, stats.ready) == (2, 1, 1)
    one.close()
    stats = other.stats(["billing"])["billing"]
    assert (stats.consumers, stats.in_flight, stats.ready) == (1, 0, 2)


@pytest.mark.parametrize(
    ("value", "error", "told"),
    [
        ("memory:name", ConfigurationError, "memory://name"),
        (["memory://a", "memory://b"], ConfigurationError, "one broker"),
        ({"URL": "memory:", "EXCHANGE_TYPE": "fanout"}, UnsupportedOption, "fanout"),
    ],
)
def test_what_cannot_be_served_is_refused(value, error, told) -> None:
    with pytest.raises(error, match=told):
        connect(value)
