"""What is wrong with outbox and broker, in words: worst first, each with what to do."""

from __future__ import annotations

from typing import Any

import pytest

from domain_event_broker.django.status import (
    COUNT_LIMIT,
    Alert,
    BrokerStatus,
    Level,
    OutboxStatus,
    RelayStatus,
    alerts,
    in_words,
)
from domain_event_broker.ports import QueueStats

ALIVE = RelayStatus("web-1:41", 64, 2.0)


def outbox(*relays: RelayStatus, **figures: Any) -> OutboxStatus:
    known = {"pending": 0, "oldest_seconds": None, "scheduled": 0, "retrying": 0, "parked": 0}
    return OutboxStatus("default", **{**known, **figures}, relays=relays or (ALIVE,))


def broker(**queues: QueueStats) -> BrokerStatus:
    return BrokerStatus("amqp://broker", dict(queues))


def queue(**figures: Any) -> QueueStats:
    return QueueStats(**{"exists": True, "consumers": 1, **figures})


def only(found: list[Alert]) -> Alert:
    assert len(found) == 1, found
    return found[0]


def test_all_is_well_when_a_relay_lives_and_handlers_are_served() -> None:
    assert alerts(outbox(pending=7, oldest_seconds=0.2), broker(billing=queue(ready=3))) == []


def test_what_is_not_known_is_not_complained_about() -> None:
    assert alerts(None, None) == []


def test_a_silent_relay_is_named_while_another_works() -> None:
    alert = only(alerts(outbox(ALIVE, RelayStatus("web-2:7", 0, 40.4)), None))
    assert (alert.level, alert.kind, alert.subject) == (Level.WARNING, "relay-silent", "web-2:7")
    assert alert.text == "Relay web-2:7 has been silent for 40 s."


@pytest.mark.parametrize(
    ("relays", "pending", "oldest", "level"),
    [
        ((), 0, None, Level.NOTE),
        ((), 1, 3.0, Level.WARNING),
        ((), 1, 61.0, Level.CRITICAL),
        ((RelayStatus("web-2:7", 0, 300.0),), 1, 3.0, Level.CRITICAL),
    ],
)
def test_no_relay_is_as_bad_as_what_waits_for_it(
    relays: tuple[RelayStatus, ...], pending: int, oldest: float | None, level: Level
) -> None:
    known = OutboxStatus("default", pending, oldest, 0, 0, 0, relays)
    alert = next(each for each in alerts(known, None) if each.kind == "no-relay")
    assert alert.level == level
    assert "run_relay" in alert.remedy


def test_events_that_wait_for_long_are_told_with_their_number() -> None:
    late = outbox(pending=1204, oldest_seconds=300.0)
    alert = only(alerts(late, None))
    assert alert.text == "1,204 events wait in the outbox, the oldest for 5 minutes."
    assert alerts(late, None, lag=301.0) == []


def test_a_number_that_was_not_counted_to_its_end_says_so() -> None:
    alert = only(alerts(outbox(pending=COUNT_LIMIT, oldest_seconds=300.0), None))
    assert alert.text.startswith("100,000 or more events wait")


def test_one_event_is_spoken_of_as_one() -> None:
    assert only(alerts(outbox(parked=1), None)).text.startswith("1 event is parked")
    assert only(alerts(outbox(retrying=1), None)).text.startswith("1 event was refused")


def test_a_handler_without_consumers_is_critical_once_events_wait() -> None:
    alert = only(alerts(None, broker(**{"billing.on_order": queue(consumers=0, ready=120)})))
    assert alert.level == Level.CRITICAL
    assert alert.text == "Nobody consumes billing.on_order: 120 events wait."
    assert only(alerts(None, broker(billing=queue(consumers=0)))).level == Level.WARNING


def test_a_broker_that_cannot_count_consumers_raises_no_alarm() -> None:
    assert alerts(None, broker(billing=queue(consumers=None, ready=120))) == []


def test_dead_letters_name_the_command_that_shows_them() -> None:
    alert = only(alerts(None, broker(billing=queue(dead=12))))
    assert alert.text == "12 dead letters in billing."
    assert "replay_dlq billing --dry-run" in alert.remedy


def test_a_handler_without_queue_is_told_of() -> None:
    assert only(alerts(None, broker(billing=QueueStats(exists=False)))).kind == "no-queue"


def test_a_broker_that_is_away_says_when_the_last_event_was_sent() -> None:
    known = outbox(sent_seconds_ago=240.0)
    alert = only(alerts(known, BrokerStatus("amqp://broker", problem="connection refused.")))
    assert alert.level == Level.CRITICAL
    assert alert.text == (
        "The broker cannot be asked: connection refused. The last event was sent 4 minutes ago."
    )


def test_what_is_left_of_earlier_releases_is_told() -> None:
    left = BrokerStatus(
        "amqp://broker",
        abandoned={"old": queue(ready=2, dead=1)},
        surplus_keys={"billing": ("order.#",)},
    )
    abandoned, surplus = alerts(None, left)
    assert "old has left the code" in abandoned.text
    assert "'order.#'" in surplus.text


def test_the_worst_comes_first_and_of_equals_the_one_with_more_events() -> None:
    found = alerts(
        outbox(retrying=900, parked=2),
        broker(few=queue(dead=1), many=queue(dead=30), stuck=queue(consumers=0, ready=1)),
    )
    assert [(each.kind, each.subject) for each in found] == [
        ("no-consumer", "stuck"),
        ("dead-letters", "many"),
        ("parked", ""),
        ("dead-letters", "few"),
        ("retrying", ""),
    ]


def test_every_alert_says_what_to_do() -> None:
    found = alerts(
        outbox(RelayStatus("gone", 0, 99.0), pending=1, oldest_seconds=99.0, retrying=1, parked=1),
        BrokerStatus("x", {"a": queue(consumers=0, dead=1), "b": QueueStats(exists=False)}, problem="gone"),
    )
    assert len(found) == 8
    assert all(each.remedy.endswith(".") and each.text.endswith(".") and each.kind for each in found)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 minutes"), (7_200, "2 hours"), (200_000, "2 days")],
)
def test_spans_of_time_are_said_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
