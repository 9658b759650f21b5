"""Limits of time: what is interrupted, and what must not be."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from domain_event_broker import deadlines
from domain_event_broker.deadlines import Attempt, TimeIsUp, current_attempt
from domain_event_broker.errors import HandlerTimeout
from domain_event_broker.injection.asynchronous import wait_for
from tests.harness.waiting import wait_until


def spin(until: threading.Event | None = None) -> None:
    while until is None or not until.is_set():
        sum(range(50))


def test_a_function_in_time_returns_what_it_returns() -> None:
    attempt = Attempt(60)
    assert attempt.call(lambda: 7) == 7
    assert not attempt.is_over
    assert not attempt.is_under_way


def test_what_the_function_raises_in_time_passes_through() -> None:
    with pytest.raises(LookupError, match="mine"):
        Attempt(60).call(lambda: {}["mine"])


def test_a_function_that_spins_is_interrupted() -> None:
    with pytest.raises(HandlerTimeout, match=r"within its timeout of 0\.2 s"):
        Attempt(0.2).call(spin)


def test_an_interruption_never_arrives_after_the_end() -> None:
    """Many functions that end in the very moment at which their time is up."""
    late = 0
    for number in range(200):
        end = time.monotonic() + 0.002 + (number % 10) / 10_000

        def until_then(end: float = end) -> None:
            while time.monotonic() < end:
                pass

        try:
            Attempt(0.002).call(until_then)
        except (HandlerTimeout, TimeIsUp):
            late += 1
        sum(range(2000))  # where an interruption that was left over would arrive
    assert late, "some must have been late, or this tests nothing"


def test_what_the_function_waits_for_is_cancelled_too() -> None:
    cancelled = threading.Event()
    attempt = Attempt(0.2)
    attempt.on_expiry(cancelled.set)
    attempt.on_expiry(lambda: 1 / 0)
    with pytest.raises(HandlerTimeout):
        attempt.call(lambda: cancelled.wait(30) and spin())
    assert cancelled.is_set()


def test_nothing_is_cancelled_for_a_function_in_time() -> None:
    cancelled = threading.Event()
    attempt = Attempt(0.2)
    attempt.on_expiry(cancelled.set)
    attempt.call(lambda: None)
    attempt.expire()
    assert not cancelled.is_set()


def test_one_that_does_not_come_back_is_stuck_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "STUCK_SECONDS", 0.1)
    release, attempt = threading.Lock(), Attempt(0.1)
    release.acquire()
    failures: list[BaseException] = []

    def hang() -> None:
        try:
            # One call in C, where no exception arrives.
            attempt.call(release.acquire)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=hang)
    thread.start()
    wait_until(lambda: attempt.is_stuck, 30, "it is stuck")
    release.release()
    thread.join(30)
    assert not attempt.is_stuck
    assert isinstance(failures[0], HandlerTimeout)


def test_the_watchdog_looks_once_at_one_that_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counted(Attempt):
        given_up = 0

        def give_up(self) -> None:
            self.given_up += 1
            super().give_up()

    monkeypatch.setattr(deadlines, "STUCK_SECONDS", 0.1)
    stuck = Counted(0.1)
    stuck.begin(lambda: None)
    wait_until(lambda: stuck.is_stuck, 30, "it is stuck")
    with pytest.raises(HandlerTimeout):
        Attempt(0.3).call(spin)
    stuck.end()
    assert stuck.given_up == 1


def test_a_coroutine_is_cancelled_and_its_task_is_of_further_use() -> None:
    async def main() -> str:
        with pytest.raises(HandlerTimeout):
            await wait_for(Attempt(0.1), asyncio.sleep(3600))
        await asyncio.sleep(0.01)
        return await wait_for(Attempt(60), asyncio.sleep(0, "in time"))

    assert asyncio.run(main()) == "in time"


def test_a_coroutine_that_swallows_its_cancellation_has_failed_all_the_same() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            return "nothing happened"
        return "never"

    with pytest.raises(HandlerTimeout):
        asyncio.run(wait_for(Attempt(0.1), stubborn()))


def test_the_current_attempt_is_that_of_this_context() -> None:
    attempt = Attempt(1)
    token = deadlines.enter(attempt)
    assert current_attempt() is attempt
    deadlines.leave(token)
    assert current_attempt() is None
