"""The bus in one process: handlers come and go, and nothing that was published is forgotten at the end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from domain_event_broker import Backoff, DomainEvent, Retry
from domain_event_broker.bus import MemoryBus
from domain_event_broker.errors import BrokerUnavailable, HandlerError, HandlerStuck, InvalidEvent
from domain_event_broker.ports import Decision
from domain_event_broker.subscriber import Consumer
from domain_event_broker.typed import EventModel
from tests.harness.waiting import wait_until

#: Seconds in which everything is handled, on a busy machine.
PATIENCE = 30.0


class Placed(EventModel, routing_key="order.placed"):
    """A typed event."""

    number: int


@pytest.fixture
def bus() -> Iterator[MemoryBus]:
    """A bus of its own."""
    with MemoryBus() as bus:
        yield bus


class Recorder:
    """A handler that can be told from others."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def handle(self, event: DomainEvent) -> None:
        """Take note."""
        self.seen.append(event.routing_key)

    def subscribed_to(self) -> list[object]:
        """What it wants."""
        return [Placed, "order.cancelled"]


class Slow(Recorder):
    """A handler that is at work until it may go."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work, self.may_go = threading.Event(), threading.Event()

    def handle(self, event: DomainEvent) -> None:
        """Say that it has begun, and wait."""
        self.at_work.set()
        assert self.may_go.wait(PATIENCE)
        super().handle(event)


def event(key: str = "order.placed") -> DomainEvent:
    """Return an event."""
    return DomainEvent(key, {"number": 1})


def test_handlers_get_what_they_are_subscribed_to_in_order(bus: MemoryBus) -> None:
    some, every = Recorder(), Recorder()
    bus.subscribe("order.*", some)
    bus.subscribe_to_all_events(every)
    keys = [f"order.step{number}" for number in range(50)]
    assert bus.publish(*map(event, keys), event("user.left")) == 51
    assert bus.wait(PATIENCE)
    assert some.seen == keys
    assert every.seen == [*keys, "user.left"]


def test_a_subscriber_says_itself_what_it_wants(bus: MemoryBus) -> None:
    recorder = Recorder()
    bus.subscribe_all(recorder)
    bus.publish(Placed(number=7), event("order.cancelled"), event("order.paid"))
    assert bus.wait(PATIENCE)
    assert sorted(recorder.seen) == ["order.cancelled", "order.placed"]


def test_async_handlers_and_functions_work_too(bus: MemoryBus) -> None:
    seen: list[int] = []

    async def slowly(order: Placed) -> None:
        await asyncio.sleep(0)
        seen.append(order.number)

    bus.subscribe(Placed, slowly)
    bus.publish(Placed(number=7))
    assert bus.wait(PATIENCE)
    assert seen == [7]


def test_who_is_unsubscribed_gets_nothing_more_and_is_counted_no_more(bus: MemoryBus) -> None:
    one, other = Recorder(), Recorder()
    bus.subscribe("order.*", one)
    bus.subscribe("order.*", other)
    bus.subscribe_to_all_events(one)
    assert (bus.get_subscriber_count(), bus.get_subscriber_count("order.*")) == (3, 2)
    assert bus.get_wildcard_subscriber_count() == 1
    assert bus.unsubscribe("order.*", one) is True
    assert bus.unsubscribe("order.*", one) is False
    assert bus.unsubscribe_from_all_events(one) is True
    bus.publish(event())
    assert bus.wait(PATIENCE)
    assert (one.seen, other.seen) == ([], ["order.placed"])
    bus.clear_subscribers()
    assert bus.get_subscriber_count() == 0
    assert bus.publish(event()) == 0


def test_a_handler_may_unsubscribe_itself(bus: MemoryBus) -> None:
    seen: list[str] = []

    def once(event: DomainEvent) -> None:
        seen.append(event.routing_key)
        bus.unsubscribe("order.*", once)

    bus.subscribe("order.*", once)
    bus.publish(event())
    assert bus.wait(PATIENCE)
    bus.publish(event())
    assert bus.wait(PATIENCE)
    assert seen == ["order.placed"]


def test_a_failing_handler_stops_no_other_and_is_tried_again(bus: MemoryBus) -> None:
    recorder, attempts = Recorder(), []

    def fail_once(event: DomainEvent) -> None:
        attempts.append(event.retries)
        if event.retries == 0:
            raise Retry(0.01)

    bus.subscribe("order.*", fail_once, max_retries=1)
    bus.subscribe("order.*", recorder)
    bus.publish(event())
    assert bus.wait(PATIENCE)
    assert (attempts, recorder.seen) == ([0, 1], ["order.placed"])


def test_what_fails_for_good_is_a_dead_letter_that_can_be_replayed(bus: MemoryBus) -> None:
    works: list[bool] = []

    def charge(event: DomainEvent) -> None:
        if not works:
            raise ConnectionError("the provider is down")

    bus.subscribe("order.*", charge, max_retries=2, backoff=Backoff.fixed(0.001))
    bus.publish(event())
    assert bus.wait(PATIENCE)
    letters = bus.dead_letters(charge)
    assert letters.count() == 1
    works.append(True)
    assert letters.sift(lambda letter: Decision.RETRY).replayed == 1
    assert bus.wait(PATIENCE)
    assert letters.count() == 0
    with pytest.raises(KeyError, match="not subscribed"):
        bus.dead_letters("nobody")


def test_a_shutdown_handles_what_is_there_and_takes_nothing_more() -> None:
    bus, recorder, go_on = MemoryBus(), Recorder(), threading.Event()

    def wait_first(event: DomainEvent) -> None:
        go_on.wait(PATIENCE)
        recorder.handle(event)

    bus.subscribe("order.*", wait_first)
    bus.publish(*[event()] * 100)
    releaser = threading.Timer(0.05, go_on.set)
    releaser.start()
    assert bus.shutdown(PATIENCE) is True
    releaser.join()
    assert len(recorder.seen) == 100
    with pytest.raises(BrokerUnavailable, match="shut down"):
        bus.publish(event())
    with pytest.raises(BrokerUnavailable, match="shut down"):
        bus.subscribe("order.*", recorder)
    assert bus.shutdown() is True


def test_a_shutdown_whose_time_is_up_says_so() -> None:
    bus = MemoryBus()

    def later(event: DomainEvent) -> None:
        raise Retry(3600)

    bus.subscribe("order.*", later, max_retries=1)
    bus.publish(event())
    assert bus.shutdown(0.2) is False


def test_it_can_be_used_in_coroutines() -> None:
    recorder = Recorder()

    async def program() -> None:
        async with MemoryBus() as bus:
            bus.subscribe("order.*", recorder)
            bus.publish(event())

    asyncio.run(program())
    assert recorder.seen == ["order.placed"]


def test_figures_are_ready_for_json_and_survive_who_made_them(bus: MemoryBus) -> None:
    def fail(event: DomainEvent) -> None:
        raise ValueError

    recorder = Recorder()
    bus.subscribe("order.*", recorder)
    bus.subscribe("order.*", fail, max_retries=0)
    bus.publish(event(), event(), event("nobody.cares"))
    assert bus.wait(PATIENCE)
    wanted = {
        "events_published": 3,
        "publish_returns": 1,
        "events_consumed": 4,
        "handlers_invoked": 4,
        "events_processed_success": 2,
        "events_processed_failed": 2,
        "handler_errors": 2,
        "messages_sent_to_dlq": 2,
        "is_connected": True,
        "is_consuming": True,
        "reconnections": 0,
    }
    figures = json.loads(json.dumps(bus.get_stats()))
    assert {name: figures[name] for name in wanted} == wanted
    assert figures["last_publish_at"] <= figures["last_error_at"]
    bus.clear_subscribers()
    assert bus.get_stats()["handlers_invoked"] == 4


def test_queues_and_health_can_be_looked_at(bus: MemoryBus) -> None:
    bus.subscribe("order.*", Recorder(), name="recorder")
    assert bus.health_check() == {"healthy": True, "closed": False, "handlers_not_served": []}
    assert json.loads(json.dumps(bus.get_queue_info()))["recorder"]["ready"] == 0
    bus.shutdown()
    assert bus.health_check()["healthy"] is False
    assert bus.get_queue_info() == {}


def test_subscribing_and_publishing_from_many_threads_is_safe(bus: MemoryBus) -> None:
    seen: list[str] = []

    def come_and_go(number: int) -> None:
        recorder = Recorder()
        bus.subscribe(f"t{number}.*", recorder)
        for _ in range(20):
            bus.publish(event(f"t{number}.happened"))
        bus.wait(PATIENCE)
        assert bus.unsubscribe(f"t{number}.*", recorder)
        seen.extend(recorder.seen)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 120
    assert bus.get_subscriber_count() == 0


def test_what_cannot_be_served_or_sent_is_refused(bus: MemoryBus) -> None:
    with pytest.raises(HandlerError):
        bus.subscribe("order.*", "no function")
    with pytest.raises(HandlerError):
        bus.subscribe("order.*", print, max_retries=-1)
    with pytest.raises(InvalidEvent):
        bus.publish(DomainEvent("order.placed", {"when": object()}))
    assert bus.get_subscriber_count() == 0


def test_a_shutdown_handles_what_handlers_publish_meanwhile() -> None:
    bus, seen, go_on = MemoryBus(), [], threading.Event()

    def first(event: DomainEvent) -> None:
        go_on.wait(PATIENCE)
        bus.publish(DomainEvent("invoice.due", {}))

    bus.subscribe("order.*", first)
    bus.subscribe("invoice.*", lambda event: seen.append(event.routing_key))
    bus.publish(event(), event())
    releaser = threading.Timer(0.05, go_on.set)
    releaser.start()
    assert bus.shutdown(PATIENCE) is True
    releaser.join()
    assert seen == ["invoice.due", "invoice.due"]
    assert bus.get_stats()["handler_errors"] == 0


def test_a_shutdown_does_not_wait_for_a_handler_once_its_time_is_up() -> None:
    bus, go_on, began = MemoryBus(), threading.Event(), threading.Event()

    def hang(event: DomainEvent) -> None:
        began.set()
        go_on.wait(60)

    bus.subscribe("order.*", hang)
    bus.publish(event())
    assert began.wait(PATIENCE)
    start = time.monotonic()
    assert bus.shutdown(0.1) is False
    assert time.monotonic() - start < 20
    go_on.set()


def test_a_method_can_be_unsubscribed_and_its_dead_letters_found(bus: MemoryBus) -> None:
    recorder = Recorder()
    bus.subscribe("order.*", recorder.handle)
    assert bus.dead_letters(recorder.handle).count() == 0
    assert bus.unsubscribe("order.*", Recorder().handle) is False
    assert bus.unsubscribe("order.*", recorder.handle) is True


def test_an_object_says_itself_what_it_can_handle(bus: MemoryBus) -> None:
    class Choosy(Recorder):
        def can_handle(self, event: DomainEvent) -> bool:
            return event.routing_key == "order.paid"

    choosy = Choosy()
    bus.subscribe("order.*", choosy)
    bus.publish(event("order.placed"), event("order.paid"))
    assert bus.wait(PATIENCE)
    assert choosy.seen == ["order.paid"]


def test_two_handlers_of_one_name_are_refused(bus: MemoryBus) -> None:
    recorder = Recorder()
    bus.subscribe("order.*", recorder, name="mine")
    with pytest.raises(HandlerError, match="'mine'"):
        bus.subscribe("user.*", Recorder(), name="mine")
    bus.unsubscribe("order.*", recorder)
    bus.subscribe("order.*", recorder, name="mine")
    bus.publish(event())
    assert bus.wait(PATIENCE)
    assert recorder.seen == ["order.placed"]


def test_a_name_taken_anew_while_its_last_handler_is_at_work_keeps_its_queue(bus: MemoryBus) -> None:
    first, second = Slow(), Slow()
    for handler in (first, second):
        bus.subscribe("order.*", handler, name="mine")
        bus.publish(event())
        assert handler.at_work.wait(PATIENCE)
        bus.unsubscribe("order.*", handler)
    threads = [each for each in threading.enumerate() if each.name == "bus-mine"]
    assert len(threads) == 2
    first.may_go.set()
    wait_until(lambda: sum(each.is_alive() for each in threads) < 2, PATIENCE, "the first consumer ended")
    second.may_go.set()
    wait_until(lambda: not any(each.is_alive() for each in threads), PATIENCE, "the second consumer ended")
    assert first.seen == second.seen == ["order.placed"]


def test_a_name_for_several_keys_is_numbered(bus: MemoryBus) -> None:
    bus.subscribe_all(Recorder(), name="mine")
    assert set(bus.get_queue_info()) == {"mine-1", "mine-2"}


def test_one_key_may_be_asked_for_without_a_list(bus: MemoryBus) -> None:
    class Modest(Recorder):
        def subscribed_to(self) -> Any:
            return "order.placed"

    bus.subscribe_all(Modest(), name="modest")
    assert bus.get_subscriber_count("order.placed") == bus.get_subscriber_count() == 1
    assert set(bus.get_queue_info()) == {"modest"}


def test_a_bus_that_ends_leaves_another_of_its_name_alone() -> None:
    recorder = Recorder()
    with MemoryBus("shared-by-two") as staying:
        MemoryBus("shared-by-two").shutdown()
        staying.subscribe("order.*", recorder)
        assert staying.publish(event()) == 1
        assert staying.wait(PATIENCE)
    assert recorder.seen == ["order.placed"]


def test_a_handler_that_is_served_no_more_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(self: Consumer) -> None:
        raise HandlerStuck("it waits outside of Python")

    with MemoryBus() as bus:
        with monkeypatch.context() as patched:
            patched.setattr(Consumer, "run", give_up)
            bus.subscribe("order.*", print, name="stuck")
            wait_until(lambda: not bus.health_check()["healthy"], PATIENCE)
        recorder = Recorder()
        bus.subscribe("order.*", recorder)
        bus.publish(event())
        assert bus.wait(PATIENCE)
        assert recorder.seen == ["order.placed"]
        assert bus.health_check()["handlers_not_served"] == ["stuck"]
        assert bus.unsubscribe("order.*", print)
