"""The older library's API: Subscriber, Publisher, publish_domain_event and replay, without Django."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from domain_event_broker import (
    DISCARD,
    LEAVE,
    RETRY,
    DomainEvent,
    Publisher,
    Retry,
    Subscriber,
    publish_domain_event,
    publisher,
    replay_all,
    replay_event,
    subscriber,
)
from domain_event_broker.execution import DirectInbox
from tests.harness.waiting import wait_until
from tests.integration.subscriber.conftest import Bench


@pytest.fixture(autouse=True)
def _no_django(monkeypatch: pytest.MonkeyPatch) -> object:
    """Publish and subscribe as a program without Django does."""
    monkeypatch.setattr(publisher, "_outbox", None)
    monkeypatch.setattr(subscriber, "_inbox", DirectInbox())
    yield None
    publisher.close_connections()


@pytest.fixture
def url(bench: Bench) -> str:
    return bench.settings.url[0]


@pytest.fixture
def name(bench: Bench) -> str:
    return bench.fresh_name("printer")


def consume(printer: Subscriber, is_done: Callable[[], object]) -> None:
    """Let a subscriber consume until ``is_done``."""
    thread = threading.Thread(target=printer.start_consuming)
    thread.start()
    try:
        wait_until(is_done, 60, "all events handled")
    finally:
        printer.stop_consuming()
        thread.join(60)
    assert not thread.is_alive()


def test_an_event_published_after_register_is_handled(url: str, name: str) -> None:
    seen: list[DomainEvent] = []
    printer = Subscriber(url)
    printer.register(seen.append, name, [f"{name}.*"])
    event = publish_domain_event(f"{name}.registered", {"user_id": 7}, "u-7", connection_settings=url)
    consume(printer, lambda: seen)
    assert seen == [event]
    assert (event.domain_object_id, event.retries) == ("u-7", 0)


def test_a_timeout_ends_start_consuming(url: str, name: str) -> None:
    printer = Subscriber(url)
    printer.register(lambda event: None, name, (name,))
    started = time.monotonic()
    printer.start_consuming(timeout=0.2)
    assert time.monotonic() - started >= 0.2


def test_stop_consuming_ends_start_consuming_from_another_thread(url: str, name: str) -> None:
    seen: list[DomainEvent] = []
    printer = Subscriber(url)
    printer.register(seen.append, name, (name,))
    thread = threading.Thread(target=printer.start_consuming)
    thread.start()
    publish_domain_event(name, {}, connection_settings=url)
    wait_until(lambda: seen, 30, "a call")
    printer.stop_consuming()
    thread.join(30)
    assert not thread.is_alive()


def test_a_stop_before_the_start_ends_that_one_start_only(url: str, name: str) -> None:
    seen: list[DomainEvent] = []
    printer = Subscriber(url)
    printer.register(seen.append, name, (name,))
    printer.stop_consuming()
    printer.start_consuming()
    publish_domain_event(name, {}, connection_settings=url)
    consume(printer, lambda: seen)
    assert len(seen) == 1


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Let SIGINT do what it does in a terminal: whoever started the tests may ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_start_consuming_quietly_after_the_event_at_hand(url: str, name: str) -> None:
    done: list[str] = []

    def call(event: DomainEvent) -> None:
        signal.raise_signal(signal.SIGINT)
        threading.Event().wait(0.3)
        done.append(event.uuid_string)

    printer = Subscriber(url)
    printer.register(call, name, (name,))
    event = publish_domain_event(name, {}, connection_settings=url)
    printer.start_consuming()
    assert done == [event.uuid_string]


def test_handlers_of_one_subscriber_never_run_beside_each_other(url: str, name: str) -> None:
    inside = threading.Lock()
    overlaps: list[str] = []
    count: list[int] = []

    def call(event: DomainEvent) -> None:
        if not inside.acquire(blocking=False):
            overlaps.append(event.routing_key)
            return
        threading.Event().wait(0.002)
        inside.release()
        count.append(1)

    printer = Subscriber(url)
    printer.register(call, f"{name}-one", (name,))
    printer.register(call, f"{name}-two", (name,))
    for _ in range(20):
        publish_domain_event(name, {}, connection_settings=url)
    consume(printer, lambda: len(count) + len(overlaps) == 40)
    assert not overlaps
    assert len(count) == 40


def test_retry_gives_the_handler_the_event_again_and_counts(url: str, name: str) -> None:
    retries: list[int] = []

    def call(event: DomainEvent) -> None:
        retries.append(event.retries)
        raise Retry(0.05)

    printer = Subscriber(url)
    printer.register(call, name, (name,), max_retries=3)
    publish_domain_event(name, {}, connection_settings=url)
    consume(printer, lambda: len(retries) >= 4)
    assert retries == [0, 1, 2, 3]


def failing(url: str, name: str, count: int) -> list[str]:
    """Dead-letter so many events; return their ids in order."""
    failed: list[str] = []

    def call(event: DomainEvent) -> None:
        failed.append(event.uuid_string)
        raise ValueError("broken")

    printer = Subscriber(url)
    printer.register(call, name, (name,))
    events = [publish_domain_event(name, {"n": n}, connection_settings=url) for n in range(count)]
    consume(printer, lambda: len(failed) == count)
    return [event.uuid_string for event in events]


def handled(url: str, name: str, count: int) -> list[str]:
    """Handle so many events; return their ids in order."""
    seen: list[str] = []
    printer = Subscriber(url)
    printer.register(lambda event: seen.append(event.uuid_string), name, (name,))
    consume(printer, lambda: len(seen) >= count)
    return seen


def test_replay_event_moves_one_and_returns_how_many_are_left(url: str, name: str) -> None:
    ids = failing(url, name, 3)
    assert replay_event(name, connection_settings=url) == 2
    assert handled(url, name, 1) == ids[:1]


def test_replay_all_asks_for_each_event_once(url: str, name: str) -> None:
    ids = failing(url, name, 3)
    answers = dict(zip(ids, (RETRY, LEAVE, DISCARD), strict=True))
    asked: list[str] = []

    def decide(event: DomainEvent) -> object:
        asked.append(event.uuid_string)
        assert event.data in ({"n": 0}, {"n": 1}, {"n": 2})
        return answers[event.uuid_string]

    assert replay_all(name, decide, url) == 0  # type: ignore[arg-type]
    assert asked == ids
    assert handled(url, name, 1) == ids[:1]
    assert replay_event(name, lambda event: DISCARD, url) == 0


def test_a_callback_that_answers_nonsense_changes_nothing(url: str, name: str) -> None:
    failing(url, name, 2)
    with pytest.raises(ValueError, match="None is not a valid Decision"):
        replay_all(name, lambda event: None, url)  # type: ignore[arg-type, return-value]
    assert replay_event(name, lambda event: LEAVE, url) == 2


def test_a_publisher_sends_bodies_as_they_are(url: str, name: str) -> None:
    seen: list[DomainEvent] = []
    printer = Subscriber(url)
    printer.register(seen.append, name, (name, f"{name}.other"))
    event = DomainEvent(name, {"n": 1})
    with Publisher(url) as sender:
        sender.publish(event.to_json().encode())
        sender.publish(event.to_json().encode(), f"{name}.other")
        sender.publish(event)
    consume(printer, lambda: len(seen) == 3)
    assert seen == [event, event, event]


def test_none_switches_everything_off(name: str) -> None:
    seen: list[DomainEvent] = []
    assert publish_domain_event(name, {"n": 1}, connection_settings=None).data == {"n": 1}
    Publisher(None).publish(DomainEvent(name))
    printer = Subscriber(None)
    printer.register(seen.append, name, (name,))
    printer.start_consuming(timeout=5)
    assert not seen
    assert replay_all(name, connection_settings=None) == 0
    assert replay_event(name, connection_settings=None) == 0


def test_an_event_that_nobody_subscribes_to_is_legal(url: str, name: str) -> None:
    assert publish_domain_event(name, {}, connection_settings=url).routing_key == name
