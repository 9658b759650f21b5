"""What becomes of deliveries by what their handlers declare: retries, filters, limits of time, async."""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import pytest

from domain_event_broker import DeadLetter, Depends, DomainEvent, EventModel, Retry, deadlines, subscribe
from domain_event_broker.config import SubscriberSettings
from domain_event_broker.errors import HandlerStuck, UnsupportedOption
from domain_event_broker.handlers import Handler, Registry
from domain_event_broker.ports import Capabilities
from domain_event_broker.subscriber import check_supported, subscription_of
from tests.harness.waiting import wait_until
from tests.integration.subscriber.conftest import Bench


class ServiceDown(Exception):
    """What a handler raises that shall be retried."""


class OrderPlaced(EventModel, routing_key="order.placed"):
    number: int


def declared(bench: Bench, call: Callable[..., Any], **options: Any) -> Handler:
    """Return what ``@subscribe`` declares, with its queue."""
    registry, name = Registry(), bench.fresh_name("handler")
    subscribe(name, name=name, to=registry, **options)(call)
    (handler,) = registry.all()
    with bench.transport() as transport:
        transport.declare(subscription_of(handler, bench.settings.subscriber))
    return handler


# --- retry policies ---------------------------------------------------------------------


@pytest.mark.parametrize(("error", "calls"), [(ServiceDown("x"), 4), (KeyError("x"), 1)], ids=["X", "other"])
def test_three_retries_on_one_error_are_four_calls_and_one_of_another(
    bench: Bench, error: Exception, calls: int
) -> None:
    seen: list[float] = []

    def fail(event: DomainEvent) -> None:
        seen.append(time.monotonic())
        raise error

    handler = declared(bench, fail, retries=3, retry_on=[ServiceDown], retry_interval=0.3)
    bench.publish(handler, 1)
    with bench.consuming(handler):
        (letter,) = bench.dead_letters(handler, 1)
    assert len(seen) == calls
    assert all(later - earlier >= 0.28 for earlier, later in itertools.pairwise(seen))
    assert letter.failure is not None
    assert (letter.failure.reason, letter.failure.attempts) == (
        "retries-exhausted" if calls > 1 else "error",
        calls,
    )


def test_a_function_decides_when_to_give_up(bench: Bench) -> None:
    asked: list[tuple[int, str]] = []

    def decide(attempt: int, error: BaseException) -> float | None:
        asked.append((attempt, str(error)))
        return 0.1 if attempt < 3 else None

    def fail(event: DomainEvent) -> None:
        raise ServiceDown(event.retries)

    handler = declared(bench, fail, retries=9, backoff=decide)
    bench.publish(handler, 1)
    with bench.consuming(handler):
        (letter,) = bench.dead_letters(handler, 1)
    assert asked == [(1, "0"), (2, "1"), (3, "2")]
    assert letter.failure is not None
    assert letter.failure.attempts == 3


def test_each_attempt_has_fresh_dependencies_and_they_are_told(bench: Bench) -> None:
    told: list[str] = []

    def session() -> Iterator[list[int]]:
        mine: list[int] = []
        try:
            yield mine
        except ServiceDown:
            told.append(f"rolled back {mine}")
            raise
        told.append(f"committed {mine}")

    def work(event: DomainEvent, mine: Annotated[list[int], Depends(session)]) -> None:
        mine.append(event.retries)
        if event.retries < 2:
            raise ServiceDown

    handler = declared(bench, work, retries=3, retry_interval=0.1)
    bench.publish(handler, 1)
    with bench.consuming(handler):
        wait_until(lambda: len(told) == 3, 30, lambda: str(told))
        bench.wait_until_empty(handler)
    assert told == ["rolled back [0]", "rolled back [1]", "committed [2]"]


def test_data_that_do_not_fit_are_never_retried(bench: Bench) -> None:
    called: list[OrderPlaced] = []

    def place(order: OrderPlaced) -> None:
        called.append(order)

    handler = declared(bench, place, retries=5, retry_interval=0.1)
    bench.publish(handler, 1)
    with bench.consuming(handler):
        (letter,) = bench.dead_letters(handler, 1)
    assert called == []
    assert letter.failure is not None
    assert (letter.failure.reason, letter.failure.attempts) == ("invalid-data", 1)
    assert "number" in letter.failure.message


