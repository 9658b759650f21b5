"""The checklist of bus libraries, rows 25 to 44: retries, dead letters, replay, consumers."""

from __future__ import annotations

import itertools
import json
import threading
import time
from typing import Any

import pytest

from domain_event_broker import Backoff, DeadLetter, DomainEvent, Retry, config, subscribe
from domain_event_broker.events import encode
from domain_event_broker.handlers import Handler, Registry
from domain_event_broker.ports import DeadLetter as Letter
from domain_event_broker.ports import Decision
from domain_event_broker.replay import MAX_REPLAYS, LetterFilter, browse, replay
from domain_event_broker.subscriber import subscription_of
from domain_event_broker.testing import make_event, run_handlers
from tests.checklist.conftest import declared
from tests.harness.rabbitmq import PrivateRabbitMQ
from tests.harness.waiting import wait_until
from tests.integration.subscriber.conftest import Bench


class ServiceDown(Exception):
    """What is tried again."""


def fail(event: DomainEvent) -> None:
    """A handler that cannot."""
    raise ServiceDown("nobody there")


def letters_of(bench: Bench, handler: Handler) -> list[Letter]:
    """Look at the dead letters."""
    with bench.transport() as transport:
        return browse(transport.dead_letters(handler.name), LetterFilter())


def test_row_25_three_retries_two_seconds_apart_for_one_kind_of_error_and_one_call_for_others() -> None:
    calls: list[str] = []

    def handle(event: DomainEvent) -> None:
        calls.append(event.routing_key)
        raise ServiceDown if event.routing_key == "service.down" else ValueError

    registry = Registry()
    subscribe("#", name="handler", retries=3, retry_on=[ServiceDown], retry_interval=2, to=registry)(handle)
    report = run_handlers(
        make_event("service.down"),
        make_event("other.error"),
        handlers=registry.all(),
        allow_dead_letters=True,
    )
    assert calls.count("service.down") == 4
    assert calls.count("other.error") == 1
    assert [run.delay for run in report.of("handler") if run.delay] == [2.0] * 3
    assert 6 <= report.seconds < 60


def test_row_25_retries_come_after_their_interval_on_every_broker(bench: Bench) -> None:
    at: list[float] = []

    def handle(event: DomainEvent) -> None:
        at.append(time.monotonic())
        raise ServiceDown

    handler = declared(bench, handle, retries=2, retry_on=[ServiceDown], retry_interval=0.4)
    with bench.consuming(handler):
        bench.publish(handler, 1)
        bench.dead_letters(handler, 1)
    assert len(at) == 3
    assert all(later - earlier >= 0.39 for earlier, later in itertools.pairwise(at))


def test_row_26_a_backoff_grows_to_its_maximum_with_jitter() -> None:
    policy = Backoff.exponential(1.0, factor=2, max=5, jitter=0.1)
    growing = Handler(fail, "growing", ("#",), max_retries=5, backoff=policy)
    report = run_handlers(make_event("order.placed"), handlers=[growing], allow_dead_letters=True)
    delays = [run.delay for run in report.of("growing") if run.delay]
    assert len(delays) == 5
    for delay, nominal in zip(delays, [1, 2, 4, 5, 5], strict=True):
        assert nominal * 0.9 <= delay <= nominal * 1.1


def test_row_27_a_retry_survives_a_restart_of_the_subscriber(bench: Bench) -> None:
    seen: list[int] = []

    def handle(event: DomainEvent) -> None:
        seen.append(event.retries)
        if event.retries == 0:
            raise Retry(0.5)

    handler = declared(bench, handle, max_retries=3)
    with bench.consuming(handler) as consumer:
        bench.publish(handler, 1)
        wait_until(lambda: consumer.outcomes[handler.name, "retried"] == 1, 30)
    with bench.consuming(handler):
        wait_until(lambda: seen == [0, 1], 30, lambda: f"{seen}")


def test_row_28_a_retry_delay_blocks_no_other_event(bench: Bench) -> None:
    seen: list[Any] = []

    def handle(event: DomainEvent) -> None:
        if event.data["value"] == "slow":
            raise Retry(3600)
        seen.append(event.data["value"])

    handler = declared(bench, handle, max_retries=3, concurrency=1)
    with bench.consuming(handler):
        bench.publish(handler, "slow", 1, 2, 3)
        wait_until(lambda: seen == [1, 2, 3], 30, lambda: f"{seen}")
        wait_until(lambda: bench.stats(handler).delayed == 1, 30)


