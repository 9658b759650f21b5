"""How many events were sent lately, told from the archive: counted, or estimated where it is big."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

from domain_event_broker.django import throughput as measuring
from domain_event_broker.django.database import to_field
from domain_event_broker.django.models import ArchivedEvent
from domain_event_broker.django.throughput import Throughput, throughput

#: An hour by minutes, a day by half hours.
PERIODS = [(60, 60), (48, 1800)]


def archive(alias: str, *seconds_ago: float, **columns: Any) -> None:
    """Write sent events, in the order in which they were sent; no two of them at one time."""
    now = datetime.now(timezone.utc)
    empty = {"event_id": "e", "bucket": 0, "routing_key": "k", "body": "{}", "outbox_id": 1}
    ArchivedEvent.objects.using(alias).bulk_create(
        ArchivedEvent(created_at=to_field(sent), published_at=to_field(sent), **{**empty, **columns})
        for sent in (
            now - timedelta(seconds=ago, microseconds=-number)
            for number, ago in enumerate(sorted(seconds_ago, reverse=True))
        )
    )


def shape(found: Throughput) -> list[int]:
    """Return the slices from the newest back, without the empty ones at the far end."""
    counts = [each.count for each in reversed(found.slices)]
    while counts and not counts[-1]:
        counts.pop()
    return counts


def test_nothing_was_sent(alias: str) -> None:
    hour, day = throughput(alias, PERIODS)
    assert (hour.total, day.total, len(hour.slices), len(day.slices)) == (0, 0, 60, 48)
    assert hour.exact
    assert day.highest == 0


def test_events_are_counted_in_the_slice_they_were_sent_in(alias: str) -> None:
    archive(alias, *[600.0] * 3, *[1200.0] * 5, 10_000.0, 100_000.0)
    hour, day = throughput(alias, PERIODS)
    counts = shape(hour)
    assert sorted(each for each in counts if each) == [3, 5]
    assert counts.index(5) - counts.index(3) == 10
    assert (hour.total, day.total) == (8, 9)


def test_the_slice_under_way_ends_with_the_minute_of_now(alias: str) -> None:
    archive(alias, 0.0)
    hour = throughput(alias, PERIODS)[0]
    last = hour.slices[-1].starts_at
    age = (datetime.now(timezone.utc) - last).total_seconds()
    # The minute may end between two readings of the clock.
    assert -1 < age < 65
    assert last.second == 0
    assert hour.total == 1


@pytest.mark.parametrize("counted", [1, 7])
def test_a_big_archive_is_estimated_from_its_ids(
    alias: str, monkeypatch: pytest.MonkeyPatch, counted: int
) -> None:
    archive(alias, *[600.0] * 30, *[1200.0] * 50, *[10_000.0] * 20, *[100_000.0] * 9)
    monkeypatch.setattr(measuring, "COUNTED", counted)
    hour, day = throughput(alias, PERIODS)
    assert (hour.exact, day.exact) == (False, False)
    assert (hour.total, day.total) == (80, 100)
    assert [each for each in shape(hour) if each] == [30, 50]


def test_a_period_that_was_read_to_its_beginning_is_exact_though_a_longer_one_is_not(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(alias, *[600.0] * 5, *[10_000.0] * 20)
    monkeypatch.setattr(measuring, "COUNTED", 10)
    hour, day = throughput(alias, PERIODS)
    assert (hour.exact, hour.total) == (True, 5)
    assert (day.exact, day.total) == (False, 25)


def test_ids_that_were_given_to_no_row_are_not_taken_for_events(
    alias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive(alias, *[float(ago) for ago in range(1200, 600, -1)])
    every_second = ArchivedEvent.objects.using(alias).order_by("pk").values_list("pk", flat=True)[::2]
    ArchivedEvent.objects.using(alias).filter(pk__in=list(every_second)).delete()
    monkeypatch.setattr(measuring, "COUNTED", 1)
    assert throughput(alias, PERIODS)[0].total == pytest.approx(300, rel=0.05)


def test_what_is_read_of_a_big_archive_is_bounded(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "COUNTED", 10)
    archive(postgresql, *[600.0] * 100)
    with CaptureQueriesContext(connections[postgresql]) as queries:
        throughput(postgresql, PERIODS)
    reading = [each["sql"] for each in queries if "domain_event_broker_archive" in each["sql"]]
    assert len(reading) == 5
    assert all("LIMIT" in sql for sql in reading)
