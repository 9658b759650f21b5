"""Waiting for a stop, and for what is away."""

from __future__ import annotations

import logging
import signal
import threading
import time

import pytest

from domain_event_broker.patience import FIRST_SECONDS, REMIND_SECONDS, Outage, StopFlag

log = logging.getLogger("domain_event_broker.test")


def test_a_stop_ends_the_wait_of_another_thread() -> None:
    flag = StopFlag()
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(flag.wait(60)))
    thread.start()
    flag.set()
    thread.join(10)
    assert results == [True]


def test_a_wait_without_a_stop_ends_by_itself() -> None:
    assert not StopFlag().wait(0.01)
    assert not StopFlag().wait(-1)


def test_a_signal_handler_may_stop_what_it_interrupts() -> None:
    flag = StopFlag()
    before = signal.signal(signal.SIGALRM, lambda *_: flag.set())
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    try:
        assert flag.wait(60)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_waits_grow_to_their_longest() -> None:
    outage = Outage(log, longest=5.0)
    waits = [outage.failed(OSError("away")) for _ in range(40)]
    assert FIRST_SECONDS / 2 <= waits[0] <= FIRST_SECONDS
    assert all(2.5 <= wait <= 5.0 for wait in waits[10:])


def test_an_outage_is_told_at_once_and_then_each_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [time.monotonic()]
    outage = Outage(log, longest=5.0, clock=lambda: now[0])
    with caplog.at_level(logging.ERROR, "domain_event_broker"):
        for _ in range(10):
            outage.failed(OSError("away"))
        assert len(caplog.records) == 1
        now[0] += REMIND_SECONDS
        outage.failed(OSError("still away"))
        assert len(caplog.records) == 2
    assert outage.over()
    assert not outage.over()


def test_after_it_is_over_the_next_outage_is_told_of_again(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage(log, longest=5.0)
    with caplog.at_level(logging.ERROR, "domain_event_broker"):
        outage.failed(OSError("one"))
        outage.over()
        outage.failed(OSError("another"))
    assert [record.getMessage().split(";")[0] for record in caplog.records] == ["one", "another"]