def test_rows_29_and_30_only_the_failed_handler_sees_the_retry(bench: Bench) -> None:
    calls: list[tuple[str, int]] = []
    key = bench.fresh_name("key")

    def retried(event: DomainEvent) -> None:
        calls.append(("retried", event.retries))
        if event.retries < 2:
            raise Retry(0.05)

    failing = declared(bench, retried, key, max_retries=5)
    other = declared(bench, lambda event: calls.append(("other", event.retries)), key)
    with bench.consuming(failing, other):
        bench.send([encode(DomainEvent(key, {}))])
        wait_until(lambda: len(calls) >= 4, 30)
        bench.wait_until_empty(failing)
    assert sorted(calls) == [("other", 0), ("retried", 0), ("retried", 1), ("retried", 2)]


def test_row_31_a_dead_letter_tells_reason_type_count_time_and_origin(bench: Bench) -> None:
    handler = declared(bench, fail, max_retries=1, backoff=Backoff.fixed(0.05))
    began = time.time()
    with bench.consuming(handler):
        (event,) = bench.publish(handler, 1)
        (letter,) = bench.dead_letters(handler, 1)
    failure = letter.failure
    assert failure is not None
    assert (failure.reason, failure.attempts, failure.message) == ("retries-exhausted", 2, "nobody there")
    assert failure.error_type.endswith("ServiceDown")
    assert "in fail" in failure.traceback
    assert began - 2 <= failure.failed_at <= time.time() + 2
    assert (letter.queue, letter.routing_key, letter.event_id) == (
        handler.name,
        handler.name,
        event.uuid_string,
    )


def test_row_32_without_dead_letters_a_drop_is_explicit_and_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    handler = declared(bench, fail, dead_letter=False)
    with bench.consuming(handler) as consumer:
        bench.publish(handler, 1)
        wait_until(lambda: consumer.outcomes[handler.name, "dropped"] == 1, 30)
    assert "dropped in" in caplog.text
    assert bench.stats(handler).dead == 0


def test_rows_33_and_34_looking_at_dead_letters_is_complete_and_changes_nothing(bench: Bench) -> None:
    handler = declared(bench, fail, max_retries=0)
    with bench.consuming(handler):
        events = bench.publish(handler, *range(30))
        bench.dead_letters(handler, 30)
    for _ in range(3):
        assert [letter.event_id for letter in letters_of(bench, handler)] == [e.uuid_string for e in events]
    with bench.transport() as transport:
        letters = transport.dead_letters(handler.name)
        assert letters.count() == 30
        assert letters.sift(lambda letter: Decision.DISCARD).discarded == 30
        assert letters.count() == 0


def test_row_35_one_letter_is_replayed_by_its_id_to_its_handler_alone_with_fresh_retries(
    bench: Bench,
) -> None:
    works: list[bool] = []
    calls: list[tuple[str, int]] = []
    key = bench.fresh_name("key")

    def charge(event: DomainEvent) -> None:
        calls.append((event.uuid_string, event.retries))
        if not works:
            raise ServiceDown

    failing = declared(bench, charge, key, max_retries=1, backoff=Backoff.fixed(0.01))
    others: list[str] = []
    other = declared(bench, lambda event: others.append(event.uuid_string), key)
    events = [DomainEvent(key, {}) for _ in range(3)]
    with bench.consuming(failing, other):
        bench.send([encode(event) for event in events])
        bench.dead_letters(failing, 3)
        works.append(True)
        calls.clear()
        with bench.transport() as transport:
            wanted = LetterFilter(event_ids=frozenset({events[1].uuid_string}))
            assert replay(transport.dead_letters(failing.name), wanted).replayed == 1
        wait_until(lambda: calls == [(events[1].uuid_string, 0)], 30, lambda: f"{calls}")
        bench.wait_until_empty(failing)
    assert bench.stats(failing).dead == 2
    assert sorted(others) == sorted(event.uuid_string for event in events)


def test_row_36_a_letter_that_goes_round_stays_unless_it_is_forced(bench: Bench) -> None:
    handler = declared(bench, fail, max_retries=0)
    with bench.consuming(handler) as consumer, bench.transport() as transport:
        bench.publish(handler, 1)
        letters = transport.dead_letters(handler.name)
        for rounds in range(1, MAX_REPLAYS + 1):
            wait_until(lambda: consumer.outcomes[handler.name, "dead-lettered"] == rounds, 30)  # noqa: B023
            wait_until(lambda: letters.count() == 1, 30)
            assert replay(letters, LetterFilter()).replayed == 1
        wait_until(lambda: letters.count() == 1, 30)
        assert replay(letters, LetterFilter()).looping == 1
        assert replay(letters, LetterFilter(), max_replays=None).replayed == 1