def test_what_a_handler_filters_out_is_acknowledged_and_counted(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="domain_event_broker.subscriber")
    seen: list[int] = []
    handler = declared(
        bench,
        lambda event: seen.append(event.data["value"]),
        can_handle=lambda event: event.data["value"] % 2,
    )
    bench.publish(handler, *range(6))
    with bench.consuming(handler) as consumer:
        bench.wait_until_empty(handler)
        wait_until(lambda: sum(consumer.outcomes.values()) == 6, 30, lambda: str(consumer.outcomes))
    assert seen == [1, 3, 5]
    assert consumer.outcomes == Counter({(handler.name, "handled"): 3, (handler.name, "filtered"): 3})
    filtered = [each for each in caplog.records if getattr(each, "outcome", "") == "filtered"]
    assert [each.levelname for each in filtered] == ["DEBUG"] * 3


def test_a_filter_that_fails_is_a_failure_of_the_handler(bench: Bench) -> None:
    handler = declared(bench, lambda event: None, can_handle=lambda event: event.data["wrong"])
    bench.publish(handler, 1)
    with bench.consuming(handler):
        (letter,) = bench.dead_letters(handler, 1)
    assert letter.failure is not None
    assert letter.failure.error_type == "KeyError"


# --- dead letters -----------------------------------------------------------------------


def test_no_more_dead_letters_are_kept_than_asked_for(bench: Bench) -> None:
    handler = declared(bench, lambda event: event.data["wrong"], dead_letter=DeadLetter(max_length=2))
    bench.publish(handler, *range(5))
    with bench.consuming(handler):
        bench.wait_until_empty(handler)
        wait_until(
            lambda: b'"value":4' in bench.dead_letters(handler, 2)[-1].body, 30, "the last one is there"
        )
    assert [letter.body.count(b'"value":3') for letter in bench.dead_letters(handler, 2)] == [1, 0]


def test_dead_letters_are_kept_no_longer_than_asked_for(bench: Bench) -> None:
    handler = declared(bench, lambda event: event.data["wrong"], dead_letter=DeadLetter(ttl=1))
    bench.publish(handler, 1)
    with bench.consuming(handler):
        bench.dead_letters(handler, 1)
        wait_until(lambda: bench.stats(handler).dead == 0, 30, "it is gone")


def test_a_transport_that_cannot_limit_dead_letters_is_refused() -> None:
    handler = Handler(print, "h", ("#",), dead_letter=DeadLetter(ttl=1))
    with pytest.raises(UnsupportedOption, match="limits its dead letters"):
        check_supported(subscription_of(handler, SubscriberSettings()), Capabilities())


# --- limits of time ---------------------------------------------------------------------


def spin(event: DomainEvent) -> None:
    while True:
        try:
            sum(range(100))
        except Exception:
            raise AssertionError("an interruption is no Exception") from None


async def sleep_on(event: DomainEvent) -> None:
    await asyncio.sleep(3600)


@pytest.mark.parametrize("call", [spin, sleep_on], ids=["in Python", "async"])
def test_a_handler_that_takes_too_long_is_interrupted_and_has_failed(
    bench: Bench, call: Callable[[DomainEvent], Any]
) -> None:
    handler = declared(bench, call, timeout=0.3, retries=1, retry_on=TimeoutError, retry_interval=0.1)
    other = declared(bench, lambda event: done.append(event))
    done: list[DomainEvent] = []
    bench.publish(handler, 1)
    bench.publish(other, 1)
    with bench.consuming(handler, other) as consumer:
        (letter,) = bench.dead_letters(handler, 1)
        wait_until(lambda: done, 30, "the other goes on")
    assert letter.failure is not None
    assert letter.failure.error_type == "domain_event_broker.errors.HandlerTimeout"
    assert letter.failure.attempts == 2
    assert consumer.outcomes[handler.name, "retried"] == 1


def test_without_a_retry_policy_a_timeout_is_the_reason_in_the_dead_letters(bench: Bench) -> None:
    handler = declared(bench, spin, timeout=0.2)
    bench.publish(handler, 1)
    with bench.consuming(handler):
        (letter,) = bench.dead_letters(handler, 1)
    assert letter.failure is not None
    assert (letter.failure.reason, letter.failure.attempts) == ("timeout", 1)


def test_a_handler_in_time_is_left_alone(bench: Bench) -> None:
    done: list[object] = []
    handler = declared(bench, lambda event: done.append(event.data["value"]), timeout=30)
    bench.publish(handler, *range(50))
    with bench.consuming(handler):
        wait_until(lambda: len(done) == 50, 30, "all handled")
        bench.wait_until_empty(handler)
    assert done == list(range(50))


