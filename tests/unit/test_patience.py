"""Waiting for a stop, and for what is away."""

from __future__ import annotations

import logging
import signal
import threading
import time

import pytest

from domain_event_broker.patience import (
    FIRST_SECONDS,
    KINDS_REMEMBERED,
    REMIND_SECONDS,
    News,
    Outage,
    Repetition,
    StopFlag,
)

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


def test_those_who_share_an_outage_tell_of_it_once(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    news = News(log, lambda: now[0], calm=10.0)
    one, two = (Outage(log, 5.0, news=news) for _ in range(2))
    with caplog.at_level(logging.ERROR, "domain_event_broker"):
        one.failed(OSError("away"))
        two.failed(OSError("away"))
        assert len(caplog.records) == 1
        # The second one finds out a little later.
        assert one.over()
        now[0] += 4.0
        two.failed(OSError("away"))
        assert not two.over()
        assert len(caplog.records) == 1
        now[0] += 10.0
        two.failed(OSError("away once more"))
        assert len(caplog.records) == 2
        assert two.over()


def test_one_who_was_not_hit_does_not_tell_of_the_end() -> None:
    news = News(log, calm=10.0)
    one, two = (Outage(log, 5.0, news=news) for _ in range(2))
    one.failed(OSError("away"))
    assert not two.over()  # it had no part in it
    assert one.over()


def test_of_many_lines_alike_one_is_written_a_minute_with_the_number_of_the_others() -> None:
    now = [0.0]
    repetition = Repetition(lambda: now[0])
    assert [repetition.left_out("full") for _ in range(4)] == [0, None, None, None]
    assert repetition.left_out("another") == 0
    now[0] += REMIND_SECONDS
    assert [repetition.left_out("full") for _ in range(2)] == [3, None]


def test_kinds_of_lines_are_not_remembered_without_end() -> None:
    repetition = Repetition(lambda: 0.0)
    for number in range(2 * KINDS_REMEMBERED):
        assert repetition.left_out(str(number)) == 0
    assert len(repetition._said) <= KINDS_REMEMBERED