def test_row_37_dead_letters_can_be_limited_by_number_and_age(on_rabbitmq: Bench) -> None:
    few = declared(on_rabbitmq, fail, dead_letter=DeadLetter(max_length=2))
    short = declared(on_rabbitmq, fail, dead_letter=DeadLetter(ttl=0.5))
    with on_rabbitmq.consuming(few, short) as consumer:
        on_rabbitmq.publish(few, *range(5))
        on_rabbitmq.publish(short, 1)
        wait_until(lambda: consumer.outcomes[few.name, "dead-lettered"] == 5, 30)
        wait_until(lambda: consumer.outcomes[short.name, "dead-lettered"] == 1, 30)
        wait_until(lambda: on_rabbitmq.stats(few).dead == 2, 30)
        wait_until(lambda: on_rabbitmq.stats(short).dead == 0, 30)


def test_row_38_the_way_of_a_dead_letter_can_be_read(bench: Bench) -> None:
    handler = declared(bench, fail, max_retries=2, backoff=Backoff.fixed(0.01))
    with bench.consuming(handler):
        bench.publish(handler, 1)
        (letter,) = bench.dead_letters(handler, 1)
        with bench.transport() as transport:
            replay(transport.dead_letters(handler.name), LetterFilter())
        wait_until(lambda: [each.replays for each in letters_of(bench, handler)] == [1], 30)
    (again,) = letters_of(bench, handler)
    assert (letter.failure and letter.failure.attempts, letter.replays) == (3, 0)
    told = json.dumps({name: str(value) for name, value in again.headers.items()})
    assert "retries-exhausted" in told


def test_row_39_an_event_is_acknowledged_after_its_handler_and_comes_back_from_a_lost_connection(
    bench: Bench,
) -> None:
    handler = declared(bench, lambda event: None)
    (event,) = bench.publish(handler, 1)
    with bench.transport() as lost:
        lost.subscribe(subscription_of(handler, bench.settings.subscriber))
        wait_until(lambda: lost.receive(1, 0.1), 30)
    seen: list[str] = []
    again = Handler(lambda event: seen.append(event.uuid_string), handler.name, handler.binding_keys)
    with bench.consuming(again):
        wait_until(lambda: seen == [event.uuid_string], 30)


def test_row_40_consumers_of_one_name_share_and_other_names_get_all(bench: Bench) -> None:
    shares: list[list[int]] = [[], []]
    every: list[int] = []
    key = bench.fresh_name("key")
    name = bench.fresh_name("shared")
    slow = threading.Event()

    def member(share: list[int]) -> Any:
        def take(event: DomainEvent) -> None:
            share.append(event.data["value"])
            slow.wait(0.01)

        return take

    one, other = (declared(bench, member(share), key, name=name, prefetch=2) for share in shares)
    audit = declared(bench, lambda event: every.append(event.data["value"]), key)
    with bench.consuming(one), bench.consuming(other), bench.consuming(audit):
        for handler in (one, audit):
            wait_until(lambda: bench.stats(handler).consumers != 0, 30)  # noqa: B023
        bench.send([encode(DomainEvent(key, {"value": number})) for number in range(60)])
        wait_until(lambda: len(every) == 60 and sum(map(len, shares)) == 60, 60)
    assert sorted(shares[0] + shares[1]) == sorted(every) == list(range(60))


def test_row_41_prefetch_bounds_what_is_under_way(bench: Bench) -> None:
    handler = declared(bench, lambda event: None, prefetch=3)
    bench.publish(handler, *range(20))
    with bench.transport() as transport:
        transport.subscribe(subscription_of(handler, bench.settings.subscriber))
        held: list[Any] = []
        wait_until(lambda: held.extend(transport.receive(100, 0.2)) or len(held) >= 3, 30)
        assert transport.receive(100, 0.3) == []
        assert len(held) == 3


def test_row_42_events_of_one_handler_keep_their_order(bench: Bench) -> None:
    seen: list[int] = []
    handler = declared(bench, lambda event: seen.append(event.data["value"]), concurrency=1)
    bench.publish(handler, *range(100))
    with bench.consuming(handler):
        wait_until(lambda: len(seen) == 100, 30)
    assert seen == list(range(100))


def test_rows_43_and_44_a_broker_that_was_away_is_found_again_and_abandoned_events_come_back(
    fresh_name: Any,
) -> None:
    seen: list[int] = []
    with PrivateRabbitMQ() as server:
        settings = config.parse(server.url())
        assert settings is not None
        bench = Bench(settings, fresh_name)
        handler = declared(bench, lambda event: seen.append(event.data["value"]))
        with bench.consuming(handler) as consumer:
            bench.publish(handler, 1)
            wait_until(lambda: seen == [1], 30)
            server.restart()
            bench.publish(handler, 2)
            wait_until(lambda: 2 in seen, 60)
        assert consumer.stats.reconnections >= 1
