"""What becomes of a delivery, by what its handler does."""

from __future__ import annotations

import logging
import threading

import pytest

from domain_event_broker import Backoff, DomainEvent, Reject, Retry
from domain_event_broker.errors import InboxUnavailable
from domain_event_broker.events import Message, new_event_id
from domain_event_broker.handlers import Handler
from tests.harness.waiting import wait_until
from tests.integration.subscriber.conftest import Bench


class ServiceDown(Exception):
    """What a handler raises that shall be retried."""


class Calls(list[DomainEvent]):
    """A handler that notes its calls, and then does what it is told."""

    def __init__(self, then: object = None) -> None:
        super().__init__()
        self._then = then

    def __call__(self, event: DomainEvent) -> None:
        self.append(event)
        if isinstance(self._then, BaseException):
            raise self._then

    @property
    def values(self) -> list[object]:
        return [event.data["value"] for event in self]


def test_a_handled_event_is_done_with(bench: Bench) -> None:
    calls = Calls()
    handler = bench.handler(calls)
    (event,) = bench.publish(handler, 1)
    with bench.consuming(handler):
        wait_until(lambda: calls, 30, "a call")
        bench.wait_until_empty(handler)
    assert calls == [event]
    assert bench.stats(handler).dead == 0


def test_events_of_a_handler_come_in_their_order(bench: Bench) -> None:
    calls = Calls()
    handler = bench.handler(calls)
    bench.publish(handler, *range(500))
    with bench.consuming(handler):
        wait_until(lambda: len(calls) == 500, 60, lambda: f"500 calls: {len(calls)}")
    assert calls.values == list(range(500))


@pytest.mark.parametrize(
    "options",
    [
        {"backoff": Backoff.fixed(0.05)},
        {"backoff": Backoff.exponential(0.02, factor=2, jitter=0)},
        {"backoff": Backoff.exponential(0.03, factor=1.5, jitter=0.9)},
        {"backoff": Backoff.fixed(0.05), "retry_on": (ServiceDown,)},
        {"then": Retry(0.07)},
        {"then": Retry(0)},
    ],
    ids=["fixed", "exponential", "jittered", "retry_on", "Retry", "Retry at once"],
)
@pytest.mark.parametrize("max_retries", [0, 1, 3])
def test_a_handler_is_called_once_and_max_retries_times_more(
    bench: Bench, options: dict[str, object], max_retries: int
) -> None:
    declared = {name: value for name, value in options.items() if name != "then"}
    calls = Calls(options.get("then") or ServiceDown("no answer"))
    handler = bench.handler(calls, max_retries=max_retries, **declared)
    (event,) = bench.publish(handler, 1)
    with bench.consuming(handler):
        (letter,) = bench.dead_letters(handler, 1)
    assert [call.retries for call in calls] == list(range(max_retries + 1))
    assert {call.uuid_string for call in calls} == {event.uuid_string}
    assert letter.failure is not None
    assert letter.failure.reason == "retries-exhausted"
    assert letter.failure.attempts == max_retries + 1
    assert letter.routing_key == event.routing_key


@pytest.mark.parametrize(
    ("error", "options", "reason"),
    [
        (ValueError("broken"), {}, "error"),
        (ValueError("broken"), {"retry_on": (ServiceDown,), "max_retries": 3}, "error"),
        (Reject("not ours"), {"backoff": Backoff.fixed(1), "max_retries": 3}, "rejected"),
        (SystemExit("out"), {"backoff": Backoff.fixed(1), "max_retries": 3}, "error"),
        (KeyboardInterrupt(), {}, "error"),
    ],
)
def test_what_is_not_to_be_retried_is_dead_lettered_at_once(
    bench: Bench, error: BaseException, options: dict[str, object], reason: str
) -> None:
    calls = Calls(error)
    handler = bench.handler(calls, **options)
    bench.publish(handler, 1)
    with bench.consuming(handler):
        (letter,) = bench.dead_letters(handler, 1)
    assert len(calls) == 1
    assert letter.failure is not None
    assert letter.failure.reason == reason
    assert type(error).__name__ in letter.failure.error_type
    assert type(error).__name__ in letter.failure.traceback