def block_thread(seconds: float) -> None:
    """Wait in C, where no exception arrives."""
    libc = ctypes.CDLL(None)
    libc.usleep(int(seconds * 1_000_000))


async def block_loop(event: DomainEvent) -> None:
    block_thread(4)


@pytest.mark.parametrize("call", [lambda event: block_thread(4), block_loop], ids=["thread", "loop"])
def test_a_handler_that_hangs_in_c_makes_its_process_leave_with_the_attempt_counted(
    bench: Bench, call: Callable[[DomainEvent], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "STUCK_SECONDS", 0.3)
    hanging = declared(bench, call, timeout=0.3, retries=3, retry_on=TimeoutError, retry_interval=60)
    entered, finish = threading.Event(), threading.Event()

    def finishing(event: DomainEvent) -> None:
        entered.set()
        assert finish.wait(30)

    slow = declared(bench, finishing)
    bench.publish(hanging, 1)
    bench.publish(slow, 1)
    with pytest.raises(HandlerStuck), bench.consuming(hanging, slow, grace_seconds=30) as consumer:  # noqa: PT012
        assert entered.wait(30)
        wait_until(lambda: consumer.outcomes[hanging.name, "retried"], 30, "the attempt has failed")
        finish.set()
        wait_until(lambda: consumer.outcomes[slow.name, "handled"], 30, "the other is finished")
    stats = bench.stats(hanging)
    assert (stats.ready, stats.delayed, stats.dead) == (0, 1, 0)
    assert bench.is_empty(slow)


# --- async ------------------------------------------------------------------------------


def test_async_handlers_run_on_one_loop_as_many_at_once_as_they_may(bench: Bench) -> None:
    loops: set[int] = set()
    inside = 0
    most = 0
    all_in = asyncio.Event()
    done: list[DomainEvent] = []

    async def wait_for_all(event: DomainEvent) -> None:
        nonlocal inside, most
        loops.add(id(asyncio.get_running_loop()))
        inside += 1
        most = max(most, inside)
        if inside == 20:
            all_in.set()
        await all_in.wait()
        inside -= 1
        done.append(event)

    handler = declared(bench, wait_for_all, concurrency=20)
    in_thread = declared(bench, lambda event: done.append(event))
    bench.publish(handler, *range(60))
    bench.publish(in_thread, 1)
    with bench.consuming(handler, in_thread):
        wait_until(lambda: len(done) == 61, 60, lambda: f"61 done: {len(done)}")
        bench.wait_until_empty(handler)
    assert most == 20
    assert len(loops) == 1


def test_async_handlers_retry_reject_and_fail_as_others_do(bench: Bench) -> None:
    async def fail(event: DomainEvent) -> None:
        await asyncio.sleep(0)
        if event.data["value"] == "retry" and event.retries == 0:
            raise Retry(0.1)
        if event.data["value"] == "cancel":
            raise asyncio.CancelledError
        if event.data["value"] == "fail":
            raise ValueError("no")

    handler = declared(bench, fail, retries=1, concurrency=3)
    bench.publish(handler, "retry", "cancel", "fail")
    with bench.consuming(handler) as consumer:
        letters = bench.dead_letters(handler, 2)
        wait_until(lambda: consumer.outcomes[handler.name, "handled"] == 1, 30, "the retry is done")
        bench.wait_until_empty(handler)
    types = {letter.failure.error_type for letter in letters if letter.failure}
    assert types == {"asyncio.exceptions.CancelledError", "ValueError"}


def test_a_stop_finishes_async_handlers_and_gives_back_what_waits(bench: Bench) -> None:
    begun, done = threading.Event(), []

    async def work(event: DomainEvent) -> None:
        begun.set()
        await asyncio.sleep(0.5)
        done.append(event)

    handler = declared(bench, work)
    bench.publish(handler, *range(5))
    with bench.consuming(handler):
        assert begun.wait(30)
    assert 1 <= len(done) < 5
    wait_until(lambda: bench.stats(handler).ready == 5 - len(done), 30, lambda: str(bench.stats(handler)))


def test_a_stop_cancels_async_handlers_when_the_grace_is_over(bench: Bench) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def work(event: DomainEvent) -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    handler = declared(bench, work)
    bench.publish(handler, 1)
    with bench.consuming(handler, grace_seconds=0.2):
        assert begun.wait(30)
    assert cancelled.wait(30)
    wait_until(lambda: bench.stats(handler).ready == 1, 30, lambda: f"it is back: {bench.stats(handler)}")