class Unspeakable(Exception):
    """An exception that cannot be told of."""

    def __str__(self) -> str:
        raise ValueError("no words")


class HalfRetry(Retry):
    """A Retry that forgot to be made as one."""

    def __init__(self) -> None:
        Exception.__init__(self)


@pytest.mark.parametrize("error", [Unspeakable(), HalfRetry()])
def test_an_exception_that_is_itself_broken_does_not_stop_the_handler(bench: Bench, error: Exception) -> None:
    calls = Calls(error)
    handler = bench.handler(calls, max_retries=0)
    bench.publish(handler, 1, 2)
    with bench.consuming(handler):
        letters = bench.dead_letters(handler, 2)
    assert calls.values == [1, 2]
    assert all(letter.failure is not None for letter in letters)


def test_a_handler_that_takes_long_is_told_of(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domain_event_broker.subscriber.SLOW_SECONDS", 0.2)
    release = threading.Event()
    handler = bench.handler(lambda event: release.wait(60))
    (event,) = bench.publish(handler, 1)
    with bench.consuming(handler), caplog.at_level(logging.WARNING, "domain_event_broker"):
        wait_until(lambda: f"has worked on {handler.name} {event.uuid_string}" in caplog.text, 30, "a word")
        release.set()


def test_a_retry_raised_for_an_error_tells_of_that_error(bench: Bench) -> None:
    def call(event: DomainEvent) -> None:
        try:
            raise ServiceDown("no answer")
        except ServiceDown as error:
            raise Retry(1) from error

    handler = bench.handler(call, max_retries=0)
    bench.publish(handler, 1)
    with bench.consuming(handler):
        (letter,) = bench.dead_letters(handler, 1)
    assert letter.failure is not None
    assert (letter.failure.reason, letter.failure.message) == ("retries-exhausted", "no answer")
    assert letter.failure.error_type.endswith("ServiceDown")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"data": {}}'])
def test_a_body_that_is_no_event_is_dead_lettered_without_a_call(bench: Bench, body: bytes) -> None:
    calls = Calls()
    handler = bench.handler(calls)
    bench.send([Message(handler.name, body, new_event_id())])
    with bench.consuming(handler):
        (letter,) = bench.dead_letters(handler, 1)
    assert not calls
    assert letter.body == body
    assert letter.failure is not None
    assert letter.failure.reason == "malformed"


def test_without_dead_letters_a_failed_event_is_dropped_with_a_line_in_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    handler = bench.handler(Calls(ValueError("broken")), dead_letter=False)
    (event,) = bench.publish(handler, 1)
    with caplog.at_level(logging.INFO, "domain_event_broker"), bench.consuming(handler):
        wait_until(lambda: "dropped" in caplog.text, 30, "a line in the log")
        bench.wait_until_empty(handler)
    (record,) = [each for each in caplog.records if getattr(each, "outcome", "") == "dropped"]
    assert record.levelno == logging.ERROR
    assert event.uuid_string in record.getMessage()


def test_a_retry_is_seen_by_no_other_handler(bench: Bench) -> None:
    key = bench.fresh_name("key")
    failing, other = Calls(Retry(0.05)), Calls()
    handlers = [
        bench.handler(failing, binding_keys=(key,), max_retries=2),
        bench.handler(other, binding_keys=(key,)),
    ]
    bench.publish(handlers[0], 1)
    with bench.consuming(*handlers):
        bench.dead_letters(handlers[0], 1)
        wait_until(lambda: other, 30, "a call of the other handler")
    assert len(failing) == 3
    assert len(other) == 1


def test_a_slow_handler_does_not_hold_up_another(bench: Bench) -> None:
    release = threading.Event()
    quick = Calls()
    slow_one = bench.handler(lambda event: release.wait(60))
    quick_one = bench.handler(quick)
    bench.publish(slow_one, 1, 2, 3)
    bench.publish(quick_one, *range(20))
    with bench.consuming(slow_one, quick_one):
        wait_until(lambda: len(quick) == 20, 30, lambda: f"20 quick calls: {len(quick)}")
        release.set()
        bench.wait_until_empty(slow_one)


def test_concurrency_lets_a_handler_work_on_several_events_at_once(bench: Bench) -> None:
    meeting = threading.Barrier(4)
    met: list[int] = []
    handler = bench.handler(lambda event: met.append(meeting.wait(30)), concurrency=4)
    bench.publish(handler, 1, 2, 3, 4)
    with bench.consuming(handler):
        wait_until(lambda: len(met) == 4, 40, lambda: f"4 met: {met}")
    bench.wait_until_empty(handler)
    assert bench.stats(handler).dead == 0


def test_stopping_finishes_what_runs_and_gives_back_the_rest(bench: Bench) -> None:
    started, release = threading.Event(), threading.Event()
    done: list[object] = []

    def call(event: DomainEvent) -> None:
        started.set()
        release.wait(60)
        done.append(event.data["value"])

    handler = bench.handler(call)
    bench.publish(handler, *range(10))
    with bench.consuming(handler) as consumer:
        assert started.wait(30)
        consumer.stop()
        release.set()
    assert done == [0]
    wait_until(lambda: bench.stats(handler).ready == 9, 30, lambda: f"9 ready: {bench.stats(handler)}")
    calls = Calls()
    again = Handler(calls, handler.name, handler.binding_keys)
    with bench.consuming(again):
        wait_until(lambda: len(calls) == 9, 30, lambda: f"9 calls: {len(calls)}")
    assert sorted(calls.values, key=str) == list(range(1, 10))


def test_a_handler_that_outlives_the_grace_loses_its_delivery_to_the_next_subscriber(bench: Bench) -> None:
    started, release = threading.Event(), threading.Event()
    handler = bench.handler(lambda event: (started.set(), release.wait(60)))
    bench.publish(handler, 1)
    with bench.consuming(handler, grace_seconds=0.1):
        assert started.wait(30)
    wait_until(lambda: bench.stats(handler).ready == 1, 30, lambda: f"1 ready: {bench.stats(handler)}")
    release.set()


class AbsentInbox:
    """An inbox whose database is away for a while."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    def run(self, handler: Handler, event: DomainEvent) -> bool:
        if self.failures:
            self.failures -= 1
            raise InboxUnavailable("the database does not answer")
        handler.call(event)
        return True


def test_a_database_that_is_away_is_told_of_once_for_all_deliveries_in_hand(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="domain_event_broker.subscriber")
    calls = Calls()
    handler = bench.handler(calls, concurrency=5)
    bench.publish(handler, *range(5))
    with bench.consuming(handler, inbox=AbsentInbox(12)):
        wait_until(lambda: len(calls) == 5, 60, lambda: f"{len(calls)} calls")
        bench.wait_until_empty(handler)
    told = [each.message for each in caplog.records]
    assert told.count("the database does not answer; trying again until it is back") == 1
    assert told.count("handling again: the database of the inbox is back") == 1


def test_while_the_inbox_is_away_an_event_waits_and_is_charged_no_retry(bench: Bench) -> None:
    calls = Calls()
    handler = bench.handler(calls, max_retries=0)
    bench.publish(handler, 1)
    with bench.consuming(handler, inbox=AbsentInbox(2)):
        wait_until(lambda: calls, 30, "a call")
        bench.wait_until_empty(handler)
    assert [call.retries for call in calls] == [0]
    assert bench.stats(handler).dead == 0
